"""`ObjectStore`: a store on object storage (S3, GCS, Azure), where the newest log entry says what is in it.

STORE/layout.json       the commit record of no rows: the arrays and how they are cut
STORE/log/              one object for each commit (`_object_log`)
STORE/segments/NAME/    the rows (`_object_segment`)
"""

from __future__ import annotations

import secrets
import threading

from featcache.errors import CorruptError, ExistsError, FormatError, MissingError, StorageError
from featcache.store._object_keys import KeyTable
from featcache.store._object_log import CommitLog, Segment, Snapshot
from featcache.store._object_reader import ObjectReader
from featcache.store._object_segment import StoredSegment
from featcache.store._object_verify import check_objects, repair_objects
from featcache.store._object_writer import ObjectWriter
from featcache.store._record import KEYS, Record, new_record
from featcache.store.interface import Column, FeatureStore, Keys, StoreReader, StoreWriter, VerifyReport
from featcache.store.settings import DEFAULT_SETTINGS, StoreSettings
from featcache.system.objects import ObjectPath

_BLOCK_BYTES = 16 << 20  # what a request should fetch to be worth its latency


class ObjectStore(FeatureStore):
    """A store below the URL `path`. `empty`: its record of no rows. `log`: its commits. `segments`: where rows lie."""

    def __init__(self, path: ObjectPath, settings: StoreSettings = DEFAULT_SETTINGS) -> None:
        self.path = path
        self.settings = settings
        self.log = CommitLog(path / "log")
        self.segments = path / "segments"
        self.empty = _read_layout(path)
        self._keys: KeyTable | None = None
        self._lock = threading.Lock()

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
        try:
            layout.create(text)
        except ExistsError:
            CommitLog(path / "log").begin()
            return cls(path, settings)
        raise StorageError(
            f"{str(path)!r} must lie in a storage that honours conditional writes (If-None-Match: *), this one put an "
            "object twice: use one that does, such as S3, GCS, Azure, R2 or MinIO"
        )

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.empty.columns

    def reader(self) -> StoreReader:
        return ObjectReader(self, self.log.newest())

    def reader_at(self, number: int) -> StoreReader:
        """Return a snapshot of what commit `number` made; raises `CorruptError` where that is gone."""
        return ObjectReader(self, self.log.at(number))

    def writer(self, *, wait_seconds: float = 0) -> StoreWriter:
        """Return a writer; there may be any number, so nothing is waited for."""
        return ObjectWriter(self)

    def verify(self, *, repair: bool = False) -> VerifyReport:
        """Return what a check of every byte says; a repair also clears what no commit of the last day refers to."""
        return repair_objects(self) if repair else check_objects(self)

    def nbytes(self) -> int:
        return sum(segment.bytes for segment in self.log.newest().segments)

    def keys_of(self, snapshot: Snapshot) -> KeyTable:
        """Return a table that holds the keys of a snapshot, and maybe of later rows; raises `CorruptError`."""
        with self._lock:
            if self._keys is None or not self._keys.covers(snapshot.segments):
                self._keys = KeyTable(self._fetch_keys)
            table = self._keys
        table.load(snapshot.segments)
        return table

    def close(self) -> None:
        """Let go of the keys; readers that are open stay usable."""
        with self._lock:
            self._keys = None

    def __repr__(self) -> str:
        return f"ObjectStore({str(self.path)!r})"

    def _fetch_keys(self, segment: Segment) -> Keys:
        return StoredSegment(self.segments, segment, self.empty).whole(KEYS)


def _read_layout(path: ObjectPath) -> Record:
    layout = path / "layout.json"
    try:
        return Record.from_text(layout.read_bytes(), place=repr(str(layout)))
    except MissingError as error:
        if any(True for _ in path.walk()):
            raise CorruptError(
                f"{str(layout)!r} must be there, it is missing: restore it, or build the cache anew with --overwrite"
            ) from error
        raise FormatError(f"a store must hold layout.json, {str(path)!r} does not: name the place of one") from error
