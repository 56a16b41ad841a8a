"""`ObjectStore`: a store on object storage (S3, GCS, Azure), where the newest log entry says what is in it.

STORE/layout.json       the commit record of no rows: the arrays and how they are cut
STORE/log/              one object for each commit (`_object_log`)
STORE/segments/NAME/    the rows (`_object_segment`)
"""

from __future__ import annotations

import secrets

from featcache.errors import ExistsError
from featcache.store._object_directory import ObjectDirectory
from featcache.store._object_log import CommitLog
from featcache.store._object_reader import ObjectReader
from featcache.store._object_verify import check_objects, repair_objects
from featcache.store._object_writer import ObjectWriter
from featcache.store._record import new_record
from featcache.store.interface import Column, FeatureStore, StoreReader, StoreWriter, VerifyReport
from featcache.store.settings import DEFAULT_SETTINGS, StoreSettings
from featcache.system.objects import ObjectPath

_BLOCK_BYTES = 16 << 20  # what a request should fetch to be worth its latency


class ObjectStore(FeatureStore):
    """A store below the URL `path`."""

    def __init__(self, path: ObjectPath, settings: StoreSettings = DEFAULT_SETTINGS) -> None:
        self.path = path
        self._directory = ObjectDirectory(path, settings)

    @classmethod
    def create(cls, path: ObjectPath, columns: tuple[Column, ...], settings: StoreSettings) -> ObjectStore:
        """Return a new, empty store below `path`.

        Raises `ExistsError` where there is one, `StorageError` where nothing can be written there or the storage lets
        two writers put the same object.
        """
        layout = path / "layout.json"
        text = new_record(columns, settings, block_bytes=_BLOCK_BYTES).to_text(token=secrets.randbits(48))
        try:
            layout.claim(text)
        except ExistsError as error:
            raise ExistsError(
                f"{str(path)!r} must be empty to become a store, it is not: name another place"
            ) from error
        made = cls(path, settings)
        made._directory.require_conditions()
        CommitLog(path / "log").begin()
        return made

    @property
    def columns(self) -> tuple[Column, ...]:
        return self._directory.columns

    def reader(self) -> StoreReader:
        return ObjectReader(self._directory, self._directory.log.newest())

    def writer(self, *, wait_seconds: float = 0) -> StoreWriter:
        """Return a writer; there may be any number, so nothing is waited for."""
        return ObjectWriter(self._directory)

    def verify(self, *, repair: bool = False) -> VerifyReport:
        """Return what a check of every byte says; a repair also clears what no commit of the last day refers to."""
        return repair_objects(self._directory) if repair else check_objects(self._directory)

    def nbytes(self) -> int:
        return sum(segment.bytes for segment in self._directory.log.newest().segments)

    def close(self) -> None:
        """Let go of the keys; readers that are open stay usable."""
        self._directory.let_go()

    def __repr__(self) -> str:
        return f"ObjectStore({str(self.path)!r})"
