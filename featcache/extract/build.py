"""`build_cache`: bring a cache up to date with a folder of images, at the cost of what changed and nothing more.

The order of questions is the order of costs: did any file's stat change (no bytes read)? is the digest of the changed
bytes known (no network)? only then are a backbone loaded and rows extracted. Labels and splits never cost a row.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
import numpy.typing as npt

from featcache.backbone.choice import AUTO_BACKBONE
from featcache.cache import FeatureCache, open_cache
from featcache.cache.cache import CachePlace
from featcache.cache.creation import create_cache
from featcache.cache.manifest import is_cache, may_be_cache, read_manifest
from featcache.datasets.listing import Listing, Task, printable
from featcache.datasets.remarks import notes_on_training, notes_on_what_was_read
from featcache.datasets.samples import Samples
from featcache.datasets.splits import assign_splits
from featcache.errors import CorruptError, ExistsError, FormatError, InputError, RecipeMismatchError, StorageError
from featcache.extract.auto_backbone import AutoBackbone
from featcache.extract.changes import ChangeSet, Seen, find_changes, hash_known, same_listing
from featcache.extract.inputs.interface import Extractor
from featcache.extract.inputs.registry import IMAGE, find_input, input_of
from featcache.extract.naming import WantedName, settle_name, wanted_name
from featcache.extract.opening import OpenExtractor, open_extractor, reopen_extractor, resolved_under
from featcache.extract.request import Request, first_given
from featcache.extract.settings import ExtractSettings, default_settings
from featcache.recipe import Recipe
from featcache.store import StoreWriter, check_kind_at, hold_store
from featcache.system.cluster import LOCAL, ClusterSettings, cluster
from featcache.system.files import safe_name
from featcache.system.objects import ObjectPath, Place, place_of

if TYPE_CHECKING:
    from featcache.extract.collection import Extraction
    from featcache.extract.ledger import Known

__all__ = ["BuildReport", "Extractor", "Request", "RequestOptions", "build_cache", "build_caches", "open_extractor"]


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did. Times in seconds; `images_per_second` is extracted / extract_seconds, None where nothing was.

    `extracted`: rows computed now. `reused`: images whose row was there already (equal images count here too).
    `failed`: images without a row, each with a recorded reason. `seconds_by_stage`: busy time of decode, network, ….
    `notes`: one line each, how the images were read where that is not plain, and what `train` would refuse.
    """

    cache: str
    dataset: str
    images: int
    ignored: int
    extracted: int
    reused: int
    failed: int
    pruned: int
    rows: int
    num_features: int
    fingerprint: str
    weights: str
    random_weights: bool
    startup_seconds: float
    extract_seconds: float
    wall_seconds: float
    images_per_second: float | None
    seconds_by_stage: Mapping[str, float] = field(default_factory=dict)
    failures: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            **dataclasses.asdict(self),
            "seconds_by_stage": dict(self.seconds_by_stage),
            "failures": [{"path": path, "reason": reason} for path, reason in self.failures],
            "notes": list(self.notes),
        }


class RequestOptions(TypedDict, total=False):
    """The arguments of `Request` that hold for each of several backbones of images; texts have `input_options`."""

    model_kwargs: Mapping[str, Any] | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    outputs: Sequence[str] | None
    views: int | None
    view_seed: int | None
    decoder: str | None
    dct_scaling: bool | None
    engine: str | None
    precision: str | None
    dtype: str | None


