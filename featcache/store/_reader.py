"""`DiskReader`: a snapshot of a store on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from featcache.errors import CorruptError, InputError, StorageError
from featcache.store._backends import open_generation
from featcache.store._generation import Committed
from featcache.store._mapping import MappedArray, Mapping
from featcache.store._record import CHECKSUMS, COLUMN_PREFIX, KEYS, row_checksums
from featcache.store.interface import Column, Keys, Rows, StoreReader, Values

_BATCH_BYTES = 8 << 20


class DiskReader(StoreReader):
    """The first rows of one generation. Its views need nothing but memory: they stay right even after `close`."""

    def __init__(self, mapping: Mapping, committed: Committed, rows: int) -> None:
        self._source: tuple[Mapping, Committed] | None = (mapping, committed)
        self._rows = rows
        self._columns = committed.record.columns
        self._arrays: dict[str, MappedArray] = {}

    def __len__(self) -> int:
        return self._rows

    @property
    def columns(self) -> tuple[Column, ...]:
        return self._columns

    def keys(self) -> Keys:
        array = self._array(KEYS)
        for block in range(array.layout.blocks(array.rows)):
            array.prepare(block)
        view = array.view()
        return view if view is not None else array.gather(np.arange(array.rows), None)

    def find(self, keys: Keys) -> Rows:
        return self._open()[0].find(keys, self._array(KEYS))

    def blocks(self, column: str) -> Iterator[tuple[int, Values]]:
        return self._column(column).blocks()

    def read(self, column: str, start: int, stop: int, *, out: Values | None = None) -> Values:
        if not 0 <= start <= stop <= len(self):
            raise InputError(f"start and stop must lie within {len(self)} rows, got {start!r} and {stop!r}")
        array = self._column(column)
        out = self._output(array, stop - start, out)
        size = array.layout.block_rows
        for block in range(start // size, array.layout.blocks(stop)):
            low, high = max(start, block * size), min(stop, (block + 1) * size)
            out[low - start : high - start] = array.block(block)[low - block * size : high - block * size]
        return out

    def gather(self, column: str, rows: Rows, *, out: Values | None = None) -> Values:
        rows = np.asarray(rows)
        if rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise InputError(f"rows must be (m,) whole numbers, got {rows.shape!r} {rows.dtype!s}")
        rows = rows.astype(np.int64, copy=False)
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise InputError(f"rows must be from 0 to {len(self) - 1}, got {int(rows.min())} to {int(rows.max())}")
        array = self._column(column)
        out = self._output(array, len(rows), out)
        alone = array.unchecked(rows)
        array.copy(rows, out)
        if alone.any():
            self._check_rows(column, rows[alone])
        return out

    def close(self) -> None:
        self._arrays.clear()
        self._source = None

    def __reduce__(self) -> tuple[Callable[[str, int], DiskReader], tuple[str, int]]:
        return _reopen, (str(self._open()[0].generation.path), self._rows)

    def _open(self) -> tuple[Mapping, Committed]:
        if self._source is None:
            raise InputError("a reader must be open, this one was closed: use it inside its with block")
        return self._source

    def _array(self, name: str) -> MappedArray:
        if name not in self._arrays:
            mapping, committed = self._open()
            self._arrays[name] = mapping.array(name, committed, self._rows)
        return self._arrays[name]

    def _column(self, column: str) -> MappedArray:
        if column not in {known.name for known in self.columns}:
            raise InputError(f"column must be one of {[known.name for known in self.columns]!r}, got {column!r}")
        return self._array(COLUMN_PREFIX + column)

    def _check_rows(self, column: str, rows: Rows) -> None:
        """Check rows one by one: of a huge store, a few rows are read without reading the blocks around them."""
        position = [known.name for known in self._columns].index(column)
        arrays = [self._array(KEYS), self._column(column), self._array(CHECKSUMS)]
        step = max(1, _BATCH_BYTES // arrays[1].layout.row_bytes)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            for array in (arrays[0], arrays[2]):
                array.unchecked(part)
            keys, values, sums = (array.copy(part, None) for array in arrays)
            wrong = row_checksums(keys, [values])[:, 0] != sums[:, position]
            if wrong.any():
                for array in arrays:
                    array.check_blocks(part[wrong])
                raise CorruptError(
                    f"row {int(part[wrong][0])} of {column!r} in {str(self._open()[0].generation.path)!r} must match "
                    "its checksum, it does not: featcache verify --repair drops it"
                )

    def _output(self, array: MappedArray, rows: int, out: Values | None) -> Values:
        shape = (rows, *array.layout.shape)
        if out is None:
            return np.empty(shape, dtype=array.layout.dtype)
        if out.shape != shape:
            raise InputError(f"out must have the shape {shape!r}, got {out.shape!r}")
        return out


def _reopen(path: str, rows: int) -> DiskReader:
    """Return the reader of the same rows in another process; `StorageError` where they were replaced meanwhile."""
    try:
        mapping = Mapping(open_generation(Path(path)))
    except FileNotFoundError as error:
        raise StorageError(
            f"the rows a reader was made for must still be there, {path!r} was replaced: make a new reader"
        ) from error
    committed = mapping.committed()
    if committed.record.rows < rows:
        raise CorruptError(f"{path!r} must hold the {rows} rows a reader was made for, it has {committed.record.rows}")
    return DiskReader(mapping, committed, rows)
