"""Bring caches up to date with a listing: what changed, rows for what lacks them, the new list of samples, a report.

The order of questions is the order of costs: did any file's stat change (no bytes read)? is the digest of the changed
bytes known (no network)? only then are a backbone loaded and rows extracted. Labels and splits never cost a row.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from featcache.cache import FeatureCache
from featcache.datasets.listing import Listing, printable
from featcache.datasets.remarks import notes_on_training, notes_on_what_was_read
from featcache.datasets.samples import Samples
from featcache.datasets.splits import assign_splits
from featcache.errors import InputError, StorageError
from featcache.extract.auto_backbone import AutoBackbone
from featcache.extract.changes import ChangeSet, Seen, find_changes, hash_known, same_listing
from featcache.extract.destination import open_or_create, refuse_other_recipe
from featcache.extract.inputs.interface import Extractor
from featcache.extract.naming import WantedName, settle_name
from featcache.extract.opening import OpenExtractor, open_extractor, reopen_extractor
from featcache.extract.report import BuildReport
from featcache.extract.request import Request, first_given
from featcache.extract.settings import ExtractSettings
from featcache.recipe import Recipe
from featcache.store import StoreWriter
from featcache.system.cluster import LOCAL, ClusterSettings, cluster
from featcache.system.objects import ObjectPath, Place

if TYPE_CHECKING:
    from featcache.extract.collection import Extraction
    from featcache.extract.ledger import Known


class Notes:
    """What was said of the images so far, each note once, and whom to tell."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.lines: list[str] = []

    def add(self, *notes: str) -> None:
        """Say the notes that were not said yet."""
        for note in notes:
            if note not in self.lines:
                self.lines.append(note)
                self._say(note)


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be done, in whichever caches; `alone` if in one. `started`: on the clock of `time.perf_counter`."""

    started: float
    listing: Listing
    wanted: WantedName
    alone: bool
    split_seed: int | None
    prune_missing: bool
    wait_seconds: float
    workers: int | None
    cluster: ClusterSettings | None
    settings: ExtractSettings
    notes: Notes
    download: bool = False


@dataclass(slots=True)
class _Job:
    """One cache of a build on its way; `dataset`: the name there; `samples`: its stored list, if any."""

    cache: FeatureCache
    dataset: str
    extractor: Extractor | None
    samples: Samples | None
    seed: int
    changes: ChangeSet
    writer: StoreWriter | None = None
    startup_seconds: float = 0.0
    extract_seconds: float = 0.0
    seconds_by_stage: Mapping[str, float] = field(default_factory=dict)
    extracted: int = 0
    pruned: int = 0


def update_caches(
    wanted: Sequence[tuple[Place, Request, Extractor | None]], work: Work, *, store: str | None, overwrite: bool
) -> list[BuildReport]:
    """Open or create the caches, bring them up to date together, and return a report for each."""
    work.notes.add(*work.listing.notes, *notes_on_training(work.listing))
    with contextlib.ExitStack() as opened:
        jobs = []
        auto = AutoBackbone(work.download, work.notes.add)
        elsewhere = work.cluster is not None and work.cluster.address != LOCAL
        for place, request, chosen_extractor in wanted:
            auto.check(request, elsewhere=elsewhere, extractor=chosen_extractor is not None)
            cache, extractor = open_or_create(
                place, request, store=store, extractor=chosen_extractor, overwrite=overwrite,
                wait_seconds=work.wait_seconds, open_backbone=_opener(work.cluster, opened), auto=auto,
            )  # fmt: skip
            opened.enter_context(cache)
            if work.cluster is not None:
                extractor = chosen_extractor  # its workers open their own
            jobs.append(_start(cache, extractor, work))
            del extractor
        _bring_up_to_date(jobs, work)
        return [_report(job, work) for job in jobs]


def _opener(settings: ClusterSettings | None, opened: contextlib.ExitStack) -> OpenExtractor:
    """Return what opens a backbone: in this process, or where the rows are computed, if that may be another machine.

    A cluster that is started for that lasts as long as `opened`.
    """
    if settings is None or (settings.address == LOCAL and not settings.gpus_per_actor):
        return open_extractor

    def open_there(request: Request, *, adopt: Recipe | None) -> Extractor:
        from featcache.extract.cluster_extraction import open_extractor_there

        return open_extractor_there(opened.enter_context(cluster(settings.address)), request, settings, adopt=adopt)

    return open_there


def _start(cache: FeatureCache, extractor: Extractor | None, work: Work) -> _Job:
    if cache.recipe.input != work.listing.input:
        raise InputError(
            f"the cache {str(cache.path)!r} must be extended with inputs of its kind {cache.recipe.input!r}, got "
            f"{work.listing.input!r}: name another --cache"
        )
    dataset, note = settle_name(cache, work.listing, work.wanted)
    if note is not None:
        work.notes.add(note)
    before = cache.samples(dataset) if dataset in cache.datasets else None
    seed = first_given(work.split_seed, before.split_seed if before else None, 0)
    job = _Job(cache, dataset, extractor, before, seed, find_changes(cache, work.listing, before, alone=work.alone))
    job.startup_seconds = time.perf_counter() - work.started
    return job


def _bring_up_to_date(jobs: list[_Job], work: Work) -> None:
    with contextlib.ExitStack() as writers:
        # Locks are taken in one order, so that two builds of several caches never wait for each other.
        for number in sorted(range(len(jobs)), key=lambda number: str(jobs[number].cache.path)):
            job = jobs[number]
            if len(job.changes.todo) or work.prune_missing or not _is_stored(job, work):
                try:
                    writer = writers.enter_context(job.cache.store.writer(wait_seconds=work.wait_seconds))
                except StorageError:
                    if not _changes_nothing(job, work):
                        raise
                    continue
                # Another build may have held the lock until now: look again at what it left.
                jobs[number] = job = _start(job.cache, job.extractor, work)
                job.writer = writer
        seen: Seen = {}
        for job in jobs:
            if job.writer is not None:
                hash_known(work.listing, job.changes, job.writer, before=job.samples, seen=seen)
        lacking = [job for job in jobs if len(job.changes.todo)]
        if lacking:
            _extract(lacking, work)
        for job in jobs:
            if job.writer is not None:
                _store_samples(job, work)


def _changes_nothing(job: _Job, work: Work) -> bool:
    """Return whether the images are what the cache has, though some had to be read again to say so.

    Then nothing need be written, and a cache where nothing can be serves as well.
    """
    if job.samples is None or work.prune_missing or not _is_stored(job, work):
        return False
    with job.cache.reader() as reader:
        hash_known(work.listing, job.changes, reader, before=job.samples, seen={})
    return (
        not len(job.changes.todo)
        and np.array_equal(job.changes.digests, job.samples.digests)
        and job.changes.failures == job.samples.failures
    )


def _is_stored(job: _Job, work: Work) -> bool:
    return job.samples is not None and same_listing(job.samples, work.listing, seed=job.seed)


def _extract(jobs: Sequence[_Job], work: Work) -> None:
    """Extract what the jobs lack, each input read and decoded once for all of them."""
    todo = jobs[0].changes.todo if len(jobs) == 1 else np.unique(np.concatenate([job.changes.todo for job in jobs]))
    whole = len(jobs) == 1 and len(todo) == len(work.listing)  # then nothing need be held twice
    known = (jobs[0].changes.digests, jobs[0].changes.stats) if whole else None
    run = _extract_here if work.cluster is None else _extract_there
    extraction = run(jobs, work, work.listing.absolute_paths(todo), known)
    startup = time.perf_counter() - work.started - extraction.extract_seconds
    for job in jobs:
        job.extractor = None  # a network's buffers are not needed to put the store in order
    for job, extracted in zip(jobs, extraction.extracted_by_target, strict=True):
        mine = np.searchsorted(todo, job.changes.todo)
        if not whole:
            job.changes.digests[job.changes.todo] = extraction.digests[mine]
            job.changes.stats[job.changes.todo] = extraction.stats[mine]
        wanted = set(job.changes.todo.tolist()) if extraction.failures else set()
        failures = {int(todo[position]): reason for position, reason in extraction.failures.items()}
        job.changes.failures.update({index: reason for index, reason in failures.items() if index in wanted})
        job.startup_seconds, job.extract_seconds = startup, extraction.extract_seconds
        job.seconds_by_stage, job.extracted = extraction.seconds_by_stage, extracted


def _extract_here(jobs: Sequence[_Job], work: Work, paths: Sequence[str | bytes], known: Known | None) -> Extraction:
    from featcache.extract.extraction import Target, extract

    targets = []
    for job in jobs:
        job.extractor = job.extractor or reopen_extractor(job.cache.request, job.cache.recipe)
        refuse_other_recipe(job.cache, job.extractor.recipe)
        assert job.writer is not None
        targets.append(Target(job.extractor, job.writer))
    return extract(paths, targets, workers=work.workers, settings=work.settings, out=known)


def _extract_there(jobs: Sequence[_Job], work: Work, paths: Sequence[str | bytes], known: Known | None) -> Extraction:
    from featcache.extract.cluster_extraction import ClusterTarget, extract_on_cluster

    assert work.cluster is not None
    targets, writers, keys = [], [], []
    for job in jobs:
        assert job.writer is not None
        writers.append(job.writer)
        opener = partial(reopen_extractor, job.cache.request, job.cache.recipe)
        if job.extractor is not None:
            opener = partial(_itself, job.extractor)
        row_bytes = sum(column.row_bytes for column in job.cache.columns)
        url = str(job.cache.path) if isinstance(job.cache.path, ObjectPath) else None
        targets.append(ClusterTarget(opener, job.cache.recipe, row_bytes, url))
        with job.cache.reader() as reader:
            keys.append(np.array(reader.keys()))
    with cluster(work.cluster.address) as ray:
        return extract_on_cluster(ray, paths, targets, writers, keys, work.cluster, settings=work.settings, out=known)


def _itself(extractor: Extractor) -> Extractor:
    return extractor


def _store_samples(job: _Job, work: Work) -> None:
    updated = dataclasses.replace(work.listing, stats=job.changes.stats)
    splits = assign_splits(updated, job.changes.digests, seed=job.seed, failed=job.changes.failures)
    called = job.samples.called if job.samples is not None else None
    if not work.wanted.chosen:
        called = work.wanted.name if work.wanted.name != job.dataset else None
    samples = Samples(job.dataset, updated, job.changes.digests, splits, job.changes.failures, job.seed, called)
    job.cache.replace_samples(samples, before=job.samples)
    job.samples = samples
    if work.prune_missing and job.writer is not None:
        job.pruned = _drop_unreferenced(job.cache, job.writer)


def _report(job: _Job, work: Work) -> BuildReport:
    cache, listing = job.cache, work.listing
    if job.samples is not None:
        work.notes.add(*notes_on_what_was_read(job.samples.listing, job.samples.splits, job.samples.failures))
    with cache.reader() as reader:
        rows = len(reader)
    return BuildReport(
        cache=str(cache.path),
        dataset=job.dataset,
        images=len(listing),
        ignored=listing.ignored,
        extracted=job.extracted,
        reused=len(listing) - len(job.changes.failures) - job.extracted,
        failed=len(job.changes.failures) + len(listing.failures),
        pruned=job.pruned,
        rows=rows,
        num_features=cache.num_features,
        fingerprint=cache.fingerprint,
        weights=cache.recipe.weights,
        random_weights=cache.recipe.random_weights,
        startup_seconds=job.startup_seconds,
        extract_seconds=job.extract_seconds,
        wall_seconds=time.perf_counter() - work.started,
        images_per_second=job.extracted / job.extract_seconds if job.extracted else None,
        seconds_by_stage=job.seconds_by_stage,
        failures=tuple(
            (printable(path), reason)
            for path, reason in [
                *((listing.paths[index], reason) for index, reason in sorted(job.changes.failures.items())),
                *listing.failures,
            ]
        ),
        notes=tuple(work.notes.lines),
    )


def _drop_unreferenced(cache: FeatureCache, writer: StoreWriter) -> int:
    """Free the rows whose digest no sample of any data set has; return how many there were."""
    dropped = writer.drop(_unreferenced(cache))
    writer.commit()
    return dropped


def _unreferenced(cache: FeatureCache) -> npt.NDArray[np.uint8]:
    """Return the keys (n, 32) of those rows, as a copy: a view would hold the old rows' space."""
    live = {key.tobytes() for key in cache.referenced()}
    with cache.reader() as reader:
        keys = reader.keys()
        return np.array(keys[[key.tobytes() not in live for key in keys]])
