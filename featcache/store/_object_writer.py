"""`ObjectWriter`: one of any number of writers of a store on object storage.

Rows are put as segments that nobody knows of; a commit is the log entry that names them. Where another writer has that
number, this one looks at what it did, leaves out the rows that are there by now, and takes the next: no key comes
twice, whoever writes at the same time.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.errors import ExistsError, LockedError
from featcache.store._object_directory import ObjectDirectory
from featcache.store._object_log import Change, Segment, Snapshot
from featcache.store._object_segment import put_segment
from featcache.store._pending import PendingRows
from featcache.store._record import CHECKSUMS, COLUMN_PREFIX, KEYS, row_checksums
from featcache.store.checks import cast_values, check_keys, check_values, first_occurrences
from featcache.store.interface import KEY_BYTES, Keys, Rows, StoreWriter, Values

_MOST_ATTEMPTS = 1000
_LONGEST_PAUSE_SECONDS = 1.0

Batch = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class _Staged:
    """A segment that was put and that no log entry names yet, and its keys."""

    segment: Segment
    keys: Keys


class ObjectWriter(StoreWriter):
    """Any number of them may be open, each for one thread of one process. Rows beyond a buffer are put ahead."""

    def __init__(self, directory: ObjectDirectory) -> None:
        self._directory = directory
        self._owner: int | None = os.getpid()
        self._begin(directory.log.newest())

    def _begin(self, snapshot: Snapshot) -> None:
        """Start from what is committed."""
        self._snapshot = snapshot
        self._rows = PendingRows(self._snapshot.rows, self._find_stored)
        self._batches: list[Batch] = []
        self._buffered_bytes = 0
        self._staged: list[_Staged] = []
        self._dropped_keys: list[Keys] = []  # of rows that were committed

    def append(self, keys: Keys, columns: Mapping[str, Values]) -> int:
        self._check_open()
        keys = check_keys(keys)
        values = check_values(self._directory.columns, columns, len(keys))
        fresh = self._rows.rows_of(keys) < 0
        fresh &= first_occurrences(keys)
        if not fresh.any():
            return 0
        keys = keys[fresh]  # a copy, as are the values: the caller may use its buffers again
        new = {COLUMN_PREFIX + c.name: cast_values(c, values[c.name][fresh]) for c in self._directory.columns}
        new[KEYS] = keys
        new[CHECKSUMS] = row_checksums(keys, [new[COLUMN_PREFIX + c.name] for c in self._directory.columns])
        self._rows.add(keys)
        self._batches.append(new)
        self._buffered_bytes += sum(array.nbytes for array in new.values())
        if self._buffered_bytes > self._directory.settings.segment_bytes:
            self._stage()
        return len(keys)

    def drop(self, keys: Keys) -> int:
        self._check_open()
        rows = self._rows.drop(check_keys(keys))
        stored = rows[rows < self._rows.stored]
        if len(stored):
            self._dropped_keys.append(self._directory.keys_of(self._snapshot).keys(self._rows.stored)[stored])
        return len(rows)

    def find(self, keys: Keys) -> Rows:
        return self._rows.find(check_keys(keys))

    def __len__(self) -> int:
        return self._rows.left

    def commit(self) -> None:
        self._check_open()
        self._stage()
        self._leave_out_dropped()
        gone = np.concatenate([np.empty((0, KEY_BYTES), np.uint8), *self._dropped_keys])
        rewritten: dict[str, Segment | None] = {}
        attempt = 0
        if self._staged or len(gone):
            self._directory.require_conditions()
        while self._staged or len(gone):
            replaced = self._replacements(gone, rewritten)
            if not self._staged and not replaced:
                break  # another writer dropped them
            change = Change(replaced, tuple(staged.segment for staged in self._staged))
            try:
                self._snapshot = self._directory.log.publish(self._snapshot, change)
                for staged in self._staged:
                    self._directory.remember_keys(staged.segment, staged.keys)
                break
            except ExistsError:
                attempt += 1
                if attempt == _MOST_ATTEMPTS:
                    raise LockedError(
                        f"{str(self._directory.path)!r} must let a writer commit, others were first {attempt} times: "
                        "let fewer write at once, or commit less often"
                    ) from None
                time.sleep(random.uniform(0, min(_LONGEST_PAUSE_SECONDS, 0.01 * 2 ** min(attempt, 10))))
                self._snapshot = self._directory.log.newest()
                self._leave_out_known(gone)
        self._begin(self._snapshot)

    def close(self) -> None:
        self._owner = None
        self._batches.clear()
        self._staged.clear()

    def _check_open(self) -> None:
        if self._owner != os.getpid():
            raise LockedError("a writer must be open, and is of use only to the process that made it: make another")

    def _find_stored(self, keys: Keys, skip: npt.NDArray[np.bool_] | None) -> Rows:
        if not self._snapshot.rows:
            return np.full(len(keys), -1, dtype=np.int64)
        return self._directory.keys_of(self._snapshot).find(keys, rows=self._snapshot.rows, skip=skip)

    def _stage(self) -> None:
        """Put what is buffered as a segment."""
        if not self._batches:
            return
        rows = {name: np.concatenate([batch[name] for batch in self._batches]) for name in self._batches[0]}
        self._batches.clear()
        self._buffered_bytes = 0
        self._staged.append(_Staged(put_segment(self._directory.segments, self._directory.empty, rows), rows[KEYS]))

    def _leave_out_dropped(self) -> None:
        """Put the staged segments again without the new rows that were dropped before they were committed."""
        dropped = self._rows.dropped[self._rows.stored :]
        if dropped.any():
            ends = np.cumsum([len(staged.keys) for staged in self._staged])[:-1]
            self._keep([~part for part in np.split(dropped, ends)])

    def _leave_out_known(self, gone: Keys) -> None:
        """Put the staged segments again without the rows whose keys another writer has committed meanwhile."""
        skip = None
        if len(gone):
            skip = np.zeros(self._snapshot.rows, dtype=bool)
            rows = self._find_stored(gone, None)
            skip[rows[rows >= 0]] = True
        self._keep([self._find_stored(staged.keys, skip) < 0 for staged in self._staged])

    def _keep(self, masks: list[npt.NDArray[np.bool_]]) -> None:
        kept = []
        for staged, mask in zip(self._staged, masks, strict=True):
            if mask.all():
                kept.append(staged)
                continue
            segment = self._rewritten(staged.segment, mask)
            if segment is not None:
                kept.append(_Staged(segment, staged.keys[mask]))
        self._staged = kept

    def _replacements(self, gone: Keys, rewritten: dict[str, Segment | None]) -> dict[str, Segment | None]:
        """Return what takes the place of the segments that hold keys of `gone`; what was put before is used again."""
        if not len(gone):
            return {}
        rows = self._find_stored(gone, None)
        drop = np.zeros(self._snapshot.rows, dtype=bool)
        drop[rows[rows >= 0]] = True
        replaced: dict[str, Segment | None] = {}
        start = 0
        for segment in self._snapshot.segments:
            mask = ~drop[start : start + segment.rows]
            start += segment.rows
            if not mask.all():
                if segment.name not in rewritten:
                    rewritten[segment.name] = self._rewritten(segment, mask)
                replaced[segment.name] = rewritten[segment.name]
        return replaced

    def _rewritten(self, segment: Segment, kept: npt.NDArray[np.bool_]) -> Segment | None:
        """Put the rows of a segment that are `kept` as another one; None where there are none."""
        if not kept.any():
            return None
        stored = self._directory.stored(segment)
        arrays = {layout.name: stored.whole(layout.name)[kept] for layout in self._directory.empty.arrays}
        return put_segment(self._directory.segments, self._directory.empty, arrays)
