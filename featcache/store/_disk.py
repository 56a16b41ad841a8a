"""`DiskStore`: a store in a directory. LMDB and Zarr differ in one class; readers, writer and checks are shared."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from featcache.errors import ExistsError, FeatcacheError, InputError, StorageError
from featcache.store import Column, FeatureStore, StoreReader, StoreWriter, VerifyReport
from featcache.store._generation import Generation, list_generations, new_generation, remove_outdated
from featcache.store._lmdb import LmdbGeneration
from featcache.store._lock import WriteLock
from featcache.store._mapping import Mapping
from featcache.store._reader import DiskReader
from featcache.store._record import new_record
from featcache.store._zarr import ZarrGeneration
from featcache.system.files import sync_directory

BACKENDS: dict[str, type[LmdbGeneration] | type[ZarrGeneration]] = {"lmdb": LmdbGeneration, "zarr": ZarrGeneration}


def check_kind(kind: str) -> str:
    """Return `kind` if there is a store of it."""
    if kind not in BACKENDS:
        raise InputError(f"a store must be one of {sorted(BACKENDS)!r}, got {kind!r}")
    return kind


def open_generation(path: Path) -> Generation:
    """Return the generation in the file or directory `path`."""
    return BACKENDS[path.suffix[1:]](path)


class DiskStore(FeatureStore):
    """A store in the directory `path`."""

    def __init__(self, path: Path, mapping: Mapping, columns: tuple[Column, ...]) -> None:
        self.path = path
        self._columns = columns
        self._mapping: Mapping | None = mapping
        self._lock = threading.Lock()

    @classmethod
    def create(cls, path: Path, kind: str, columns: tuple[Column, ...]) -> DiskStore:
        """Make an empty store; raises `ExistsError` where `path` is anything but an empty or missing directory."""
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
            BACKENDS[kind].create(place, new_record(columns))
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> DiskStore:
        """Return the store at `path`; raises as `featcache.store.open_store`."""
        mapping = _open_newest(path)
        return cls(path, mapping, mapping.generation.record().columns)

    @property
    def columns(self) -> tuple[Column, ...]:
        return self._columns

    def mapping(self) -> Mapping:
        """Return the newest generation."""
        with self._lock:
            mapping = self._mapping
            if mapping is None or list_generations(self.path)[-1][1] != mapping.generation.path:
                mapping = self._mapping = _open_newest(self.path)
            return mapping

    def reader(self) -> StoreReader:
        mapping = self.mapping()
        committed = mapping.committed()
        return DiskReader(mapping, committed, committed.record.rows)

    def writer(self, *, wait_seconds: float = 0) -> StoreWriter:
        from featcache.store._writer import DiskWriter

        lock = WriteLock(self.path / "write.lock", wait_seconds=wait_seconds)
        try:
            remove_outdated(self.path)
            return DiskWriter(self, lock)
        except BaseException:
            lock.release()
            raise

    def verify(self, *, repair: bool = False) -> VerifyReport:
        from featcache.store._verify import repair_store, verify_generation

        if repair:
            lock = WriteLock(self.path / "write.lock", wait_seconds=0)
            try:
                return repair_store(self)
            finally:
                lock.release()
        return verify_generation(open_generation(self.mapping().generation.path)).report()

    def nbytes(self) -> int:
        return sum(open_generation(path).nbytes() for _, path in list_generations(self.path))

    def close(self) -> None:
        """Let go of the generation: its space is free once the last reader and view are gone too."""
        with self._lock:
            self._mapping = None

    def __repr__(self) -> str:
        return f"DiskStore({str(self.path)!r})"


def _open_newest(path: Path) -> Mapping:
    for _ in range(100):
        newest = list_generations(path)[-1][1]
        try:
            return Mapping(open_generation(newest))
        except (FileNotFoundError, BlockingIOError):
            continue  # replaced and removed since it was listed
        except OSError as error:
            if isinstance(error, FeatcacheError):
                raise
            raise StorageError(f"{str(newest)!r} must be readable, got: {error.strerror or error}") from error
    raise StorageError(f"{str(path)!r} must hold a generation that stays, it was replaced 100 times")


def next_generation(generation: Generation) -> tuple[int, str]:
    """Return the number and kind of the generation that would follow."""
    number = int(generation.path.stem.removeprefix("rows-")) + 1
    return number, generation.path.suffix[1:]
