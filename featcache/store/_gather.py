"""Copying scattered rows out of a mapped array, at the speed of memory."""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featcache.store import Rows

if TYPE_CHECKING:
    from featcache.store._mapping import MappedArray

_WORTH_THREADS_BYTES = 8 << 20
_MOST_THREADS = 4


def gather_rows(array: MappedArray, rows: Rows, out: npt.NDArray[Any]) -> None:
    """Copy `rows` (m,) of `array`, whose blocks are mapped, to `out` (m, *shape)."""
    whole = array.view()
    if whole is None or out.dtype != whole.dtype or not out.flags.c_contiguous:
        _gather_by_block(array, rows, out)
        return
    threads = min(_MOST_THREADS, len(os.sched_getaffinity(0))) if out.nbytes >= _WORTH_THREADS_BYTES else 1
    if threads == 1:
        _take(whole, rows, out)
        return
    bounds = np.linspace(0, len(rows), threads + 1).astype(int).tolist()
    parts = list(itertools.pairwise(bounds))
    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(_take, whole, rows[low:high], out[low:high]) for low, high in parts[1:]]
        _take(whole, rows[: parts[0][1]], out[: parts[0][1]])
        for other in others:
            other.result()


def _take(whole: npt.NDArray[Any], rows: Rows, out: npt.NDArray[Any]) -> None:
    # The rows were checked to lie within the array; "clip" spares numpy a buffered copy.
    np.take(whole, rows, axis=0, out=out, mode="clip")


def _gather_by_block(array: MappedArray, rows: Rows, out: npt.NDArray[Any]) -> None:
    """Copy block by block: for blocks that are not whole pages, and for other dtypes or layouts of `out`."""
    order = np.argsort(rows, kind="stable")
    size = array.layout.block_rows
    bounds = np.flatnonzero(np.diff(rows[order] // size)) + 1
    for part in np.split(order, bounds):
        if len(part):
            block = int(rows[part[0]] // size)
            out[part] = array.block(block, check=False)[rows[part] - block * size]