def build_cache(
    images: str | Path | Listing | Samples,
    cache: CachePlace | None = None,
    *,
    backbone: str | None = None,
    weights: str | Path | None = None,
    download: bool = False,
    store: str | None = None,
    dataset: str | None = None,
    input: str | None = None,
    input_options: Mapping[str, Any] | None = None,
    task: Task | None = None,
    splits: bool = True,
    split_seed: int | None = None,
    prune_missing: bool = False,
    overwrite: bool = False,
    wait_seconds: float = 0.0,
    workers: int | None = None,
    ray: str | None = None,
    actors: int | None = None,
    gpus_per_actor: float = 0.0,
    settings: ExtractSettings | None = None,
    extractor: Extractor | None = None,
    say: Callable[[str], None] = lambda line: None,
    **options: Unpack[RequestOptions],
) -> BuildReport:
    """Bring the cache at `cache` up to date with `images`; return what was done.

    The cache is created on the first build; later builds adopt its Recipe and are refused where they ask for another.
    Killed at any instant, a build loses nothing that was committed, and the next one carries on.

    Parameters
    ----------
    images : path, Listing or Samples
        A folder, CSV, tars or Parquet files, on the disk or by URL (see `featcache.datasets.scan.scan`), or texts (see
        `featcache.datasets.text_scan.scan_texts`), what a scan of it gave, or the samples of another cache.
    cache : path or URL, optional
        By default ``cache_store/NAME``. On object storage (``s3://BUCKET/KEY``) several builds may extend it at once.
    backbone, weights : str, optional
        As for `load_backbone`; by default what the cache has, or the embedded backbone. ``auto``: what the cache has,
        or for a new one the best backbone at hand, which a note names (see `featcache.backbones`).
    download : bool
        Let ``auto`` fetch a better one from the model hub.
    store : {"lmdb", "zarr"}, optional
        Of a new cache; by default LMDB, on object storage Zarr, the only one there.
    dataset : str, optional
        The data set's name, by default the folder's, or what a folder that was moved was called.
    input : str, optional
        What there is to read: ``image``, ``text``, or a kind that was registered; by default what it looks like.
    input_options : mapping, optional
        Settings of that kind: of texts ``text_column``, ``label_column`` (of tables), ``max_length``, ``pooling``,
        ``normalize``, ``prefix`` (see `featcache.backbone.text.load_text_backbone`).
    task : {"classification", "multilabel", "regression"}, optional
        What the labels of a table are for.
    splits : bool
        Whether folders called ``train`` or ``test``, or the column ``split``, say the splits.
    split_seed : int, optional
        Seeds the drawn splits; by default as before, or 0.
    prune_missing : bool
        Free the rows that no sample refers to any more.
    overwrite : bool
        Begin anew: an existing cache, damaged or not, goes with all its rows and data sets.
    wait_seconds : float
        How long to wait for another build on the same cache.
    workers : int, optional
        Threads that decode; by default one per processor.
    ray : str, optional
        The Ray cluster that reads and computes: ``HOST:PORT`` of its head, ``auto``, or ``local`` for one on this
        machine alone. Images and weights must be where its machines can read them; this process writes the rows.
    actors : int, optional
        How many workers in the cluster compute at most; by default as many as it has room for.
    gpus_per_actor : float
        GPUs of each, such as 1 or 0.5; 0: they compute on processors.
    settings : ExtractSettings, optional
        When rows are committed; the rows are the same whatever it says.
    extractor : Extractor, optional
        Rows come from this engine and Recipe (a compressed backbone) instead of a timm backbone. With `ray` it must be
        one that can be pickled.
    say : callable
        Called with each note as soon as it is known, most of them before an image is read.
    **options
        What else a cache can be asked to hold: see `Request`.

    Returns
    -------
    BuildReport
        Counts, times, and the failures with their reasons.

    Raises
    ------
    RecipeMismatchError
        Where another Recipe is asked for than the cache has; it lists every differing field.
    LockedError
        Where another build holds the cache for longer than `wait_seconds`.
    InputError, MissingError
        For images, a backbone or settings that make no sense or are not there, and where another data set of the cache
        has the name, and where no Ray cluster answers.
    ClusterError
        Where the cluster loses what it cannot compute again; what was committed before stays.
    StorageError
        Where the disk refuses; what was committed before stays.

    Examples
    --------
    >>> import featcache
    >>> report = featcache.build_cache("photos", "animals")
    >>> report.extracted, report.failed, report.num_features
    (24, 0, 1024)
    >>> featcache.build_cache("photos", "animals").extracted  # nothing has changed
    0
    """
    started = time.perf_counter()
    listing, named = _listed(images, task, dataset, splits=splits, input=input, options=input_options)
    asked = _of_kind(options, listing.input, input_options)
    work = _Work(
        started,
        listing,
        named,
        True,
        split_seed,
        prune_missing,
        wait_seconds,
        workers,
        ClusterSettings.of(ray, actors, gpus_per_actor),
        settings or default_settings(cache),
        _Notes(say),
        download,
    )
    place = Path("cache_store") / work.wanted.name if cache is None else place_of(cache)
    return _build([(place, _request(backbone, weights, asked), extractor)], work, store=store, overwrite=overwrite)[0]


