"""`DiskReader`: a snapshot of a store on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from featcache.errors import CorruptError, InputError, StorageError
from featcache.store._backends import open_generation
from featcache.store._generation import Committed
from featcache.store._mapping import MappedArray, MappedGeneration
from featcache.store._record import CHECKSUMS, COLUMN_PREFIX, KEYS, row_checksums
from featcache.store.checks import check_column, check_rows, check_span, output_array
from featcache.store.interface import Column, Keys, Rows, StoreReader, Values
from featcache.store.settings import DEFAULT_SETTINGS

_BATCH_BYTES = 8 << 20


class DiskReader(StoreReader):
    """The first rows of one generation. Its views need nothing but memory: they stay right even after `close`."""

    def __init__(self, mapping: MappedGeneration, committed: Committed, rows: int) -> None:
        self._source: tuple[MappedGeneration, Committed] | None = (mapping, committed)
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
        keys = array.view()
        if keys is None:  # blocks are not whole pages
            keys = array.gather(np.arange(array.rows), None)
            keys.flags.writeable = False
        return keys

    def find(self, keys: Keys) -> Rows:
        return self._open()[0].find(keys, self._array(KEYS))

    def blocks(self, column: str) -> Iterator[tuple[int, Values]]:
        return self._column(column).blocks()

    def read(self, column: str, start: int, stop: int, *, out: Values | None = None) -> Values:
        check_span(start, stop, len(self))
        array = self._column(column)
        out = output_array(check_column(self._columns, column), stop - start, out)
        size = array.layout.block_rows
        for block in range(start // size, array.layout.blocks(stop)):
            low, high = max(start, block * size), min(stop, (block + 1) * size)
            out[low - start : high - start] = array.block(block)[low - block * size : high - block * size]
        return out

    def gather(self, column: str, rows: Rows, *, out: Values | None = None) -> Values:
        rows = check_rows(rows, len(self))
        array = self._column(column)
        out = output_array(check_column(self._columns, column), len(rows), out)
        sparse = array.unchecked(rows)
        array.copy(rows, out)
        if sparse.any():
            self._check_rows(column, rows[sparse])
        return out

    def close(self) -> None:
        self._arrays.clear()
        self._source = None

    def __reduce__(self) -> tuple[Callable[[str, int], DiskReader], tuple[str, int]]:
        return _reopen, (str(self._open()[0].generation.path), self._rows)

    def _open(self) -> tuple[MappedGeneration, Committed]:
        if self._source is None:
            raise InputError("a reader must be open, this one was closed: use it inside its with block")
        return self._source

    def _array(self, name: str) -> MappedArray:
        if name not in self._arrays:
            mapping, committed = self._open()
            self._arrays[name] = mapping.array(name, committed, self._rows)
        return self._arrays[name]

    def _column(self, column: str) -> MappedArray:
        return self._array(COLUMN_PREFIX + check_column(self._columns, column).name)

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


def _reopen(path: str, rows: int) -> DiskReader:
    """Return the reader of the same rows in another process; `StorageError` where they were replaced meanwhile."""
    try:
        mapping = MappedGeneration(open_generation(Path(path), DEFAULT_SETTINGS))
    except FileNotFoundError as error:
        raise StorageError(
            f"the rows a reader was made for must still be there, {path!r} was replaced: make a new reader"
        ) from error
    committed = mapping.committed()
    if committed.record.rows < rows:
        raise CorruptError(f"{path!r} must hold the {rows} rows a reader was made for, it has {committed.record.rows}")
    return DiskReader(mapping, committed, rows)
