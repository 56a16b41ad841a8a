"""`DiskStore`: a store in a directory. LMDB and Zarr differ in one class; readers, writer and checks are shared."""

from __future__ import annotations

import os
from pathlib import Path

from featcache.errors import ExistsError, StorageError
from featcache.store._backends import BACKENDS, open_generation
from featcache.store._directory import StoreDirectory
from featcache.store._generation import list_generations, new_generation, remove_outdated
from featcache.store._lock import WriteLock
from featcache.store._reader import DiskReader
from featcache.store._record import new_record
from featcache.store._spare import write_layout
from featcache.store._verify import diagnose, repair_store
from featcache.store._writer import DiskWriter
from featcache.store.interface import Column, FeatureStore, StoreReader, StoreWriter, VerifyReport
from featcache.store.settings import StoreSettings
from featcache.system.files import sync_directory


class DiskStore(FeatureStore):
    """A store in the directory `path`."""

    def __init__(self, path: Path, settings: StoreSettings) -> None:
        self.path = path
        self._directory = StoreDirectory(path, settings)
        self._columns = self._directory.newest().generation.record().columns

    @classmethod
    def create(cls, path: Path, kind: str, columns: tuple[Column, ...], settings: StoreSettings) -> DiskStore:
        """Return a new, empty store in the directory `path`, which is made where it is missing.

        Raises `ExistsError` where `path` is anything but an empty or missing directory, `StorageError` where nothing
        can be written there.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            sync_directory(path.parent)
            taken = bool(os.listdir(path))
        except FileExistsError as error:
            raise ExistsError(f"{str(path)!r} must be a directory to become a store, it is a file") from error
        except OSError as error:
            raise StorageError(f"{str(path)!r} must be a place to write, got: {error.strerror}") from error
        if taken:
            raise ExistsError(f"{str(path)!r} must be empty to become a store, it is not: name another place")
        with new_generation(path, 1, kind) as place:
            record = new_record(columns, settings)
            BACKENDS[kind].create(place, record, settings)
            write_layout(path, record)
        return cls(path, settings)

    @property
    def columns(self) -> tuple[Column, ...]:
        return self._columns

    def reader(self) -> StoreReader:
        mapping = self._directory.newest()
        committed = mapping.committed()
        return DiskReader(mapping, committed, committed.record.rows)

    def writer(self, *, wait_seconds: float = 0) -> StoreWriter:
        lock = WriteLock(self.path / "write.lock", wait_seconds=wait_seconds)
        try:
            remove_outdated(self.path)
            return DiskWriter(self._directory, self._columns, lock)
        except BaseException:
            lock.release()
            raise

    def verify(self, *, repair: bool = False) -> VerifyReport:
        if repair:
            lock = WriteLock(self.path / "write.lock", wait_seconds=0)
            try:
                return repair_store(self._directory)
            finally:
                lock.release()
        return diagnose(self._directory.open_again()).report()

    def nbytes(self) -> int:
        generations = [open_generation(path, self._directory.settings) for _, path in list_generations(self.path)]
        return sum(generation.nbytes() for generation in generations)

    def close(self) -> None:
        """Let go of the generation: its space is free once the last reader and view are gone too."""
        self._directory.let_go()

    def __repr__(self) -> str:
        return f"DiskStore({str(self.path)!r})"
