"""A store of one's own, in under sixty lines, and the contract that says it is one: the example to start from."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featcache.errors import LockedError
from featcache.store import Column, FeatureStore, Keys, Rows, StoreReader, StoreWriter, Values, VerifyReport
from featcache.store.checks import cast_values, check_column, check_keys, check_rows, check_values, output_array
from featcache.testing.store import StoreContract


@dataclass
class DictStore(FeatureStore):
    """A dictionary of {key: {column: value}}, in the order of appending."""

    columns: tuple[Column, ...] = ()
    rows: dict[bytes, dict[str, Values]] = field(default_factory=dict)
    has_writer: bool = False

    def reader(self) -> StoreReader:
        return DictReader(self.columns, dict(self.rows))

    def writer(self, *, wait_seconds: float = 0) -> StoreWriter:
        if self.has_writer:
            raise LockedError("a store must have one writer at a time, there is one: close it")
        self.has_writer = True
        return DictWriter(self, dict(self.rows))

    def verify(self, *, repair: bool = False) -> VerifyReport:
        return VerifyReport(len(self.rows), (), np.empty((0, 32), np.uint8))

    def nbytes(self) -> int:
        return len(self.rows) * sum(column.row_bytes for column in self.columns)


@dataclass
class DictReader(StoreReader):
    columns: tuple[Column, ...] = ()
    rows: dict[bytes, dict[str, Values]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def keys(self) -> Keys:
        return np.frombuffer(b"".join(self.rows), np.uint8).reshape(-1, 32)

    def find(self, keys: Keys) -> Rows:
        numbers = {key: row for row, key in enumerate(self.rows)}
        return np.array([numbers.get(bytes(key), -1) for key in check_keys(keys)], np.int64)

    def gather(self, column: str, rows: Rows, *, out: Values | None = None) -> Values:
        rows, values = check_rows(rows, len(self)), list(self.rows.values())
        out = output_array(check_column(self.columns, column), len(rows), out)
        for position, row in enumerate(rows):
            out[position] = values[row][column]
        return out


@dataclass
class DictWriter(StoreWriter):
    store: DictStore
    rows: dict[bytes, dict[str, Values]]

    def append(self, keys: Keys, columns: Mapping[str, Values]) -> int:
        if not self.store.has_writer:
            raise LockedError("a writer must be open, this one was closed: make another")
        values, before = check_values(self.store.columns, columns, len(check_keys(keys))), len(self.rows)
        stored = {column.name: cast_values(column, np.array(values[column.name])) for column in self.store.columns}
        for position, key in enumerate(keys):
            self.rows.setdefault(bytes(key), {name: array[position] for name, array in stored.items()})
        return len(self.rows) - before

    def drop(self, keys: Keys) -> int:
        return sum(self.rows.pop(bytes(key), None) is not None for key in keys)

    def find(self, keys: Keys) -> Rows:
        return DictReader(self.store.columns, self.rows).find(keys)

    def __len__(self) -> int:
        return len(self.rows)

    def commit(self) -> None:
        self.store.rows = dict(self.rows)

    def close(self) -> None:
        self.store.has_writer = False


class TestDictStore(StoreContract):
    """It keeps every law."""

    def create(self, place: Path, columns: tuple[Column, ...]) -> FeatureStore:
        return DictStore(columns)


def test_own_store_is_under_sixty_lines_and_stands_on_the_interface_alone() -> None:
    """Blank lines apart; and what passes the contract above is this file's code, not the package's."""
    classes = (DictStore, DictReader, DictWriter)
    lines = [line for own in classes for line in inspect.getsource(own).splitlines() if line.strip()]
    assert len(lines) < 60
    assert isinstance(TestDictStore().create(Path(), ()), DictStore)
    for own, interface in zip(classes, (FeatureStore, StoreReader, StoreWriter), strict=True):
        assert own.__bases__ == (interface,)
        assert not own.__abstractmethods__
