"""Copying scattered rows out of a mapped array, at the speed of memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featcache.store import Rows

if TYPE_CHECKING:
    from featcache.store._mapping import MappedArray


def gather_rows(array: MappedArray, rows: Rows, out: npt.NDArray[Any]) -> None:
    """Copy `rows` (m,) of `array`, whose blocks are prepared, to `out` (m, *shape)."""
    whole = array.view()
    if whole is not None and out.dtype == whole.dtype and out.flags.c_contiguous:
        # Bounds are the caller's business; "clip" spares numpy a buffered copy.
        np.take(whole, rows, axis=0, out=out, mode="clip")
        return
    order = np.argsort(rows, kind="stable")
    size = array.layout.block_rows
    bounds = np.flatnonzero(np.diff(rows[order] // size)) + 1
    for part in np.split(order, bounds):
        if len(part):
            block = int(rows[part[0]] // size)
            out[part] = array.block(block)[rows[part] - block * size]
