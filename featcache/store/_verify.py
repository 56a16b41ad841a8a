"""Checking every stored byte, telling damaged rows from intact ones, and writing a store of the intact ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from featcache.errors import CorruptError
from featcache.store._compact import replace_rows
from featcache.store._directory import StoreDirectory
from featcache.store._generation import Generation, remove_outdated
from featcache.store._record import CHECKSUMS, COLUMN_PREFIX, KEYS, Layout, Record, row_checksums
from featcache.store._spare import layout_problems, write_layout
from featcache.store.interface import KEY_BYTES, Keys, Rows, VerifyReport
from featcache.system.objects import ObjectPath

_BATCH_BYTES = 32 << 20
_SHOW_BAR_BYTES = 1 << 30


class BlockSource(Protocol):
    """Where blocks lie, and what is read of each."""

    @property
    def path(self) -> Path | ObjectPath:
        """The place, for messages."""

    def read_block(self, layout: Layout, block: int, rows: int) -> tuple[bytes, bool]:
        """Return a block's bytes and whether they are intact; raises `CorruptError` where there is none."""


class _RawArray:
    """Reads an array's rows as they are stored, intact or not; a missing block reads as None."""

    def __init__(self, source: BlockSource, layout: Layout, rows: int) -> None:
        self.layout = layout
        self.rows = rows
        self.bad: list[int] = []
        self.problems: list[str] = []
        self._source = source
        self._last: tuple[int, npt.NDArray[Any] | None] = (-1, None)

    def check(self) -> None:
        """Read every block; note the bad ones and what is wrong with them."""
        from tqdm import tqdm

        blocks = self.layout.blocks(self.rows)
        quiet = None if self.rows * self.layout.row_bytes > _SHOW_BAR_BYTES else True
        for block in tqdm(range(blocks), desc=f"verify {self.layout.name}", unit="block", disable=quiet, leave=False):
            self._read(block, note=True)

    def rows_of(self, block: int) -> range:
        """Return the rows in a block."""
        first = block * self.layout.block_rows
        return range(first, first + self.layout.rows_in(block, self.rows))

    def read(self, rows: range) -> npt.NDArray[Any] | None:
        """Return (len(rows), *shape), or None where a block of them is missing."""
        parts = []
        size = self.layout.block_rows
        for block in range(rows.start // size, self.layout.blocks(rows.stop)):
            data = self._read(block, note=False)
            if data is None:
                return None
            low, high = max(rows.start, block * size), min(rows.stop, (block + 1) * size)
            parts.append(data[low - block * size : high - block * size])
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def _read(self, block: int, *, note: bool) -> npt.NDArray[Any] | None:
        if self._last[0] != block or note:
            rows = self.layout.rows_in(block, self.rows)
            try:
                data, intact = self._source.read_block(self.layout, block, rows)
                values = np.frombuffer(data, dtype=np.dtype(self.layout.dtype).newbyteorder("<"))
                self._last = block, values.reshape(-1, *self.layout.shape)[:rows]
                problem = "" if intact else "does not match its checksum"
            except CorruptError as error:
                self._last = block, None
                problem = str(error)
            if note and problem:
                self.bad.append(block)
                where = self.rows_of(block)
                self.problems.append(
                    f"block {block} of {self.layout.name!r} (rows {where.start} to {where.stop - 1}) in "
                    f"{str(self._source.path)!r} is damaged: {problem}"
                )
        return self._last[1]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is wrong with what one record describes: `damaged` (n,) bool marks the rows that cannot be restored."""

    record: Record
    raw: dict[str, _RawArray]
    problems: list[str]
    damaged: npt.NDArray[np.bool_]

    def report(self) -> VerifyReport:
        """Return it for the user."""
        rows = np.flatnonzero(self.damaged)
        return VerifyReport(self.record.rows - len(rows), tuple(self.problems), self._keys(rows))

    def _keys(self, rows: Rows) -> Keys:
        keys = [self.raw[KEYS].read(range(int(row), int(row) + 1)) for row in rows]
        return np.concatenate([key for key in keys if key is not None] or [np.empty((0, KEY_BYTES), dtype=np.uint8)])


def diagnose(generation: Generation) -> Diagnosis:
    """Return what is wrong with `generation`, which is opened for this alone.

    Raises `CorruptError` where not even its commit record can be found.
    """
    record = generation.record()
    problems = [*generation.check_structure(record), *layout_problems(generation.path.parent, record)]
    return diagnose_arrays(generation, record, problems)


def diagnose_arrays(source: BlockSource, record: Record, problems: list[str]) -> Diagnosis:
    """Return what is wrong with the blocks of `record` in `source`, which is read from one end to the other."""
    raw = {layout.name: _RawArray(source, layout, record.rows) for layout in record.arrays}
    problems = list(problems)
    for array in raw.values():
        array.check()
        problems += array.problems
    damaged = np.zeros(record.rows, dtype=bool)
    for name, array in raw.items():
        if name != CHECKSUMS:
            for block in array.bad:
                _mark_damaged(damaged, array.rows_of(block), name, raw)
    return Diagnosis(record, raw, problems, damaged)


def _mark_damaged(damaged: npt.NDArray[np.bool_], rows: range, name: str, raw: dict[str, _RawArray]) -> None:
    """Mark the rows of a bad block that do not match their own checksums (which cover key and values)."""
    columns = [array for column, array in raw.items() if column.startswith(COLUMN_PREFIX)]
    position = 0 if name == KEYS else [array.layout.name for array in columns].index(name)
    step = max(1, _BATCH_BYTES // columns[position].layout.row_bytes)
    for start in range(rows.start, rows.stop, step):
        part = range(start, min(start + step, rows.stop))
        keys, values, sums = raw[KEYS].read(part), columns[position].read(part), raw[CHECKSUMS].read(part)
        if keys is None or values is None or sums is None:
            damaged[part.start : part.stop] = True
        else:
            damaged[part.start : part.stop] |= row_checksums(keys, [values])[:, 0] != sums[:, position]


def repair_store(directory: StoreDirectory) -> VerifyReport:
    """Make a new generation of the intact rows, if anything is wrong; the caller holds the writer's lock."""
    mapping = directory.newest()
    diagnosis = diagnose(directory.open_again())
    report = diagnosis.report()
    if diagnosis.problems:
        replace_rows(directory.path, mapping, diagnosis.record, intact_batches(diagnosis))
        write_layout(directory.path, diagnosis.record)
        directory.newest()  # the new one, so that the old one can go
        del mapping, diagnosis
        remove_outdated(directory.path)
    return report


def intact_batches(diagnosis: Diagnosis) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Yield the intact rows in batches, their checksums computed afresh."""
    row_bytes = sum(array.layout.row_bytes for array in diagnosis.raw.values())
    step = max(1, _BATCH_BYTES // row_bytes)
    for start in range(0, diagnosis.record.rows, step):
        part = range(start, min(start + step, diagnosis.record.rows))
        keep = ~diagnosis.damaged[part.start : part.stop]
        if not keep.any():
            continue
        batch = {}
        for name, array in diagnosis.raw.items():
            if name != CHECKSUMS:
                batch[name] = _kept(array, part, keep)
        batch[CHECKSUMS] = row_checksums(batch[KEYS], [v for name, v in batch.items() if name != KEYS])
        yield batch


def _kept(array: _RawArray, rows: range, keep: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Return the rows of a range to keep; a missing block holds none of them."""
    values = array.read(rows)
    if values is not None:
        return values[keep]
    single = [array.read(range(row, row + 1)) for row in rows[0] + np.flatnonzero(keep)]
    return np.concatenate([value for value in single if value is not None])
