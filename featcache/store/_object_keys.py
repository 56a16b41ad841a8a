"""The keys of a store on object storage, fetched once by a process that asks for some: a file without a name, an index.

Opening a store fetches none of them. The file lies in the temporary folder and takes 32 bytes a row, the index 8 bytes
of memory; a later snapshot that only has more rows goes on with both.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from featcache.errors import StorageError
from featcache.store._fetch_ahead import fetch_ahead
from featcache.store._index import KeyIndex
from featcache.store._object_log import Segment
from featcache.store.interface import KEY_BYTES, Keys, Rows
from featcache.system.files import free_space_advice

_REQUESTS_AT_ONCE = 16

FetchKeys = Callable[[Segment], Keys]


class KeyTable:
    """The keys of some segments in their order. Threads may share it."""

    def __init__(self, fetch: FetchKeys) -> None:
        self._fetch = fetch
        self._lock = threading.Lock()
        self._names: list[str] = []
        self._file = tempfile.TemporaryFile(prefix="featcache-keys-")  # noqa: SIM115 (open as long as the table)
        self._index = KeyIndex()
        self._keys: Keys = np.empty((0, KEY_BYTES), np.uint8)

    def covers(self, segments: tuple[Segment, ...]) -> bool:
        """Return whether the table can hold `segments`: whether one of the two begins as the other."""
        known = [segment.name for segment in segments[: len(self._names)]]
        return known == self._names[: len(known)]

    def load(self, segments: tuple[Segment, ...]) -> None:
        """Fetch what of `segments` is not here yet; raises `CorruptError` where a segment is damaged."""
        with self._lock:
            missing = segments[len(self._names) :]
            if not missing:
                return
            for segment, keys in zip(missing, fetch_ahead(self._fetch, missing, most=_REQUESTS_AT_ONCE), strict=True):
                self._add(segment, keys)
            self._keys = np.memmap(self._file, np.uint8, "r", shape=(len(self._index), KEY_BYTES))

    def keys(self, rows: int) -> Keys:
        """Return the keys (rows, 32) of the first rows, read-only."""
        return self._keys[:rows]

    def find(self, keys: Keys, *, rows: int, skip: npt.NDArray[np.bool_] | None = None) -> Rows:
        """Return the row (m,) of each key among the first `rows`, or -1; rows marked in `skip` are passed over."""
        with self._lock:
            return self._index.find(keys, self._keys.__getitem__, rows=rows, skip=skip)

    def __del__(self) -> None:
        self._file.close()

    def _add(self, segment: Segment, keys: Keys) -> None:
        try:
            self._file.write(np.ascontiguousarray(keys).data)
            self._file.flush()
        except OSError as error:
            raise StorageError(
                f"the keys of {segment.name!r} must fit into the temporary folder, got: {error.strerror}; "
                f"{free_space_advice()}"
            ) from error
        self._index.add(keys)
        self._names.append(segment.name)
