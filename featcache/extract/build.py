"""`build_cache`: bring a cache up to date with a folder of images, at the cost of what changed and nothing more."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from featcache.backbone.choice import AUTO_BACKBONE
from featcache.cache.cache import CachePlace
from featcache.cache.manifest import is_cache
from featcache.datasets.listing import Listing, Task
from featcache.datasets.samples import Samples
from featcache.errors import InputError
from featcache.extract.inputs.interface import Extractor
from featcache.extract.inputs.registry import IMAGE, find_input, input_of
from featcache.extract.naming import WantedName, wanted_name
from featcache.extract.opening import open_extractor
from featcache.extract.report import BuildReport
from featcache.extract.request import Request
from featcache.extract.settings import ExtractSettings, default_settings
from featcache.extract.updating import Notes, Work, update_caches
from featcache.system.cluster import ClusterSettings
from featcache.system.files import safe_name
from featcache.system.objects import Place, place_of

__all__ = ["BuildReport", "Extractor", "Request", "RequestOptions", "build_cache", "build_caches", "open_extractor"]


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
    (24, 0, 1280)
    >>> featcache.build_cache("photos", "animals").extracted  # nothing has changed
    0
    """
    started = time.perf_counter()
    listing, named = _listed(images, task, dataset, splits=splits, input=input, options=input_options)
    asked = _of_kind(options, listing.input, input_options)
    work = Work(
        started, listing, named, alone=True, split_seed=split_seed, prune_missing=prune_missing,
        wait_seconds=wait_seconds, workers=workers, cluster=ClusterSettings.of(ray, actors, gpus_per_actor),
        settings=settings or default_settings(cache), notes=Notes(say), download=download,
    )  # fmt: skip
    place = Path("cache_store") / work.wanted.name if cache is None else place_of(cache)
    return update_caches(
        [(place, _request(backbone, weights, asked), extractor)], work, store=store, overwrite=overwrite
    )[0]


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
    work = Work(
        started, listing, named, alone=False, split_seed=split_seed, prune_missing=prune_missing,
        wait_seconds=wait_seconds, workers=workers, cluster=ClusterSettings.of(ray, actors, gpus_per_actor),
        settings=settings or default_settings(cache), notes=Notes(say),
    )  # fmt: skip
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
    return tuple(update_caches(wanted, work, store=store, overwrite=overwrite))


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
