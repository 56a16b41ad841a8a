"""The store that is plainly right and keeps nothing on disk: what the others are tested against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from featcache.errors import LockedError
from featcache.store.checks import (
    cast_values,
    check_column,
    check_keys,
    check_rows,
    check_values,
    first_occurrences,
    output_array,
)  # fmt: skip
from featcache.store.interface import (
    KEY_BYTES,
    Column,
    FeatureStore,
    Keys,
    Rows,
    StoreReader,
    StoreWriter,
    Values,
    VerifyReport,
)


@dataclass(frozen=True, slots=True)
class _Content:
    """The rows at one instant: `keys` (n, 32), the `values` of each column, and each key's row."""

    keys: Keys
    values: dict[str, Values]
    row_of: dict[bytes, int]

    def find(self, keys: Keys) -> Rows:
        return np.array([self.row_of.get(key.tobytes(), -1) for key in check_keys(keys)], dtype=np.int64)


def _content(keys: Keys, values: dict[str, Values]) -> _Content:
    for array in (keys, *values.values()):
        array.flags.writeable = False
    return _Content(keys, values, {key.tobytes(): row for row, key in enumerate(keys)})


class MemoryStore(FeatureStore):
    """Rows in arrays of this process."""

    def __init__(self, columns: tuple[Column, ...]) -> None:
        self._columns = columns
        empty = {column.name: np.empty((0, *column.shape), column.dtype) for column in columns}
        self.content = _content(np.empty((0, KEY_BYTES), np.uint8), empty)
        self.has_writer = False

    @property
    def columns(self) -> tuple[Column, ...]:
        return self._columns

    def reader(self) -> StoreReader:
        return _MemoryReader(self._columns, self.content)

    def writer(self, *, wait_seconds: float = 0) -> StoreWriter:
        """Return the writer; raises `LockedError` at once where there is one: it could only be of this thread."""
        if self.has_writer:
            raise LockedError("a store must have one writer at a time, this process is writing to it")
        return _MemoryWriter(self)

    def verify(self, *, repair: bool = False) -> VerifyReport:
        return VerifyReport(len(self.content.keys), (), np.empty((0, KEY_BYTES), np.uint8))

    def nbytes(self) -> int:
        return self.content.keys.nbytes + sum(values.nbytes for values in self.content.values.values())


class _MemoryReader(StoreReader):
    def __init__(self, columns: tuple[Column, ...], content: _Content) -> None:
        self._columns = columns
        self._content = content

    def __len__(self) -> int:
        return len(self._content.keys)

    @property
    def columns(self) -> tuple[Column, ...]:
        return self._columns

    def keys(self) -> Keys:
        return self._content.keys

    def find(self, keys: Keys) -> Rows:
        return self._content.find(keys)

    def gather(self, column: str, rows: Rows, *, out: Values | None = None) -> Values:
        rows = check_rows(rows, len(self))
        out = output_array(check_column(self._columns, column), len(rows), out)
        out[...] = self._content.values[column][rows]
        return out


class _MemoryWriter(StoreWriter):
    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._content = store.content
        self._open = True
        store.has_writer = True

    def append(self, keys: Keys, columns: Mapping[str, Values]) -> int:
        self._check_open()
        values = check_values(self._store.columns, columns, len(check_keys(keys)))
        fresh = (self.find(keys) < 0) & first_occurrences(keys)
        old = self._content
        added = {c.name: cast_values(c, values[c.name][fresh]) for c in self._store.columns}
        joined = {name: np.concatenate([old.values[name], array]) for name, array in added.items()}
        self._content = _content(np.concatenate([old.keys, keys[fresh]]), joined)
        return int(fresh.sum())

    def drop(self, keys: Keys) -> int:
        self._check_open()
        rows = self.find(keys)
        keep = np.ones(len(self), dtype=bool)
        keep[rows[rows >= 0]] = False
        old = self._content
        self._content = _content(old.keys[keep], {name: values[keep] for name, values in old.values.items()})
        return int((~keep).sum())

    def find(self, keys: Keys) -> Rows:
        return self._content.find(keys)

    def __len__(self) -> int:
        return len(self._content.keys)

    def commit(self) -> None:
        self._check_open()
        self._store.content = self._content

    def close(self) -> None:
        if self._open:
            self._open = self._store.has_writer = False

    def _check_open(self) -> None:
        if not self._open:
            raise LockedError("a writer must be open, this one was closed: make another")