def build_caches(
    images: str | Path | Listing | Samples,
    cache: CachePlace | None = None,
    *,
    backbone: Sequence[str],
    weights: Sequence[str | Path] | str | Path | None = None,
    store: str | None = None,
    dataset: str | None = None,
    input: str | None = None,
    input_options: Mapping[str, Any] | None = None,
    task: Task | None = None,
    splits: bool = True,
    split_seed: int | None = None,
    prune_missing: bool = False,
    overwrite: bool = False,
    wait_seconds: float = 0.0,
    workers: int | None = None,
    ray: str | None = None,
    actors: int | None = None,
    gpus_per_actor: float = 0.0,
    settings: ExtractSettings | None = None,
    extractors: Mapping[str, Extractor] | None = None,
    say: Callable[[str], None] = lambda line: None,
    **options: Unpack[RequestOptions],
) -> tuple[BuildReport, ...]:
    """Bring one cache for each `backbone` up to date, decoding each image once for all; return what was done in each.

    The cache of BACKBONE is the directory ``CACHE/BACKBONE`` (`cache_directory`), a cache like any other: it can be
    built alone, moved, trained from. Backbones that see an image alike (preprocessing, decoder, views) share its
    pixels, others its decoded image.

    Parameters
    ----------
    images, cache, store, dataset, input, input_options, task, splits, split_seed, prune_missing, overwrite
        As for `build_cache`.
    wait_seconds
        As for `build_cache`.
    workers, ray, actors, gpus_per_actor, settings, say
        As for `build_cache`, and so `**options`; `cache` is the directory that the caches lie in.
    backbone : sequence of str
        One or more distinct names.
    weights : sequence of path or str, or one of them, optional
        One for each backbone, in their order, or ``random:SEED`` for all.
    extractors : mapping, optional
        Backbone → engine and Recipe to take its rows from.

    Returns
    -------
    tuple of BuildReport
        One for each backbone, in their order.

    Raises
    ------
    InputError
        For a backbone that is named twice, weights for some of them only, or a `cache` that is itself a cache; else as
        `build_cache`.

    Examples
    --------
    >>> import featcache
    >>> reports = featcache.build_caches("photos", "several", backbone=["featcache_nano"])
    >>> [report.cache for report in reports]
    ['several/featcache_nano']
    """
    if not backbone or len(set(backbone)) != len(backbone):
        raise InputError(f"--backbone must name one or more distinct backbones, got {list(backbone)!r}")
    if AUTO_BACKBONE in backbone:
        raise InputError(f"--backbone auto chooses one, it must stand alone, got {list(backbone)!r}")
    each = _weights_of_each(backbone, weights)
    started = time.perf_counter()
    listing, named = _listed(images, task, dataset, splits=splits, input=input, options=input_options)
    asked = _of_kind(options, listing.input, input_options)
    work = _Work(
        started,
        listing,
        named,
        False,
        split_seed,
        prune_missing,
        wait_seconds,
        workers,
        ClusterSettings.of(ray, actors, gpus_per_actor),
        settings or default_settings(cache),
        _Notes(say),
    )
    place = Path("cache_store") / work.wanted.name if cache is None else place_of(cache)
    if is_cache(place):
        raise InputError(
            f"CACHE must be a directory for the caches of several backbones, {str(place)!r} is itself a cache: "
            "name another --cache"
        )
    wanted = [
        (cache_directory(place, name), _request(name, one, asked), (extractors or {}).get(name))
        for name, one in zip(backbone, each, strict=True)
    ]
    return tuple(_build(wanted, work, store=store, overwrite=overwrite))


