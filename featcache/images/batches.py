"""From image files to batches of pixels: every image is read, decoded and resized in one way; a bad one is set aside.

Whoever needs pixels of many images takes them from here. `featcache.extract` alone does not: it carries images through
threads of its own, so that no processor waits between a decode and the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featcache.errors import ImageError
from featcache.images.load import load_image
from featcache.images.read import ImageFile, ImageSource
from featcache.recipe import Decoder, Preprocessing
from featcache.system.read_ahead import ReadAhead
from featcache.system.threads import processor_count

BATCH_SIZE = 32


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
    """Yield batches (b ≥ 1) of decoded `sources`, in order; index → reason of each that is no image goes to `failures`.

    A source that knows the digest of its image (`ImageFile`) fails where the
    file has other bytes by now. The next batch is decoded, in threads, while the caller works on this one; what lies in
    a storage is read further ahead.
    """

    def load(index: int) -> npt.NDArray[np.uint8] | str:
        try:
            return load_image(read(index), preprocessing, decoder=decoder)
        except ImageError as error:
            return str(error)

    starts = range(0, len(sources), batch_size)
    with _reader(sources) as read, ThreadPoolExecutor(processor_count()) as pool:

        def submit(start: int) -> list[tuple[int, Future[npt.NDArray[np.uint8] | str]]]:
            return [(i, pool.submit(load, i)) for i in range(start, min(start + batch_size, len(sources)))]

        pending = submit(starts[0]) if starts else []
        for following in [*starts[1:], None]:
            current = pending
            pending = submit(following) if following is not None else []
            indices, pixels = [], []
            for index, future in current:
                loaded = future.result()
                if isinstance(loaded, str):
                    failures[index] = loaded
                else:
                    indices.append(index)
                    pixels.append(loaded)
            if indices:
                yield Batch(np.array(indices, dtype=np.int64), np.stack(pixels))


@contextmanager
def _reader(sources: Sequence[ImageSource]) -> Iterator[Callable[[int], bytes]]:
    """Give a function from the index of a source to its bytes."""
    if not any(isinstance(source, ImageFile) and source.is_remote for source in sources[:1]):
        yield lambda index: sources[index]()
        return
    with ReadAhead(lambda index: sources[index](), len(sources), size=len) as ahead:
        yield ahead.take


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
