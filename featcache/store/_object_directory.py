"""What lies where in a store on object storage, and its keys as this process sees them."""

from __future__ import annotations

import threading

from featcache.errors import CorruptError, FormatError, MissingError
from featcache.store._object_chunks import ChunkBuffer
from featcache.store._object_keys import KeyTable
from featcache.store._object_log import CommitLog, Segment, Snapshot
from featcache.store._object_segment import StoredSegment
from featcache.store._record import KEYS, Record
from featcache.store.interface import Column, Keys
from featcache.store.settings import StoreSettings
from featcache.system.objects import ObjectPath

_KEPT_BYTES = 96 << 20  # of chunks


class ObjectDirectory:
    """The objects below the URL `path`. Threads may share it: all find keys in the same table.

    `empty`: the store's record of no rows. `log`: its commits. `segments`: where the rows lie. `chunks`: those
    that were read last.
    """

    def __init__(self, path: ObjectPath, settings: StoreSettings) -> None:
        self.path = path
        self.settings = settings
        self.log = CommitLog(path / "log")
        self.segments = path / "segments"
        self.empty = _read_layout(path)
        self.chunks = ChunkBuffer(_KEPT_BYTES)
        self._keys: KeyTable | None = None
        self._own_keys: dict[str, Keys] = {}  # of segments that were put here, and that no table holds yet
        self._lock = threading.Lock()
        self._conditions_hold = False

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns, in the order that the store was made with."""
        return self.empty.columns

    def stored(self, segment: Segment) -> StoredSegment:
        """Return a segment as it lies here."""
        return StoredSegment(self.segments, segment, self.empty)

    def keys_of(self, snapshot: Snapshot) -> KeyTable:
        """Return a table that holds the keys of a snapshot, and maybe of later rows; raises `CorruptError`."""
        with self._lock:
            if self._keys is None or not self._keys.covers(snapshot.segments):
                self._keys = KeyTable(self._fetch_keys)
            table = self._keys
        table.load(snapshot.segments)
        return table

    def remember_keys(self, segment: Segment, keys: Keys) -> None:
        """Keep the keys of a segment that was put here: they need not be fetched."""
        self._own_keys[segment.name] = keys

    def require_conditions(self) -> None:
        """Raise `StorageError` where the storage puts an object that is there: two writers could have one commit.

        Tried once by each process that writes, on what would not be changed: a store may have been copied here.
        """
        with self._lock:
            if not self._conditions_hold:
                (self.path / "layout.json").require_conditions()
                self._conditions_hold = True

    def let_go(self) -> None:
        """Forget keys and chunks; who holds them keeps them."""
        with self._lock:
            self._keys = None
            self._own_keys.clear()
        self.chunks.clear()

    def _fetch_keys(self, segment: Segment) -> Keys:
        own = self._own_keys.pop(segment.name, None)
        return self.stored(segment).whole(KEYS) if own is None else own


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
