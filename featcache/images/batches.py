"""From image files to batches of pixels: each is read, decoded and resized in one way; a bad one is set aside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from featcache.images.load import load_image
from featcache.images.read import ImageSource
from featcache.recipe import Decoder, Preprocessing
from featcache.system.sources.batches import BATCH_SIZE, prepared_batches


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """`pixels` (b, height, width, 3) uint8 RGB of the sources at `indices` (b,) int64."""

    indices: npt.NDArray[np.int64]
    pixels: npt.NDArray[np.uint8]


def decoded_batches(
    sources: Sequence[ImageSource],
    preprocessing: Preprocessing,
    *,
    failures: dict[int, str],
    decoder: Decoder = "pillow",
    batch_size: int = BATCH_SIZE,
) -> Iterator[Batch]:
    """Yield batches (b ≥ 1) of decoded `sources`, in order, as `prepared_batches`.

    A source that knows the digest of its image (`ImageFile`) fails where the file has other bytes by now.
    """
    prepare = partial(load_image, preprocessing=preprocessing, decoder=decoder)
    for batch in prepared_batches(sources, prepare, failures=failures, batch_size=batch_size):
        yield Batch(batch.indices, batch.values)


def first_decoded(
    sources: Sequence[ImageSource], preprocessing: Preprocessing, *, count: int, decoder: Decoder = "pillow"
) -> Batch:
    """Return the first `count` of `sources` that can be read and decoded, in order; fewer (perhaps none) where not."""
    indices = np.zeros(0, dtype=np.int64)
    pixels = np.zeros((0, preprocessing.height, preprocessing.width, 3), dtype=np.uint8)
    start = 0
    while len(indices) < count and start < len(sources):
        wanted = sources[start : start + count - len(indices)]
        batches = list(decoded_batches(wanted, preprocessing, failures={}, decoder=decoder))
        indices = np.concatenate([indices, *(batch.indices + start for batch in batches)])
        pixels = np.concatenate([pixels, *(batch.pixels for batch in batches)])
        start += len(wanted)
    return Batch(indices, pixels)
