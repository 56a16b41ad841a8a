"""`build_cache`: bring a cache up to date with a folder of images, at the cost of what changed and nothing more.

The order of questions is the order of costs: did any file's stat change (no bytes read)? is the digest of the changed
bytes known (no network)? only then are a backbone loaded and rows extracted. Labels and splits never cost a row.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featcache.cache import FeatureCache, create_cache, open_cache
from featcache.errors import InputError, RecipeMismatchError
from featcache.recipe import Recipe, canonical_json
from featcache.samples import Listing, Samples, Task, assign_splits, printable
from featcache.scan import scan
from featcache.store import StoreWriter

if TYPE_CHECKING:
    from featcache.engines import Engine

DEFAULT_BACKBONE = "mobilenetv2_100"
RACY_NANOSECONDS = 2_000_000_000  # a file changed this close to the last scan may have changed after it (git's rule)
_ENGINE_PACKAGES = {"openvino": "openvino", "onnxruntime": "onnxruntime", "torch": "torch"}


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did. Times in seconds; `images_per_second` is extracted / extract_seconds, None where nothing was.

    `extracted`: rows computed now. `reused`: images whose row was there already (equal images count here too).
    `failed`: images without a row, each with a recorded reason. `seconds_by_stage`: busy time of decode, network, ….
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

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            **dataclasses.asdict(self),
            "seconds_by_stage": dict(self.seconds_by_stage),
            "failures": [{"path": path, "reason": reason} for path, reason in self.failures],
        }


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks a cache to hold; None means "as the cache has it", or the default for a new one.

    `backbone`: timm name or ``hf-hub:`` id. `weights`: a ``.safetensors`` file, ``random:SEED``, or None for the hub.
    `mean`, `std`: per channel, instead of the backbone's own. `outputs`: names of what to store. `views`: stored views
    per image, `view_seed` seeding all but the plain one. `decoder`: ``fast`` or ``pillow``. `engine`: ``openvino``,
    ``onnxruntime``, ``torch``; `precision`: ``fp32``, ``bf16``, …; `dtype`: ``float16`` or ``float32``.
    """

    backbone: str | None = None
    weights: str | None = None
    model_kwargs: Mapping[str, Any] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    outputs: tuple[str, ...] | None = None
    views: int | None = None
    view_seed: int | None = None
    decoder: str | None = None
    dct_scaling: bool | None = None
    engine: str | None = None
    precision: str | None = None
    dtype: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, a weights file as its absolute path."""
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        if self.weights is not None and not self.weights.startswith("random:"):
            values["weights"] = os.path.abspath(self.weights)
        return {name: value for name, value in values.items() if value is not None}

    def adopting(self, stored: Mapping[str, Any]) -> Request:
        """Return this request with what it leaves open taken from a cache's stored one.

        Naming another backbone leaves nothing of the stored backbone's weights and options to adopt.
        """
        mine = self.to_json()
        tied = {"weights", "model_kwargs", "mean", "std", "outputs"}
        if "backbone" in mine and mine["backbone"] != stored.get("backbone"):
            stored = {name: value for name, value in stored.items() if name not in tied}
        return Request.from_json({**stored, **mine})

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Request:
        """Return the request that `to_json` wrote."""
        tuples = {name: tuple(values[name]) for name in ("mean", "std", "outputs") if name in values}
        return cls(**{**values, **tuples})


@dataclass(frozen=True, slots=True)
class Extractor:
    """An opened engine and the Recipe of the rows it computes."""

    engine: Engine
    recipe: Recipe


def build_cache(
    images: str | Path | Samples,
    cache: str | Path | None = None,
    *,
    backbone: str | None = None,
    weights: str | Path | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    outputs: Sequence[str] | None = None,
    views: int | None = None,
    view_seed: int | None = None,
    decoder: str | None = None,
    dct_scaling: bool | None = None,
    engine: str | None = None,
    precision: str | None = None,
    dtype: str | None = None,
    store: str = "lmdb",
    dataset: str | None = None,
    task: Task | None = None,
    split_seed: int | None = None,
    prune_missing: bool = False,
    wait_seconds: float = 0.0,
    workers: int | None = None,
    extractor: Extractor | None = None,
) -> BuildReport:
    """Bring the cache at `cache` (default ``cache_store/NAME``) up to date with `images`; return what was done.

    The cache is created on the first build; later builds adopt its Recipe and are refused where they ask for another
    (`RecipeMismatchError` lists every differing field). Killed at any instant, a build loses nothing that was
    committed, and the next one carries on. See `Request` for the arguments up to `dtype`.

    `images`: a folder or CSV (`featcache.scan.scan`), or the `Samples` of another cache. `store`: ``lmdb`` or ``zarr``,
    for a new cache. `dataset`: its name, default the folder's. `split_seed`: seeds the drawn splits.
    `prune_missing`: free the rows that no sample refers to any more. `wait_seconds`: how long to wait for another
    build on the same cache before `LockedError`. `workers`: decoding threads. `extractor`: rows come from this engine
    and Recipe (a compressed backbone) instead of a timm backbone.
    """
    started = time.perf_counter()
    request = Request(
        backbone, None if weights is None else os.fspath(weights), model_kwargs, mean, std,
        None if outputs is None else tuple(outputs), views, view_seed, decoder, dct_scaling, engine, precision, dtype,
    )  # fmt: skip
    listing = images.listing if isinstance(images, Samples) else scan(images, task=task)
    name = dataset or (images.dataset if isinstance(images, Samples) else Path(os.path.abspath(images)).stem)
    place = Path("cache_store") / name if cache is None else Path(cache)
    opened, extractor = _open_or_create(place, request, store=store, extractor=extractor)
    try:
        return _bring_up_to_date(
            opened, listing, dataset=name, split_seed=split_seed, extractor=extractor, prune_missing=prune_missing,
            wait_seconds=wait_seconds, workers=workers, started=started,
        )  # fmt: skip
    finally:
        opened.close()


# --- the Recipe -----------------------------------------------------------------------------------------------------


def _open_or_create(
    place: Path, request: Request, *, store: str, extractor: Extractor | None
) -> tuple[FeatureCache, Extractor | None]:
    """Return the cache, its Recipe checked against the request, and the engine where it had to be opened for that."""
    if not os.path.lexists(place):
        extractor = extractor or open_extractor(
            dataclasses.replace(request, backbone=request.backbone or DEFAULT_BACKBONE)
        )
        shapes = dict(extractor.engine.columns)
        full = Request(**{**_fields(request), "backbone": request.backbone or DEFAULT_BACKBONE})
        cache = create_cache(place, extractor.recipe, shapes=shapes, store=store, request=full.to_json())
        cache.remember_request(_with_environment(full, cache.recipe))
        return cache, extractor
    cache = open_cache(place)
    try:
        if extractor is None:
            wanted = request.adopting(cache.request)
            memo = _with_environment(wanted, cache.recipe)
            if memo in cache.known_requests():
                return cache, None
            extractor = open_extractor(wanted, adopt=cache.recipe)
            _refuse_other_recipe(cache, extractor.recipe)
            cache.remember_request(memo)
        else:
            _refuse_other_recipe(cache, extractor.recipe)
    except BaseException:
        cache.close()
        raise
    return cache, extractor


def _fields(request: Request) -> dict[str, Any]:
    return {name: getattr(request, name) for name in Request.__dataclass_fields__}


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


def _with_environment(request: Request, recipe: Recipe) -> dict[str, Any]:
    """Return `request` and what else its Recipe depends on: package versions, the weights file's size and mtime."""
    environment: dict[str, Any] = {"timm": importlib.metadata.version("timm")}
    package = _ENGINE_PACKAGES[recipe.engine]
    environment[package] = importlib.metadata.version(package)
    values = request.to_json()
    weights = values.get("weights")
    if weights is not None and not weights.startswith("random:"):
        try:
            status = os.stat(weights)
        except OSError:
            environment["weights_file"] = None  # the full path will say what is wrong with it
        else:
            environment["weights_file"] = [status.st_size, status.st_mtime_ns]
    memo: dict[str, Any] = json.loads(canonical_json({"request": values, "environment": environment}))
    return memo


