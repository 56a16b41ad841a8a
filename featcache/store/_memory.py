"""The store that is plainly right and keeps nothing on disk: what the others are tested against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from featcache.errors import InputError, LockedError
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
    keys: tuple[bytes, ...]
    rows: tuple[dict[str, Values], ...]


class MemoryStore(FeatureStore):
    """Rows in a tuple."""

    def __init__(self, columns: tuple[Column, ...]) -> None:
        self._columns = columns
        self.content = _Content((), ())
        self.writing = False

    @property
    def columns(self) -> tuple[Column, ...]:
        return self._columns

    def reader(self) -> StoreReader:
        return _MemoryReader(self._columns, self.content)

    def writer(self, *, wait_seconds: float = 0) -> StoreWriter:
        if self.writing:
            raise LockedError("a store must have one writer at a time, this process is writing to it")
        return _MemoryWriter(self)

    def verify(self, *, repair: bool = False) -> VerifyReport:
        return VerifyReport(len(self.content.keys), (), np.empty((0, KEY_BYTES), np.uint8))

    def nbytes(self) -> int:
        return sum(KEY_BYTES + sum(c.row_bytes for c in self._columns) for _ in self.content.keys)

    def close(self) -> None:
        """Nothing is held."""


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
        return np.frombuffer(b"".join(self._content.keys), dtype=np.uint8).reshape(-1, KEY_BYTES)

    def find(self, keys: Keys) -> Rows:
        return _find(list(self._content.keys), keys)

    def blocks(self, column: str) -> Iterator[tuple[int, Values]]:
        yield from ((first, self.read(column, first, first + 1)) for first in range(len(self)))

    def read(self, column: str, start: int, stop: int, *, out: Values | None = None) -> Values:
        if not 0 <= start <= stop <= len(self):
            raise InputError(f"start and stop must lie within {len(self)} rows, got {start!r} and {stop!r}")
        return self.gather(column, np.arange(start, stop), out=out)

    def gather(self, column: str, rows: Rows, *, out: Values | None = None) -> Values:
        found = [c for c in self._columns if c.name == column]
        if not found:
            raise InputError(f"column must be one of {[c.name for c in self._columns]!r}, got {column!r}")
        if any(not 0 <= row < len(self) for row in rows):
            raise InputError(f"rows must be from 0 to {len(self) - 1}")
        if out is None:
            out = np.empty((len(rows), *found[0].shape), dtype=found[0].dtype)
        for position, row in enumerate(rows):
            out[position] = self._content.rows[row][column]
        return out

    def close(self) -> None:
        """Nothing is held."""


class _MemoryWriter(StoreWriter):
    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._keys = list(store.content.keys)
        self._rows = list(store.content.rows)
        store.writing = True

    def append(self, keys: Keys, columns: Mapping[str, Values]) -> int:
        before = len(self._keys)
        for position, key in enumerate(map(bytes, keys)):
            if key not in self._keys:
                self._keys.append(key)
                self._rows.append({c.name: columns[c.name][position].astype(c.dtype) for c in self._store.columns})
        return len(self._keys) - before

    def drop(self, keys: Keys) -> int:
        dropped = {bytes(key) for key in keys} & set(self._keys)
        left = [(key, row) for key, row in zip(self._keys, self._rows, strict=True) if key not in dropped]
        self._keys, self._rows = [key for key, _ in left], [row for _, row in left]
        return len(dropped)

    def find(self, keys: Keys) -> Rows:
        return _find(self._keys, keys)

    def __len__(self) -> int:
        return len(self._keys)

    def commit(self) -> None:
        self._store.content = _Content(tuple(self._keys), tuple(self._rows))

    def close(self) -> None:
        self._store.writing = False


def _find(present: list[bytes], keys: Keys) -> Rows:
    return np.array([present.index(key) if key in present else -1 for key in map(bytes, keys)], dtype=np.int64)
