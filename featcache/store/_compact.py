"""Writing the next generation of a store from some rows of the present one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt

from featcache.store._backends import BACKENDS, open_generation
from featcache.store._blocks import BlockCutter
from featcache.store._generation import Committed, new_generation
from featcache.store._mapping import MappedGeneration
from featcache.store._record import Record
from featcache.store.interface import Rows

_BATCH_BYTES = 4 << 20  # a batch is in memory several times over: gathered, cut, and as the store writes it

Batch = dict[str, npt.NDArray[Any]]


def write_next_generation(path: Path, mapping: MappedGeneration, everything: Committed, keep: Rows) -> None:
    """Make rows `keep` (rising) of `everything` the store at `path`; the old generation goes when nobody reads it."""
    record = everything.record
    # Rows never committed may be among them: mapped once more, so that no reader meets them if this fails.
    unpublished = MappedGeneration(open_generation(mapping.generation.path, mapping.generation.settings))
    arrays = {layout.name: unpublished.array(layout.name, everything, record.rows) for layout in record.arrays}
    row_bytes = sum(layout.row_bytes for layout in record.arrays)
    step = max(1, _BATCH_BYTES // row_bytes)

    def batches() -> Iterator[Batch]:
        done = 0
        for first in range(0, len(keep), step):
            rows = keep[first : first + step]
            yield {name: array.gather(rows, None) for name, array in arrays.items()}
            for array in arrays.values():
                array.let_go(done, int(rows[-1]))
            done = int(rows[-1])

    replace_rows(path, mapping, record, batches())


def replace_rows(path: Path, mapping: MappedGeneration, record: Record, batches: Iterable[Batch]) -> None:
    """Make the rows of `batches` the store at `path`, in the arrays of `record`."""
    present, empty = mapping.generation, record.with_rows(0)
    with new_generation(path, present.number + 1, present.kind) as place:
        BACKENDS[present.kind].create(place, empty, present.settings)
        generation = open_generation(place, present.settings)
        try:
            cutter = BlockCutter(Committed(empty, {}))
            for batch in batches:
                cutter.add([batch])
                generation.write(cutter.cut(finish=False), None)
            generation.write(cutter.rest(), empty.with_rows(cutter.rows))
        finally:
            generation.close()
