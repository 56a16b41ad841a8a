"""From image files to batches of pixels through a bundle's own preprocessing (Pillow); a bad image is set aside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featcache.errors import ImageError
from featcache.images.load import load_image
from featcache.recipe import Preprocessing
from featcache.system.threads import processor_count

BATCH_SIZE = 32


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """`pixels` (b, height, width, 3) uint8 RGB of the sources at `indices` (b,) int64; b ≥ 1."""

    indices: npt.NDArray[np.int64]
    pixels: npt.NDArray[np.uint8]


def stream(
    sources: Sequence[Callable[[], bytes]],
    preprocessing: Preprocessing,
    *,
    failures: dict[int, str],
    batch_size: int = BATCH_SIZE,
) -> Iterator[Batch]:
    """Yield batches of decoded `sources`, in order; index → reason of each that is no image goes into `failures`.

    The next batch is decoded, in threads, while the caller works on this one.
    """

    def decode(index: int) -> npt.NDArray[np.uint8] | str:
        try:
            return load_image(sources[index](), preprocessing, decoder="pillow")
        except ImageError as error:
            return str(error)

    starts = range(0, len(sources), batch_size)
    with ThreadPoolExecutor(processor_count()) as pool:

        def submit(start: int) -> list[tuple[int, Future[npt.NDArray[np.uint8] | str]]]:
            return [(i, pool.submit(decode, i)) for i in range(start, min(start + batch_size, len(sources)))]

        pending = submit(starts[0]) if starts else []
        for following in [*starts[1:], None]:
            current = pending
            pending = submit(following) if following is not None else []
            indices, pixels = [], []
            for index, future in current:
                decoded = future.result()
                if isinstance(decoded, str):
                    failures[index] = decoded
                else:
                    indices.append(index)
                    pixels.append(decoded)
            if indices:
                yield Batch(np.array(indices, dtype=np.int64), np.stack(pixels))
