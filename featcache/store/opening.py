"""Making and opening stores: the one place that knows which kinds there are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from featcache.errors import InputError
from featcache.store._backends import check_kind
from featcache.store._disk import DiskStore
from featcache.store._lock import WriteLock
from featcache.store._memory import MemoryStore
from featcache.store.checks import check_columns
from featcache.store.interface import Column, FeatureStore
from featcache.store.settings import DEFAULT_SETTINGS, StoreSettings
from featcache.system.objects import ObjectPath, place_of


def create_store(
    path: str | Path | ObjectPath, *, kind: str, columns: Sequence[Column], settings: StoreSettings = DEFAULT_SETTINGS
) -> FeatureStore:
    """Return a new, empty store.

    Parameters
    ----------
    path
        A directory that does not exist yet or is empty, or a URL as ``s3://BUCKET/KEY`` with nothing below it.
    kind
        ``lmdb``: one file. ``zarr``: groups of uncompressed chunks, on a disk or on object storage. ``memory``: nothing
        on disk, for tests.
    columns
        What a row holds besides its key: one or more columns of different names.
    settings
        Sizes that the format leaves open.

    Returns
    -------
    FeatureStore
        Open: close it, or use it as a context manager.

    Raises
    ------
    InputError
        Where there is no such kind, or the columns are not distinct.
    ExistsError
        Where `path` is a file or holds something.
    StorageError
        Where nothing can be written there.

    Examples
    --------
    >>> store = create_store("rows", kind="zarr", columns=[Column("features", (1280,), "float16")])
    >>> store.verify()
    VerifyReport(rows=0, problems=(), damaged=array([], shape=(0, 32), dtype=uint8))
    """
    columns = check_columns(columns)
    if kind == "memory":
        return MemoryStore(columns)
    check_kind(kind)
    place = place_of(path)
    if isinstance(place, ObjectPath):
        check_kind_at(place, kind)
        from featcache.store._object_store import ObjectStore

        return ObjectStore.create(place, columns, settings)
    return DiskStore.create(place, kind, columns, settings)


def check_kind_at(place: Path | ObjectPath, kind: str) -> str:
    """Return `kind` if there is a store of it at `place`; raises `InputError` for others, as LMDB on object storage."""
    if isinstance(place, ObjectPath) and check_kind(kind) != "zarr":
        raise InputError(f"a store on object storage must be 'zarr', got {kind!r} for {str(place)!r}: use --store zarr")
    return check_kind(kind)


@contextlib.contextmanager
def hold_store(path: str | Path, *, wait_seconds: float = 0) -> Iterator[None]:
    """Keep every writer out of the store in the directory `path`, intact or not, within the block.

    Raises `LockedError` where another process writes for longer than `wait_seconds`, `StorageError` where no lock can
    be made there.
    """
    lock = WriteLock(Path(path) / "write.lock", wait_seconds=wait_seconds)
    try:
        yield
    finally:
        lock.release()


def open_store(path: str | Path | ObjectPath, *, settings: StoreSettings = DEFAULT_SETTINGS) -> FeatureStore:
    """Return the store in a directory, whichever its kind.

    Parameters
    ----------
    path
        The directory or the URL that `create_store` made.
    settings
        Sizes of its writers' buffers; the rows of its blocks stay as they were made.

    Raises
    ------
    MissingError
        Where there is nothing.
    FormatError
        Where it is no store, or one of a newer format.
    CorruptError
        Where what describes it was damaged.

    Examples
    --------
    >>> create_store("scores", kind="lmdb", columns=[Column("score", (), "float32")]).close()
    >>> with open_store("scores") as store:
    ...     store.columns
    (Column(name='score', shape=(), dtype='float32'),)
    """
    place = place_of(path)
    if isinstance(place, ObjectPath):
        from featcache.store._object_store import ObjectStore

        return ObjectStore(place, settings)
    return DiskStore(place, settings)
