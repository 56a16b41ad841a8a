"""The order of axes in a resize is width, then height, whatever Pillow's version: both decoders agree on any shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from featcache.errors import ImageError
from featcache.images.load import decode, resize_crop
from featcache.images.views import View, draw_view
from featcache.recipe import Preprocessing

MEAN_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def drawn(number: int) -> View:
    view = draw_view(0, bytes([number]) * 32, 1)
    assert view is not None
    return view


def levels_apart(pixels: np.ndarray, preprocessing: Preprocessing, view: View | None = None) -> int:
    fast, pillow = (resize_crop(pixels, preprocessing, decoder=d, view=view).astype(int) for d in ("fast", "pillow"))
    return int(np.abs(fast - pillow).max())


@settings(max_examples=120, deadline=None)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 900),
    size=st.integers(16, 256),
    mode=st.sampled_from(["center", "squash"]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
@example(
    width=97, height=411, size=96, mode="center", interpolation="bicubic"
)  # Pillow 13 alone would begin with the height
@example(width=300, height=601, size=224, mode="center", interpolation="bicubic")
@example(width=300, height=600, size=224, mode="squash", interpolation="bicubic")
@example(width=230, height=248, size=224, mode="squash", interpolation="bicubic")
def test_decoders_are_two_levels_apart_whatever_the_shape(
    width: int, height: int, size: int, mode: str, interpolation: str
) -> None:
    preprocessing = Preprocessing(size, size, size, interpolation, mode, *MEAN_STD)
    pixels, how = noise(width, height), Image.Resampling[interpolation.upper()]
    assert levels_apart(pixels, preprocessing) <= 2
    if mode == "squash":
        expected = np.asarray(Image.fromarray(pixels).resize((size, height), how).resize((size, size), how))
        np.testing.assert_array_equal(resize_crop(pixels, preprocessing, decoder="pillow"), expected)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
@pytest.mark.parametrize("size", [(308, 404), (90, 700), (223, 300), (600, 300), (40, 30), (224, 900)])
def test_a_view_is_resized_in_width_first_under_every_version_of_pillow(
    size: tuple[int, int], interpolation: str
) -> None:
    preprocessing = Preprocessing(96, 112, 112, interpolation, "center", *MEAN_STD)
    pixels, how = noise(*size), Image.Resampling[interpolation.upper()]
    for number in range(1, 6):
        view = drawn(number)
        crop = Image.fromarray(pixels).crop(view.box(*size))
        expected = np.asarray(crop.resize((112, crop.height), how).resize((112, 96), how))
        expected = expected[:, ::-1] if view.flip else expected
        np.testing.assert_array_equal(resize_crop(pixels, preprocessing, decoder="pillow", view=view), expected)
        assert levels_apart(pixels, preprocessing, view) <= 2


@pytest.mark.parametrize("decoder", ["fast", "pillow"])
@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("plain", [True, False])
def test_an_image_too_thin_to_resize_is_refused_in_little_memory(decoder: Any, mode: str, plain: bool) -> None:
    """Resized in width first, one column of 20 million pixels would take 13 GB."""
    pixels = np.zeros((20_000_000, 1, 3), np.uint8)
    view = None if plain else View(shapes=((1 << 32, 1 << 16),), left=0, top=0, flip=False)
    preprocessing = Preprocessing(224, 224, 224, "bicubic", mode, *MEAN_STD)
    if not plain:
        assert resize_crop(pixels, preprocessing, decoder=decoder, view=view).shape == (224, 224, 3)  # its box is small
    else:
        with pytest.raises(ImageError, match="too long and thin"):
            resize_crop(pixels, preprocessing, decoder=decoder)


@pytest.mark.shared
def test_views_and_squashes_of_real_photos_are_two_levels_apart(clothing10: Path) -> None:
    photos = sorted(clothing10.rglob("*.jpg"))
    for number, photo in enumerate(photos[::32]):
        pixels = decode(photo.read_bytes())
        for interpolation in ("bicubic", "bilinear"):
            for mode in ("center", "squash"):
                preprocessing = Preprocessing(224, 224, 224, interpolation, mode, *MEAN_STD)
                assert levels_apart(pixels, preprocessing) <= 2, photo
            assert levels_apart(pixels, preprocessing, drawn(number)) <= 2, photo