def cache_directory(cache: Place, backbone: str) -> Place:
    """Return where a build of several backbones keeps the cache of one: ``CACHE/BACKBONE``.

    Characters other than letters, digits and ``_ . -``, as in ``hf-hub:timm/resnet50``, stand as %XX of their UTF-8.
    """
    return cache / safe_name(backbone)


def _weights_of_each(backbone: Sequence[str], weights: Sequence[str | Path] | str | Path | None) -> list[Any]:
    listed = [weights] if isinstance(weights, str | Path) else list(weights or [])
    if not listed:
        return [None] * len(backbone)
    if len(listed) == 1 and str(listed[0]).startswith("random:"):
        listed *= len(backbone)
    if len(listed) != len(backbone):
        raise InputError(
            f"--weights must be given once for each of {len(backbone)} backbones, in their order, or be random:SEED "
            f"for all, got {[str(one) for one in listed]!r}"
        )
    return listed


def _request(backbone: str | None, weights: str | Path | None, options: Mapping[str, Any]) -> Request:
    values: dict[str, Any] = dict(options)
    if values.get("outputs") is not None:
        values["outputs"] = tuple(values["outputs"])
    return Request(backbone, None if weights is None else os.fspath(weights), **values)


def _listed(
    images: str | Path | Listing | Samples,
    task: Task | None,
    dataset: str | None,
    *,
    splits: bool,
    input: str | None,
    options: Mapping[str, Any] | None,
) -> tuple[Listing, WantedName]:
    """Return the listing of `images` and what the data set is to be called."""
    if isinstance(images, Samples):
        return images.listing, WantedName(dataset or images.dataset, True)
    if isinstance(images, Listing):
        return images, wanted_name(images.root, dataset)
    kind = find_input(input) if input is not None else input_of(images, options)
    kind.refuse_options(options or {})
    return kind.scan(images, task=task, splits=splits, options=options), wanted_name(images, dataset)