def open_extractor(request: Request, *, adopt: Recipe | None = None) -> Extractor:
    """Return the engine and Recipe of what is asked for; `adopt`: whose engine, precision, … to keep if left open."""
    from featcache.backbone import load_backbone
    from featcache.engines import open_engine

    if request.backbone is None:
        raise InputError("a backbone must be named: --backbone NAME")
    backbone = load_backbone(
        request.backbone,
        weights=request.weights,
        model_kwargs=request.model_kwargs,
        mean=request.mean,
        std=request.std,
        outputs=request.outputs or ("features",),
    )
    engine = open_engine(
        backbone,
        engine=request.engine or (adopt.engine if adopt else "auto"),
        precision=request.precision or (adopt.precision if adopt else "auto"),
    )
    recipe = Recipe(
        model=backbone.model_name,
        model_kwargs=backbone.model_kwargs,
        model_digest=None,
        weights_sha256=backbone.weights_sha256,
        outputs=backbone.outputs,
        preprocessing=backbone.preprocessing,
        decoder=request.decoder or (adopt.decoder if adopt else "fast"),  # type: ignore[arg-type]
        dct_scaling=_first(request.dct_scaling, adopt and adopt.dct_scaling, False),
        orientation="exif",
        views=_first(request.views, adopt and adopt.views, 1),
        view_seed=_first(request.view_seed, adopt and adopt.view_seed, 0),
        engine=engine.name,
        engine_version=engine.version,
        precision=engine.precision,
        dtype=request.dtype or (adopt.dtype if adopt else "float16"),  # type: ignore[arg-type]
        weights=backbone.weights_label,
    )
    return Extractor(engine, recipe)


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


