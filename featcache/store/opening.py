"""Making and opening stores: the one place that knows which kinds there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featcache.errors import InputError
from featcache.store._backends import check_kind
from featcache.store._disk import DiskStore
from featcache.store._memory import MemoryStore
from featcache.store.interface import Column, FeatureStore


def create_store(path: str | Path, *, kind: str, columns: Sequence[Column]) -> FeatureStore:
    """Return a new, empty store in the directory `path`, which must not exist or be empty.

    `kind`: ``lmdb`` or ``zarr``; ``memory`` keeps nothing on disk and is for tests.
    """
    if not columns or len({column.name for column in columns}) != len(columns):
        raise InputError(f"columns must be one or more with distinct names, got {[c.name for c in columns]!r}")
    if kind == "memory":
        return MemoryStore(tuple(columns))
    return DiskStore.create(Path(path), check_kind(kind), tuple(columns))


def open_store(path: str | Path) -> FeatureStore:
    """Return the store in the directory `path`, whichever its kind.

    Raises `MissingError` where there is nothing, `FormatError` where it is no store or one of a newer format, and
    `CorruptError` where what describes it was damaged.
    """
    return DiskStore(Path(path))
