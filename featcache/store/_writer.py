"""`DiskWriter`: buffers rows, cuts them into blocks, and publishes them at a commit."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.errors import LockedError, StorageError
from featcache.store._blocks import BlockCutter
from featcache.store._compact import write_next_generation
from featcache.store._directory import StoreDirectory
from featcache.store._generation import Committed, remove_outdated
from featcache.store._lock import WriteLock
from featcache.store._pending import PendingRows
from featcache.store._record import CHECKSUMS, COLUMN_PREFIX, KEYS, row_checksums
from featcache.store.checks import cast_values, check_keys, check_values, first_occurrences
from featcache.store.interface import Column, Keys, Rows, StoreWriter, Values

_TOLERATED_SPARE = 0.03


class DiskWriter(StoreWriter):
    """The writer of a store on disk. What is more than its buffer goes to disk before a commit, unseen by readers."""

    def __init__(self, directory: StoreDirectory, columns: tuple[Column, ...], lock: WriteLock) -> None:
        self._directory = directory
        self._columns = columns
        self._lock = lock
        self._untidy = False
        self._begin()
        self._mapping.generation.trim(self._committed.record)

    def _begin(self) -> None:
        """Start from what is committed."""
        self._mapping = self._directory.newest()
        self._committed = self._mapping.committed()
        self._base = self._committed.record.rows
        self._stored_keys = self._mapping.array(KEYS, self._committed, self._base)
        self._cutter = BlockCutter(self._committed)
        mapping, stored_keys = self._mapping, self._stored_keys  # not `self`: a cycle would hold the old rows' space
        self._rows = PendingRows(self._base, lambda keys, skip: mapping.find(keys, stored_keys, skip=skip))
        self._pending: list[dict[str, npt.NDArray[Any]]] = []
        self._pending_bytes = 0

    def append(self, keys: Keys, columns: Mapping[str, Values]) -> int:
        self._check_open()
        keys = check_keys(keys)
        values = check_values(self._columns, columns, len(keys))
        fresh = self._rows.rows_of(keys) < 0
        fresh &= first_occurrences(keys)
        if not fresh.any():
            return 0
        keys = keys[fresh]  # a copy, as are the values: the caller may use its buffers again
        new = {COLUMN_PREFIX + c.name: cast_values(c, values[c.name][fresh]) for c in self._columns}
        new[KEYS] = keys
        new[CHECKSUMS] = row_checksums(keys, [new[COLUMN_PREFIX + c.name] for c in self._columns])
        self._rows.add(keys)
        self._pending.append(new)
        self._pending_bytes += sum(array.nbytes for array in new.values())
        if self._pending_bytes > self._directory.settings.buffer_bytes:
            self._write_pending(publish=False)
        return len(keys)

    def drop(self, keys: Keys) -> int:
        self._check_open()
        return len(self._rows.drop(check_keys(keys)))

    def find(self, keys: Keys) -> Rows:
        return self._rows.find(check_keys(keys))

    def __len__(self) -> int:
        return self._rows.left

    def commit(self) -> None:
        self._check_open()
        if self._rows.any_dropped:
            self._write_pending(publish=False)
            self._compact()
        elif self._pending or self._cutter.rows > self._base:
            self._write_pending(publish=True)
        self._untidy = True
        self._begin()
        remove_outdated(self._directory.path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._untidy &= kind is None
        self.close()

    def close(self) -> None:
        try:
            if self._lock.held and self._untidy:
                with contextlib.suppress(StorageError):  # no room to save room: what is committed stays as it is
                    self._tidy()
        finally:
            self._untidy = False
            self._pending.clear()
            self._lock.release()

    def _check_open(self) -> None:
        if not self._lock.held:
            raise LockedError("a writer must be open, and is of use only to the process that made it: make another")

    def _write_pending(self, *, publish: bool) -> None:
        self._cutter.add(self._pending)
        self._pending_bytes = 0
        record = self._committed.record.with_rows(self._cutter.rows) if publish else None
        self._mapping.generation.write(self._cutter.cut(finish=publish), record)

    def _tidy(self) -> None:
        """Write the rows afresh where superseded last blocks take more than a share of the disk."""
        generation = self._mapping.generation
        if generation.spare_bytes() > _TOLERATED_SPARE * generation.nbytes():
            self._begin()
            self._compact()
            self._mapping = self._directory.newest()
            del generation, self._stored_keys, self._rows
            remove_outdated(self._directory.path)

    def _compact(self) -> None:
        everything = Committed(self._committed.record.with_rows(self._cutter.rows), self._cutter.tails())
        keep = np.flatnonzero(~self._rows.dropped)
        write_next_generation(self._directory.path, self._mapping, everything, keep)