# --- the samples ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Plan:
    """Which samples are known from before, and what the others turn out to be."""

    digests: npt.NDArray[np.uint8]
    stats: npt.NDArray[np.int64]
    failures: dict[int, str]
    todo: list[int]


def _bring_up_to_date(
    cache: FeatureCache,
    listing: Listing,
    *,
    dataset: str,
    split_seed: int | None,
    extractor: Extractor | None,
    prune_missing: bool,
    wait_seconds: float,
    workers: int | None,
    started: float,
) -> BuildReport:
    before = cache.samples(dataset) if dataset in cache.datasets else None
    seed = _first(split_seed, before.split_seed if before else None, 0)
    plan = _plan(cache, listing, before)
    extraction = None
    startup = time.perf_counter() - started
    pruned = 0
    if plan.todo or prune_missing or before is None or not _same(before, listing, seed):
        with cache.store.writer(wait_seconds=wait_seconds) as writer:
            _hash_known(listing, plan, writer)
            if plan.todo:
                extractor = extractor or open_extractor(Request.from_json(cache.request), adopt=cache.recipe)
                _refuse_other_recipe(cache, extractor.recipe)
                startup = time.perf_counter() - started
                extraction = _extract(listing, plan, extractor, writer, workers=workers)
            updated = dataclasses.replace(listing, stats=plan.stats)
            splits = assign_splits(updated, plan.digests, seed=seed)
            cache.replace_samples(Samples(dataset, updated, plan.digests, splits, plan.failures, seed))
            if prune_missing:
                pruned = _drop_unreferenced(cache, writer)
    with cache.reader() as reader:
        rows = len(reader)
    extracted = extraction.extracted if extraction else 0
    seconds = extraction.extract_seconds if extraction else 0.0
    failed = len(plan.failures) + len(listing.failures)
    return BuildReport(
        cache=str(cache.path),
        dataset=dataset,
        images=len(listing),
        ignored=listing.ignored,
        extracted=extracted,
        reused=len(listing) - len(plan.failures) - extracted,
        failed=failed,
        pruned=pruned,
        rows=rows,
        num_features=cache.num_features,
        fingerprint=cache.fingerprint,
        weights=cache.recipe.weights,
        random_weights=cache.recipe.random_weights,
        startup_seconds=startup,
        extract_seconds=seconds,
        wall_seconds=time.perf_counter() - started,
        images_per_second=extracted / seconds if extracted else None,
        seconds_by_stage=extraction.seconds_by_stage if extraction else {},
        failures=tuple(
            (printable(path), reason)
            for path, reason in [
                *((listing.paths[index], reason) for index, reason in sorted(plan.failures.items())),
                *listing.failures,
            ]
        ),
    )


