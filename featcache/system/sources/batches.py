"""From the bytes of inputs to batches of arrays: each is read and prepared in one way; a bad one is set aside.

Whoever needs many prepared inputs takes them from here. `featcache.extract` alone does not: it carries inputs through
threads of its own, so that no processor waits between a decode and the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.errors import SampleError
from featcache.system.read_ahead import ReadAhead
from featcache.system.threads import processor_count

BATCH_SIZE = 32
Source = Callable[[], bytes]  # reads one input; raises `SampleError` where it cannot be had


@dataclass(frozen=True, slots=True, eq=False)
class PreparedBatch:
    """`values` (b, …) of the sources at `indices` (b,) int64."""

    indices: npt.NDArray[np.int64]
    values: npt.NDArray[Any]


def prepared_batches(
    sources: Sequence[Source],
    prepare: Callable[[bytes], npt.NDArray[Any]],
    stack: Callable[[Sequence[npt.NDArray[Any]]], npt.NDArray[Any]] = np.stack,
    *,
    failures: dict[int, str],
    batch_size: int = BATCH_SIZE,
) -> Iterator[PreparedBatch]:
    """Yield batches (b ≥ 1) of prepared `sources`, in order; index → reason of each that is none goes to `failures`.

    The next batch is prepared, in threads, while the caller works on this one; what lies in a storage, as a source says
    by `is_remote`, is read further ahead.
    """

    def load(index: int) -> npt.NDArray[Any] | str:
        try:
            return prepare(read(index))
        except SampleError as error:
            return str(error)

    starts = range(0, len(sources), batch_size)
    with _reader(sources) as read, ThreadPoolExecutor(processor_count()) as pool:

        def submit(start: int) -> list[tuple[int, Future[npt.NDArray[Any] | str]]]:
            return [(i, pool.submit(load, i)) for i in range(start, min(start + batch_size, len(sources)))]

        pending = submit(starts[0]) if starts else []
        for following in [*starts[1:], None]:
            current = pending
            pending = submit(following) if following is not None else []
            indices, values = [], []
            for index, future in current:
                loaded = future.result()
                if isinstance(loaded, str):
                    failures[index] = loaded
                else:
                    indices.append(index)
                    values.append(loaded)
            if indices:
                yield PreparedBatch(np.array(indices, dtype=np.int64), stack(values))


@contextmanager
def _reader(sources: Sequence[Source]) -> Iterator[Callable[[int], bytes]]:
    """Give a function from the index of a source to its bytes."""
    if not any(getattr(source, "is_remote", False) for source in sources[:1]):
        yield lambda index: sources[index]()
        return
    with ReadAhead(lambda index: sources[index](), len(sources), size=len) as ahead:
        yield ahead.take


def first_prepared(
    sources: Sequence[Source], prepare: Callable[[bytes], npt.NDArray[Any]], *, most: int, values: int
) -> list[npt.NDArray[Any]]:
    """Return the first of `sources` that can be prepared: up to `most` arrays, of at most `values` numbers together.

    One at least, whatever its size; none where none can be.
    """
    found: list[npt.NDArray[Any]] = []
    left = values
    for batch in prepared_batches(sources, prepare, _side_by_side, failures={}):
        for array in batch.values:
            if found and (len(found) == most or array.size > left):
                return found
            found.append(array)
            left -= array.size
    return found


def _side_by_side(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Return `arrays`, of any shapes, as the elements of one."""
    elements = np.empty(len(arrays), dtype=object)
    for place, array in enumerate(arrays):
        elements[place] = array
    return elements


def stacked_by_shape(arrays: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """Return `arrays` as batches, one of each shape, the smallest first.

    >>> [batch.shape for batch in stacked_by_shape([np.zeros(3), np.zeros(2), np.zeros(3)])]
    [(1, 2), (2, 3)]
    """
    shapes = sorted({array.shape for array in arrays})
    return [np.stack([array for array in arrays if array.shape == shape]) for shape in shapes]
