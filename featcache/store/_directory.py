"""The directory of a store on disk, and its newest generation as this process sees it."""

from __future__ import annotations

import threading
from pathlib import Path

from featcache.errors import FeatcacheError, StorageError
from featcache.store._backends import open_generation
from featcache.store._generation import Generation, list_generations
from featcache.store._mapping import MappedGeneration
from featcache.store.settings import StoreSettings


class StoreDirectory:
    """A directory that holds generations. Threads may share it: all get the same mapping of the newest one."""

    def __init__(self, path: Path, settings: StoreSettings) -> None:
        self.path = path
        self.settings = settings
        self._mapping: MappedGeneration | None = None
        self._lock = threading.Lock()

    def newest(self) -> MappedGeneration:
        """Return the newest generation, mapped once; raises `MissingError`, `FormatError`, `StorageError`."""
        with self._lock:
            mapping = self._mapping
            if mapping is None or list_generations(self.path)[-1][1] != mapping.generation.path:
                mapping = self._mapping = self._open_newest()
            return mapping

    def open_again(self) -> Generation:
        """Return the newest generation opened once more, sharing nothing that was read or checked before."""
        return open_generation(self.newest().generation.path, self.settings)

    def let_go(self) -> None:
        """Drop the mapping: the generation's space is free once the last reader and view are gone too."""
        with self._lock:
            self._mapping = None

    def _open_newest(self) -> MappedGeneration:
        for _ in range(100):
            newest = list_generations(self.path)[-1][1]
            try:
                return MappedGeneration(open_generation(newest, self.settings))
            except (FileNotFoundError, BlockingIOError):
                continue  # replaced and removed since it was listed
            except OSError as error:
                if isinstance(error, FeatcacheError):
                    raise
                raise StorageError(f"{str(newest)!r} must be readable, got: {error.strerror or error}") from error
        raise StorageError(f"{str(self.path)!r} must hold a generation that stays, it was replaced 100 times")