def _plan(cache: FeatureCache, listing: Listing, before: Samples | None) -> _Plan:
    """Return what is known without reading a byte: files whose stat did not change since they were hashed."""
    n = len(listing)
    digests = np.zeros((n, 32), dtype=np.uint8)
    failures: dict[int, str] = {}
    known = np.zeros(n, dtype=bool)
    if before is not None and len(before):
        settled = before.listing.stats[:, 1:3].max(axis=1) < before.listing.scanned_ns - RACY_NANOSECONDS
        if before.paths == listing.paths:
            known = settled & (before.listing.stats == listing.stats).all(axis=1)
            source = np.arange(n)
        else:
            # size, mtime, ctime and inode together name a file's content whatever it is called now
            place = {row.tobytes(): i for i, row in enumerate(before.listing.stats) if settled[i]}
            source = np.array([place.get(row.tobytes(), -1) for row in listing.stats], dtype=np.int64)
            known = source >= 0
        digests[known] = before.digests[source[known]]
        for index in np.flatnonzero(known).tolist():
            reason = before.failures.get(int(source[index])) if before.failures else None
            if reason is not None:
                failures[index] = reason
    decoded = known.copy()
    decoded[list(failures)] = False
    with cache.reader() as reader:
        decoded_indices = np.flatnonzero(decoded)
        missing = decoded_indices[reader.find(digests[decoded_indices]) < 0]
    known[missing] = False  # the row was dropped by a repair or a prune
    return _Plan(digests, listing.stats.copy(), failures, np.flatnonzero(~known).tolist())


def _same(before: Samples, listing: Listing, seed: int) -> bool:
    old = before.listing
    return (
        before.split_seed == seed
        and old.root == listing.root
        and old.task == listing.task
        and old.classes == listing.classes
        and old.paths == listing.paths
        and np.array_equal(old.labels, listing.labels)
        and np.array_equal(old.given_splits, listing.given_splits)
        and (old.targets is None) == (listing.targets is None)
        and (old.targets is None or np.array_equal(old.targets, listing.targets, equal_nan=True))  # type: ignore[arg-type]
        and old.failures == listing.failures
        and old.ignored == listing.ignored
    )


def _hash_known(listing: Listing, plan: _Plan, writer: StoreWriter) -> None:
    """Hash changed files up to the first whose row is missing; those before it need no network.

    So renamed and re-labelled folders never load a backbone, and a build that has to extract reads no file twice but
    that one.
    """
    if len(writer) == 0:
        return
    for done, index in enumerate(plan.todo):
        try:
            with open(listing.absolute(index), "rb") as file:
                status = os.fstat(file.fileno())
                digest = hashlib.file_digest(file, "sha256").digest()
        except OSError:
            del plan.todo[:done]
            return  # extraction records the reason
        if digest not in writer:
            del plan.todo[:done]
            return
        plan.digests[index] = np.frombuffer(digest, dtype=np.uint8)
        plan.stats[index] = status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
    plan.todo.clear()


def _extract(listing: Listing, plan: _Plan, extractor: Extractor, writer: StoreWriter, *, workers: int | None) -> Any:
    from featcache.extract import Target, extract

    extraction = extract(
        [listing.absolute(index) for index in plan.todo],
        [Target(extractor.engine, extractor.recipe, writer)],
        workers=workers,
    )
    plan.digests[plan.todo] = extraction.digests
    plan.stats[plan.todo] = extraction.stats
    for position, reason in extraction.failures.items():
        plan.failures[plan.todo[position]] = reason
    return extraction


def _drop_unreferenced(cache: FeatureCache, writer: StoreWriter) -> int:
    """Free the rows whose digest no sample of any data set has; return how many there were."""
    live = {key.tobytes() for key in cache.referenced()}
    with cache.reader() as reader:
        keys = np.ascontiguousarray(reader.keys())
        unused = np.array([key.tobytes() not in live for key in keys], dtype=bool)
        dead = keys[unused]
    dropped = writer.drop(dead)
    writer.commit()
    return dropped