def _of_kind(options: Mapping[str, Any], input: str, chosen: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the arguments of `Request` for inputs of a kind; those of its Recipe alone belong to what is asked for."""
    kind = find_input(input)
    own = kind.chosen(chosen, kind.recipe_options)
    return {**options, "input": None if input == IMAGE else input, "input_options": own or None}


# --- the Recipe -----------------------------------------------------------------------------------------------------


def _open_or_create(
    place: Place,
    request: Request,
    *,
    store: str | None,
    extractor: Extractor | None,
    overwrite: bool,
    wait_seconds: float,
    open_backbone: OpenExtractor,
    auto: AutoBackbone,
) -> tuple[FeatureCache, Extractor | None]:
    """Return the cache, its Recipe checked against the request, and the engine where it had to be opened for that."""
    if overwrite and _is_taken(place):
        return _replace(
            place, request, store=store, extractor=extractor, wait_seconds=wait_seconds, open_backbone=open_backbone,
            auto=auto,
        )  # fmt: skip
    if not _is_taken(place):
        with contextlib.suppress(ExistsError):  # another build has made it meanwhile: it is extended
            return _create(place, request, store=store, extractor=extractor, open_backbone=open_backbone, auto=auto)
    cache = open_cache(place)
    try:
        if extractor is None:
            request = auto.for_existing(request, cache)
            wanted = request.adopting(cache.request)
            memo = resolved_under(wanted, cache.recipe)
            if memo in cache.known_requests():
                return cache, None
            extractor = open_backbone(wanted, adopt=cache.recipe)
            _refuse_other_recipe(cache, extractor.recipe)
            with contextlib.suppress(StorageError):  # a memo only: where nothing can be written it is resolved again
                cache.remember_request(memo)
        else:
            _refuse_other_recipe(cache, extractor.recipe)
    except BaseException:
        cache.close()
        raise
    return cache, extractor


def _is_taken(place: Place) -> bool:
    return is_cache(place) if isinstance(place, ObjectPath) else os.path.lexists(place)


def _create(
    place: Place,
    request: Request,
    *,
    store: str | None,
    extractor: Extractor | None,
    open_backbone: OpenExtractor,
    auto: AutoBackbone,
    overwrite: bool = False,
) -> tuple[FeatureCache, Extractor]:
    request = auto.for_new(request)
    full = dataclasses.replace(
        request, backbone=request.backbone or find_input(request.input or IMAGE).default_backbone
    )
    store = check_kind_at(place, store or ("zarr" if isinstance(place, ObjectPath) else "lmdb"))
    extractor = extractor or open_backbone(full, adopt=None)
    shapes = dict(extractor.engine.columns)
    cache = create_cache(
        place, extractor.recipe, shapes=shapes, store=store, request=full.to_json(), overwrite=overwrite
    )
    cache.remember_request(resolved_under(full, cache.recipe))
    return cache, extractor


def _replace(
    place: Place,
    request: Request,
    *,
    store: str | None,
    extractor: Extractor | None,
    wait_seconds: float,
    open_backbone: OpenExtractor,
    auto: AutoBackbone,
) -> tuple[FeatureCache, Extractor]:
    """Return a new cache in the place of an old one, asked for as that was where it can still be told."""
    if not may_be_cache(place):
        raise InputError(
            f"--overwrite replaces a cache, {str(place)!r} is none or holds other files too: name another --cache"
        )
    wanted = request
    with contextlib.suppress(CorruptError, FormatError):
        wanted = request.adopting(read_manifest(place)["request"])
    create = partial(
        _create, place, wanted, store=store, extractor=extractor, open_backbone=open_backbone, auto=auto, overwrite=True
    )
    if isinstance(place, ObjectPath):  # who writes to the old one goes on to, unseen
        return create()
    (place / "store").mkdir(exist_ok=True)
    with hold_store(place / "store", wait_seconds=wait_seconds):
        return create()


def _refuse_other_recipe(cache: FeatureCache, recipe: Recipe) -> None:
    differences = cache.recipe.differences(recipe)
    if differences:
        listed = "; ".join(
            f"{name}: the cache has {old!r}, this build {new!r}" for name, (old, new) in differences.items()
        )
        raise RecipeMismatchError(
            f"the cache {str(cache.path)!r} must be extended with its own Recipe, got another ({listed}): "
            "name another --cache, or ask for what the cache has"
        )


# --- the samples ----------------------------------------------------------------------------------------------------


class _Notes:
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
class _Work:
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
    notes: _Notes
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


def _build(
    wanted: Sequence[tuple[Place, Request, Extractor | None]], work: _Work, *, store: str | None, overwrite: bool
) -> list[BuildReport]:
    """Open or create the caches, bring them up to date together, and return a report for each."""
    work.notes.add(*work.listing.notes, *notes_on_training(work.listing))
    with contextlib.ExitStack() as opened:
        jobs = []
        auto = AutoBackbone(work.download, work.notes.add)
        elsewhere = work.cluster is not None and work.cluster.address != LOCAL
        for place, request, chosen_extractor in wanted:
            auto.check(request, elsewhere=elsewhere, extractor=chosen_extractor is not None)
            cache, extractor = _open_or_create(
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


def _start(cache: FeatureCache, extractor: Extractor | None, work: _Work) -> _Job:
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


def _bring_up_to_date(jobs: list[_Job], work: _Work) -> None:
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


def _changes_nothing(job: _Job, work: _Work) -> bool:
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


def _is_stored(job: _Job, work: _Work) -> bool:
    return job.samples is not None and same_listing(job.samples, work.listing, seed=job.seed)


def _extract(jobs: Sequence[_Job], work: _Work) -> None:
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


def _extract_here(jobs: Sequence[_Job], work: _Work, paths: Sequence[str | bytes], known: Known | None) -> Extraction:
    from featcache.extract.extraction import Target, extract

    targets = []
    for job in jobs:
        job.extractor = job.extractor or reopen_extractor(job.cache.request, job.cache.recipe)
        _refuse_other_recipe(job.cache, job.extractor.recipe)
        assert job.writer is not None
        targets.append(Target(job.extractor, job.writer))
    return extract(paths, targets, workers=work.workers, settings=work.settings, out=known)


def _extract_there(jobs: Sequence[_Job], work: _Work, paths: Sequence[str | bytes], known: Known | None) -> Extraction:
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


def _store_samples(job: _Job, work: _Work) -> None:
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


def _report(job: _Job, work: _Work) -> BuildReport:
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
