"""The log of a store on object storage: one small JSON object for each commit, put only where its number is free.

    log/99999999999999999998.json    commit 1: its name counts down, so that a listing begins with the newest

Of several writers that want the same number, the storage lets one succeed (``If-None-Match: *``); the others look at
what it did and take the next. Every 64th entry names all segments of the store, the ones between what changed since, so
that a listing and two small objects say what the store holds, however large it is.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from featcache.errors import CorruptError, MissingError
from featcache.system.json import DocumentKind, parse_document, with_checksum
from featcache.system.objects import ObjectPath

CHECKPOINT_EVERY = 64
_HIGHEST = 10**20 - 1
_FORMAT = "featcache-log"
_ENTRY = DocumentKind(
    "a log entry",
    make="use the featcache that wrote it",
    renew="restore it from the storage's own versions or a backup, or build the cache anew with --overwrite",
    format=_FORMAT,
    versions=(1,),
    keys=("commit", "token"),
    checksum=True,
)


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows that were put together: `name` below ``segments/``, how many `rows`, and the `bytes` of its objects."""

    name: str
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Change:
    """What a commit does: segments in the place of others (None: nothing is), and ones that follow the last."""

    replaced: Mapping[str, Segment | None]
    added: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The store after commit `number`: its `segments`, in the order of their rows.

    `since`: what was changed since the checkpoint, commit `checkpoint`, which had the segments `base`.
    """

    number: int
    checkpoint: int
    base: tuple[Segment, ...]
    since: Change
    segments: tuple[Segment, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", _changed(self.base, self.since))

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(segment.rows for segment in self.segments)

    def after(self, change: Change) -> Snapshot:
        """Return the store after one more commit; the numbers of the checkpoints are the same whoever commits."""
        number = self.number + 1
        if number % CHECKPOINT_EVERY == 0:
            return Snapshot(number, number, _changed(self.segments, change), Change({}, ()))
        replaced = {name: _followed(new, change) for name, new in self.since.replaced.items()}
        replaced |= {segment.name: change.replaced[segment.name] for segment in self.base
                     if segment.name in change.replaced}  # fmt: skip
        return Snapshot(number, self.checkpoint, self.base, Change(replaced, _changed(self.since.added, change)))


class CommitLog:
    """The commits of the store at `place`, which every process sees alike: the storage's listing is consistent."""

    def __init__(self, place: ObjectPath) -> None:
        self.place = place

    def begin(self) -> None:
        """Put the commit 0 of a store without rows; raises `ExistsError` where there is one."""
        self._path(0).claim(_text(Snapshot(0, 0, (), Change({}, ())), uuid.uuid4().hex))

    def newest(self) -> Snapshot:
        """Return the store as it is now; raises `CorruptError` where the log is damaged or gone."""
        first = next(self.place.walk(), None)
        if first is None:
            raise CorruptError(f"{str(self.place)!r} must hold the store's log, it is empty: {_ENTRY.renew}")
        return self.at(number_of(first[0]))

    def at(self, number: int) -> Snapshot:
        """Return the store after commit `number`; raises `CorruptError` where that cannot be told."""
        entry = self._read(number)
        if entry["commit"] != number:
            raise CorruptError(
                f"{str(self._path(number))!r} must be commit {number}, it is {entry['commit']!r}: {_ENTRY.renew}"
            )
        if "segments" in entry:
            return Snapshot(number, number, _segments(entry["segments"]), Change({}, ()))
        base = _checkpoint(self, entry["checkpoint"])
        replaced = {name: None if new is None else Segment(*new) for name, new in entry["replaced"].items()}
        return Snapshot(number, entry["checkpoint"], base, Change(replaced, _segments(entry["added"])))

    def publish(self, before: Snapshot, change: Change) -> Snapshot:
        """Make `change` the commit after `before` and return the store then.

        Raises `ExistsError` where another commit has the number, `StorageError` where the storage refuses.
        """
        after = before.after(change)
        self._path(after.number).claim(_text(after, uuid.uuid4().hex))
        return after

    def _read(self, number: int) -> dict[str, Any]:
        path = self._path(number)
        try:
            data = path.read_bytes()
        except MissingError as error:
            raise CorruptError(f"{str(path)!r} must be there, it is missing: {_ENTRY.renew}") from error
        return parse_document(data, _ENTRY, place=str(path))

    def _path(self, number: int) -> ObjectPath:
        return self.place / f"{_HIGHEST - number:020d}.json"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CommitLog) and other.place == self.place

    def __hash__(self) -> int:
        return hash(self.place)


def number_of(path: ObjectPath) -> int:
    """Return the number of the commit whose object is `path`; raises `CorruptError` for any other object."""
    if not path.stem.isdigit() or len(path.stem) != 20:
        raise CorruptError(f"{str(path)!r} must be a log entry, its name is none: remove it")
    return _HIGHEST - int(path.stem)


@lru_cache(maxsize=4)
def _checkpoint(log: CommitLog, number: int) -> tuple[Segment, ...]:
    """Return the segments of a checkpoint, which never changes: kept, as 63 commits build on it."""
    return log.at(number).segments


def _changed(segments: tuple[Segment, ...], change: Change) -> tuple[Segment, ...]:
    kept = segments
    if change.replaced:
        kept = tuple(new for old in segments if (new := change.replaced.get(old.name, old)) is not None)
    return kept + change.added


def _followed(segment: Segment | None, change: Change) -> Segment | None:
    return None if segment is None else change.replaced.get(segment.name, segment)


def _segments(values: Any) -> tuple[Segment, ...]:
    return tuple(Segment(name, rows, size) for name, rows, size in values)


def _text(snapshot: Snapshot, token: str) -> bytes:
    values: dict[str, Any] = {"format": _FORMAT, "version": 1, "commit": snapshot.number, "token": token}
    if snapshot.number == snapshot.checkpoint:
        values["segments"] = _listed(snapshot.segments)
    else:
        values |= {
            "checkpoint": snapshot.checkpoint,
            "replaced": {name: None if new is None else _listed((new,))[0]
                         for name, new in snapshot.since.replaced.items()},
            "added": _listed(snapshot.since.added),
        }  # fmt: skip
    return json.dumps(with_checksum(values)).encode()


def _listed(segments: tuple[Segment, ...]) -> list[list[Any]]:
    return [[segment.name, segment.rows, segment.bytes] for segment in segments]
