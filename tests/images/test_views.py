"""Drawn views: the same on any machine, inside the image, distributed as stated, and pixel for pixel reproducible."""

from __future__ import annotations

import dataclasses
import hashlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featcache.errors import InputError
from featcache.images.load import decode, load_image, resize_crop
from featcache.images.views import View, draw_view
from featcache.recipe import Preprocessing

PREPROCESSING = Preprocessing(48, 40, 56, "bicubic", "center", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def digest(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def drawn(view_seed: int, number: int, index: int = 1) -> View:
    view = draw_view(view_seed, digest(number), index)
    assert view is not None
    return view


def generated_png() -> bytes:
    """Return a picture made of integers, losslessly stored: the same bytes of pixels on any machine."""
    y, x = np.mgrid[0:97, 0:131].astype(np.int64)
    pixels = np.stack([(x * x + 3 * y) % 256, (7 * x + y * y) % 256, (x * y) % 256], axis=-1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_view_zero_is_the_plain_image() -> None:
    assert draw_view(0, digest(0), 0) is None
    with pytest.raises(InputError, match="at least 0"):
        draw_view(0, digest(0), -1)


def test_a_view_depends_on_seed_digest_and_index_and_on_nothing_else() -> None:
    assert drawn(1, 2, 3) == drawn(1, 2, 3)
    others = [drawn(1, 2, 3), drawn(2, 2, 3), drawn(1, 3, 3), drawn(1, 2, 4), drawn(-1, 2, 3), drawn(12, 2, 3)]
    assert len(set(others)) == len(others)


GOLDEN_VIEWS = {
    (0, 0, 1): ((10, 15, 338, 391), False),
    (0, 0, 2): ((166, 70, 626, 468), True),
    (7, 1, 1): ((68, 35, 576, 478), False),
    (123456789, 2, 5): ((133, 15, 488, 371), True),
    (-1, 3, 1): ((47, 84, 239, 288), False),
}


@pytest.mark.parametrize(("key", "expected"), GOLDEN_VIEWS.items())
def test_golden_boxes(key: tuple[int, int, int], expected: tuple[tuple[int, int, int, int], bool]) -> None:
    view = drawn(*key)
    assert (view.box(640, 480), view.flip) == expected


GOLDEN_PIXELS = {0: "eb4b362e17d8da27", 1: "b80d748b9dc1657c", 2: "2323c832241b65ec", 3: "19b8e157be92d002"}


@pytest.mark.parametrize(("index", "expected"), GOLDEN_PIXELS.items())
def test_golden_pixels_of_the_pillow_decoder(index: int, expected: str) -> None:
    view = draw_view(7, digest(7), index)
    pixels = load_image(generated_png(), PREPROCESSING, decoder="pillow", view=view)
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == expected


@settings(max_examples=300, deadline=None)
@given(width=st.integers(1, 70_000), height=st.integers(1, 70_000), number=st.integers(0, 10_000))
def test_a_box_lies_inside_any_image(width: int, height: int, number: int) -> None:
    left, top, right, bottom = drawn(0, number).box(width, height)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


@pytest.mark.parametrize("size", [(640, 480), (300, 1000)])
def test_the_distribution_is_that_of_torchvision(size: tuple[int, int]) -> None:
    width, height = size
    n = 2000
    theirs = np.array(torchvision_boxes(width, height, n))
    views = [drawn(0, number) for number in range(n)]
    ours = np.array([view.box(width, height) for view in views])
    for mine, other in zip(features_of(ours, size), features_of(theirs, size), strict=True):
        for share in (0.02, 0.25, 0.5, 0.75, 0.98):
            # a median of n uniform draws scatters by 1.1 % of the range
            assert abs(np.quantile(mine, share) - np.quantile(other, share)) < 0.04 * np.ptp(other)
    assert abs(np.mean([view.flip for view in views]) - 0.5) < 0.035


def features_of(boxes: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    return (
        width * height / (size[0] * size[1]),
        np.log(width / height),
        boxes[:, 0] + width / 2,
        boxes[:, 1] + height / 2,
    )


def torchvision_boxes(width: int, height: int, count: int) -> list[tuple[int, int, int, int]]:
    from featcache.backbone.timm_import import import_timm

    import_timm()
    import torch
    from torchvision.transforms import RandomResizedCrop

    image = Image.new("RGB", (width, height))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        params = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    return [(left, top, left + w, top + h) for top, left, h, w in params]


def test_a_strip_falls_back_to_the_largest_centred_crop_of_an_allowed_aspect() -> None:
    view = drawn(0, 0)
    assert view.box(3000, 30) == (1480, 0, 1520, 30)
    assert view.box(30, 3000) == (0, 1480, 30, 1520)
    assert view.box(1, 1) == (0, 0, 1, 1)


@pytest.mark.parametrize("decoder", ["fast", "pillow"])
def test_a_view_is_its_box_resized_and_mirrored(decoder: str) -> None:
    data = generated_png()
    pixels = decode(data, decoder=decoder)  # type: ignore[arg-type]
    squash = dataclasses.replace(PREPROCESSING, crop_mode="squash")
    for index in range(1, 9):
        view = drawn(3, 3, index)
        left, top, right, bottom = view.box(131, 97)
        expected = resize_crop(np.ascontiguousarray(pixels[top:bottom, left:right]), squash, decoder=decoder)  # type: ignore[arg-type]
        expected = expected[:, ::-1] if view.flip else expected
        np.testing.assert_array_equal(load_image(data, PREPROCESSING, decoder=decoder, view=view), expected)  # type: ignore[arg-type]


def test_both_decoders_see_the_same_view() -> None:
    for index in range(1, 9):
        view = drawn(5, 5, index)
        fast, pillow = (
            load_image(generated_png(), PREPROCESSING, decoder=decoder, view=view).astype(int)  # type: ignore[arg-type]
            for decoder in ("fast", "pillow")
        )
        assert np.abs(fast - pillow).max() <= 2


def test_a_view_is_a_frozen_value() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        drawn(0, 0).flip = True  # type: ignore[misc]
