"""Batches of decoded images: the pixels of the one decoder, in order, with failures set aside."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from conftest import write_photo

from featcache.images.batches import decoded_batches, first_decoded
from featcache.images.load import load_image
from featcache.images.read import ImageFile, ImageSource
from featcache.recipe import Decoder, Preprocessing

SMALL = Preprocessing(16, 16, 20, "bicubic", "center", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture
def sources(tmp_path: Path) -> list[ImageSource]:
    """Ten photos with their digests; the third was changed since, the seventh is gone and the ninth is no image."""
    paths, digests = [tmp_path / f"{seed}.jpg" for seed in range(10)], []
    for seed, path in enumerate(paths):
        write_photo(path, seed=seed)
        if seed == 9:
            path.write_text("text")
        digests.append(hashlib.sha256(path.read_bytes()).digest())
    write_photo(paths[3], seed=99)
    paths[7].unlink()
    return [ImageFile(path, digest) for path, digest in zip(paths, digests, strict=True)]


@pytest.mark.parametrize("decoder", ["pillow", "fast"])
def test_decoded_batches_are_the_pixels_of_load_image(sources: list[ImageSource], decoder: Decoder) -> None:
    """Every image that is what it was comes once, in order; the others are named with their reason."""
    failures: dict[int, str] = {}
    batches = list(decoded_batches(sources, SMALL, failures=failures, decoder=decoder, batch_size=4))
    assert [batch.indices.tolist() for batch in batches] == [[0, 1, 2], [4, 5, 6], [8]]
    for batch in batches:
        for index, pixels in zip(batch.indices.tolist(), batch.pixels, strict=True):
            np.testing.assert_array_equal(pixels, load_image(sources[index](), SMALL, decoder=decoder))
    assert sorted(failures) == [3, 7, 9]
    assert "has changed" in failures[3] and "No such file" in failures[7] and "not an image" in failures[9]


@pytest.mark.parametrize(("count", "indices"), [(3, [0, 1, 2]), (5, [0, 1, 2, 4, 5]), (50, [0, 1, 2, 4, 5, 6, 8])])
def test_first_decoded_passes_over_what_cannot_be_read(
    sources: list[ImageSource], count: int, indices: list[int]
) -> None:
    """As many as were asked for, the first ones, where there are so many."""
    batch = first_decoded(sources, SMALL, count=count)
    assert batch.indices.tolist() == indices
    assert batch.pixels.shape == (len(indices), 16, 16, 3)


def test_first_decoded_of_nothing_is_empty() -> None:
    """No sources, no pixels, and still the shape of a batch."""
    assert first_decoded([], SMALL, count=4).pixels.shape == (0, 16, 16, 3)
