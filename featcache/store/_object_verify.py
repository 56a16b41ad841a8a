"""Checking every byte of a store on object storage, dropping exactly the damaged rows, clearing what nobody needs."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from featcache.errors import ExistsError
from featcache.store._fetch_ahead import fetch_ahead
from featcache.store._object_directory import ObjectDirectory
from featcache.store._object_log import CHECKPOINT_EVERY, Change, Segment, Snapshot, number_of
from featcache.store._object_segment import put_segment
from featcache.store._verify import diagnose_arrays, intact_batches
from featcache.store.interface import KEY_BYTES, VerifyReport
from featcache.system.objects import ObjectPath, remove_objects

_SEGMENTS_AT_ONCE = 2
KEPT_SECONDS = 86_400.0  # a reader or writer that began longer ago is taken to have ended


def check_objects(directory: ObjectDirectory) -> VerifyReport:
    """Return what a check of every byte that the newest commit refers to says."""
    return _joined([report for _, report, _ in _checked(directory, directory.log.newest(), repair=False)])


def repair_objects(directory: ObjectDirectory, *, kept_seconds: float = KEPT_SECONDS) -> VerifyReport:
    """Put the intact rows of damaged segments as new ones, and clear what was of no use for `kept_seconds`.

    Raises `StorageError` where the storage refuses.
    """
    while True:
        snapshot = directory.log.newest()
        checked = list(_checked(directory, snapshot, repair=True))
        replaced = {segment.name: new for segment, report, new in checked if report.problems}
        try:
            if replaced:
                directory.require_conditions()
                directory.log.publish(snapshot, Change(replaced, ()))
        except ExistsError:
            continue  # somebody committed meanwhile
        clear_objects(directory, kept_seconds=kept_seconds)
        return _joined([report for _, report, _ in checked])


def clear_objects(directory: ObjectDirectory, *, kept_seconds: float = KEPT_SECONDS) -> int:
    """Remove segments that are `kept_seconds` old and that no commit since then refers to; return how many objects.

    They are what killed writers left, and what was replaced. Log entries that nothing builds on any more go as well.
    """
    before = time.time_ns() - round(kept_seconds * 1e9)
    newest = directory.log.newest()
    live = {segment.name for segment in newest.segments}
    old: list[tuple[str, ObjectPath]] = []
    for path, status in directory.segments.walk():
        name = path.relative_name(directory.segments).partition("/")[0]
        if name not in live and status.modified_ns < before:
            old.append((name, path))
    entries = [(number_of(path), path, status.modified_ns < before) for path, status in directory.log.place.walk()]
    if old:
        recent = [number for number, _, is_old in entries if not is_old]
        for number in [*recent, min(recent, default=newest.number + 1) - 1]:  # and what was there when those began
            if number >= 0:
                live |= {segment.name for segment in directory.log.at(number).segments}
    kept_from = min([newest.checkpoint, *(number for number, _, is_old in entries if not is_old)])
    kept_from -= kept_from % CHECKPOINT_EVERY
    outdated = [path for name, path in old if name not in live]
    outdated += [path for number, path, _ in entries if number < kept_from]
    remove_objects(outdated)
    return len(outdated)


def _checked(
    directory: ObjectDirectory, snapshot: Snapshot, *, repair: bool
) -> Iterator[tuple[Segment, VerifyReport, Segment | None]]:
    """Yield each segment, what a check of it says, and, to `repair`, a new one of its intact rows, if there are any."""

    def check(segment: Segment) -> tuple[Segment, VerifyReport, Segment | None]:
        stored = directory.stored(segment)
        diagnosis = diagnose_arrays(stored, stored.record, stored.check_structure())
        new = None
        if repair and diagnosis.problems and not diagnosis.damaged.all():
            batches = list(intact_batches(diagnosis))
            arrays = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
            new = put_segment(directory.segments, directory.empty, arrays)
        return segment, diagnosis.report(), new

    yield from fetch_ahead(check, snapshot.segments, most=_SEGMENTS_AT_ONCE)


def _joined(reports: list[VerifyReport]) -> VerifyReport:
    damaged = np.concatenate([np.empty((0, KEY_BYTES), np.uint8), *(report.damaged for report in reports)])
    problems = tuple(problem for report in reports for problem in report.problems)
    return VerifyReport(sum(report.rows for report in reports), problems, damaged)
