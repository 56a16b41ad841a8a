"""`extract_on_cluster`: images become committed rows, read and computed by the actors of a Ray cluster.

The images go in shares. On processors an actor carries its share the whole way, from files to rows, as `extract` does
with all of them; where actors have a GPU, tasks on processors anywhere decode, and pixels reach the actors through the
object store. Rows of a cache on a disk come back to this process, which alone writes and commits them. On object
storage each worker commits the rows of its shares itself. A worker that is killed costs its share in work, this process
killed what was not committed.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.cache import open_cache
from featcache.engines import CompiledNetwork
from featcache.errors import FeatcacheError, InputError, RecipeMismatchError
from featcache.extract.collection import Collection, Extraction
from featcache.extract.computed import STAGES, ComputedRows
from featcache.extract.extraction import NewLoader, Target, default_workers, extract
from featcache.extract.inputs.image_loader import ImageLoader, image_columns
from featcache.extract.inputs.interface import Extractor
from featcache.extract.inputs.registry import find_input
from featcache.extract.ledger import ExtractionLedger, Known
from featcache.extract.opening import open_extractor
from featcache.extract.request import Request
from featcache.extract.settings import ExtractSettings
from featcache.images.view_spec import ViewSpec
from featcache.recipe import Recipe
from featcache.store import StoreWriter
from featcache.store.interface import KEY_BYTES, Keys, Rows, Values
from featcache.system.cluster import ClusterSettings
from featcache.system.shares import Share, Stage, Work, path_shares, paths_of, work_through

_BURSTS = 8  # of each thread in a share: the last ones leave threads without work
_LEAST_SHARES = 4  # for each actor, so that none waits long for the last
_SHARE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class ClusterTarget:
    """What rows are computed in a cluster: `open` is called there and gives the engine, whose Recipe must be `recipe`.

    `row_bytes`: of one image, all columns together. `cache`: the URL of one that workers write to themselves, or None.
    """

    open: Callable[[], Extractor]
    recipe: Recipe
    row_bytes: int
    cache: str | None = None

    def open_writer(self) -> StoreWriter | None:
        """Return a writer of the cache that workers write to themselves, if this is such."""
        return None if self.cache is None else open_cache(self.cache).store.writer()

    def opened(self, writer: StoreWriter) -> Target:
        """Return the engine, opened, to compute for `writer`; `RecipeMismatchError` where it computes other rows."""
        extractor = self.open()
        differences = self.recipe.differences(extractor.recipe)
        if differences:
            listed = "; ".join(f"{name}: {old!r} wanted, {new!r} there" for name, (old, new) in differences.items())
            raise RecipeMismatchError(
                f"the cluster must compute what the cache has, a worker computes other rows ({listed}): "
                "use machines alike, or name --engine and --precision for a new --cache"
            )
        return Target(extractor, writer)


def extract_on_cluster(
    ray: Any,
    paths: Sequence[str | bytes],
    targets: Sequence[ClusterTarget],
    writers: Sequence[StoreWriter],
    known: Sequence[Keys],
    cluster: ClusterSettings,
    *,
    settings: ExtractSettings,
    progress: bool = True,
    out: Known | None = None,
) -> Extraction:
    """Compute and commit the rows of the images at `paths` that the targets do not have; return what became of each.

    As `featcache.extract.extraction.extract`, with `writers` for each of `targets`, and the `known` keys of each.
    Raises as that, and `ClusterError` as `work_through`.
    """
    placement = _Placement.of(ray, cluster, settings, targets, len(paths))
    collection = Collection(ExtractionLedger(paths, out), writers, settings, room=4)
    answers = work_through(path_shares(paths, placement.share_size), _stages(ray, targets, known, placement, settings))
    return collection.run([partial(_receive, collection, answers)], progress=progress)


@dataclass(frozen=True, slots=True)
class _Placement:
    """How the work is spread. `threads`: of an actor, and so its processors; `apart`: decoding in tasks of its own."""

    actors: int
    threads: int
    gpus: float
    apart: bool
    share_size: int

    @classmethod
    def of(
        cls, ray: Any, cluster: ClusterSettings, settings: ExtractSettings, targets: Sequence[ClusterTarget], count: int
    ) -> _Placement:
        """Return a placement for `count` images: an actor for each machine, unless told otherwise."""
        actors, threads = cluster.actors_and_processors(ray)
        kind = find_input(targets[0].recipe.input)
        apart = cluster.gpus_per_actor > 0 and kind.decodes_apart
        # where workers commit themselves, a share is a commit, and its rows need not travel
        written = all(target.cache is not None for target in targets)
        input_bytes = 1 if written else sum(target.row_bytes for target in targets)
        if apart:
            input_bytes = kind.prepared_bytes([target.recipe for target in targets])
        most = settings.commit_rows if written else threads * settings.burst * _BURSTS
        share = min(most, max(1, _SHARE_BYTES // input_bytes))
        fair = max(-(-count // (actors * _LEAST_SHARES)), settings.burst)
        return cls(actors, threads, cluster.gpus_per_actor, apart, max(1, min(share, fair)))


def _stages(
    ray: Any,
    targets: Sequence[ClusterTarget],
    known: Sequence[Keys],
    placement: _Placement,
    settings: ExtractSettings,
) -> list[Stage]:
    rows_there = [_KnownKeys.of(ray, keys) for keys in known]
    if not placement.apart:
        whole = _StartExtraction(tuple(targets), tuple(rows_there), placement.threads, settings.burst)
        return [Stage(whole, placement.actors, cpus=placement.threads, gpus=placement.gpus)]
    specs = [ViewSpec.of(target.recipe) for target in targets]
    # An image is decoded for all targets that see it alike as soon as one of them lacks its row.
    shared = {spec: [number for number, other in enumerate(specs) if other == spec] for spec in specs}
    decoding = tuple(
        (targets[numbers[0]].recipe, tuple(rows_there[number] for number in numbers)) for numbers in shared.values()
    )
    return [
        Stage(_StartDecoding(decoding, settings.burst), None, cpus=1),
        Stage(
            _StartNetworks(tuple(targets), tuple(tuple(numbers) for numbers in shared.values())),
            placement.actors, gpus=placement.gpus, calls=2,
        ),
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Described:
    """What `open_extractor_there` brings back of an engine."""

    recipe: Recipe
    columns: tuple[tuple[str, tuple[int, ...]], ...]


def open_extractor_there(ray: Any, request: Request, cluster: ClusterSettings, *, adopt: Recipe | None) -> Extractor:
    """Return the Recipe of what is asked for as the cluster computes it, beside an engine that cannot run here.

    Raises as `open_extractor`.
    """
    resources = {"num_gpus": cluster.gpus_per_actor} if cluster.gpus_per_actor else {"num_cpus": 1}
    try:
        described = ray.get(ray.remote(**resources)(_describe).remote(request, adopt))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, FeatcacheError):
            raise error.cause from error
        raise
    return Extractor(_EngineElsewhere(described.recipe, described.columns), described.recipe)


def _describe(request: Request, adopt: Recipe | None) -> _Described:
    extractor = open_extractor(request, adopt=adopt)
    return _Described(extractor.recipe, extractor.engine.columns)


# --- in this process ------------------------------------------------------------------------------------------------


def _receive(collection: Collection, answers: Iterator[Share]) -> None:
    """Note what became of the images of each share that comes back, and send its rows on to the writers."""
    clock = collection.new_clock()
    first = True
    for share in answers:
        if first:  # the cluster may have taken long to start
            collection.started = time.perf_counter() - share.values["seconds"]
            first = False
        for stage in STAGES:
            clock.seconds[stage] += share.values["stages"][stage]
        fresh = _note(collection.ledger, share)
        clock.start()
        for number in range(len(collection.writers)):
            keys = share.arrays[f"{number}"]
            columns = {
                name.partition(":")[2]: values for name, values in share.arrays.items() if name.startswith(f"{number}:")
            }
            if share.values["written"]:
                collection.count(number, sum(key.tobytes() in fresh for key in keys))
            elif len(keys):
                collection.send(ComputedRows(number, keys, columns), clock)
        if collection.stop.is_set():
            break


def _note(ledger: ExtractionLedger, share: Share) -> set[bytes]:
    """Note what became of each image of a share; return the digests computed in it that come for the first time."""
    fresh = set()
    start = share.values["start"]
    failures = {int(position): reason for position, reason in share.values["failures"].items()}
    computed = {key.tobytes() for name, keys in share.arrays.items() if name.isdecimal() for key in keys}
    digests, stats = share.arrays["digests"], share.arrays["stats"]
    for position, (digest, stat) in enumerate(zip(digests, stats.tolist(), strict=True)):
        index, key, reason = start + position, digest.tobytes(), failures.get(position)
        if reason is not None and not any(stat):
            ledger.fail(index, reason)  # it could not be read
        elif ledger.note(index, key, tuple(stat)):
            if reason is not None:
                ledger.fail(index, reason)
            elif key in computed:
                ledger.finish(index)
                fresh.add(key)
            else:
                ledger.reuse(index)
    return fresh


# --- in the workers -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _KnownKeys:
    """The keys that a store had at the start, sorted, in the object store; `reference`: None where there are none."""

    reference: Any

    @classmethod
    def of(cls, ray: Any, keys: Keys) -> _KnownKeys:
        return cls(ray.put(np.sort(_as_texts(keys))) if len(keys) else None)

    def get(self) -> npt.NDArray[np.bytes_]:
        import ray

        return np.zeros(0, dtype=f"S{KEY_BYTES}") if self.reference is None else ray.get(self.reference)


def _as_texts(keys: Keys) -> npt.NDArray[np.bytes_]:
    # all are of one length, so that zeros at their ends, which such texts leave out, do not make two of them equal
    return np.ascontiguousarray(keys).view(f"S{KEY_BYTES}").reshape(-1)


class _ShareWriter(StoreWriter):
    """The rows of one share: kept for whoever writes them, or handed on to the writer `into` of this worker.

    `known`: the keys of rows that are there, where `into` does not know it.
    """

    def __init__(self, known: npt.NDArray[np.bytes_], into: StoreWriter | None = None) -> None:
        self._known, self._into = known, into
        self._keys: list[Keys] = []
        self._columns: dict[str, list[Values]] = {}

    def append(self, keys: Keys, columns: Mapping[str, Values]) -> int:
        self._keys.append(keys)
        if self._into is not None:
            return self._into.append(keys, columns)
        for name, values in columns.items():
            self._columns.setdefault(name, []).append(values)
        return len(keys)

    def find(self, keys: Keys) -> Rows:
        if self._into is not None:
            return self._into.find(keys)
        texts = _as_texts(keys)
        places = np.searchsorted(self._known, texts)
        found = self._known[np.minimum(places, len(self._known) - 1)] == texts if len(self._known) else False
        return np.where(found, places, -1)

    def drop(self, keys: Keys) -> int:
        raise InputError("rows on their way must not be dropped")

    def __len__(self) -> int:
        return len(self._known) if self._into is None else len(self._into)

    def commit(self) -> None:
        if self._into is not None:
            self._into.commit()

    def close(self) -> None:
        """Nothing is held."""

    @property
    def hands_on(self) -> bool:
        """Whether rows go to a writer of this worker."""
        return self._into is not None

    def arrays(self, number: int) -> dict[str, npt.NDArray[Any]]:
        """Return the keys, called ``NUMBER``, and each column, called ``NUMBER:COLUMN``."""
        keys = np.concatenate(self._keys) if self._keys else np.zeros((0, KEY_BYTES), dtype=np.uint8)
        return {
            f"{number}": keys,
            **{f"{number}:{name}": np.concatenate(parts) for name, parts in self._columns.items()},
        }


@dataclass(frozen=True, slots=True)
class _StartExtraction:
    """Opens the engines in an actor that carries its shares from files to rows."""

    targets: tuple[ClusterTarget, ...]
    known: tuple[_KnownKeys, ...]
    threads: int
    burst: int

    def __call__(self) -> Work:
        known = [keys.get() for keys in self.known]
        into = [target.open_writer() for target in self.targets]
        opened = [target.opened(_ShareWriter(keys)) for target, keys in zip(self.targets, known, strict=True)]
        engines = [target.extractor.engine for target in opened]

        def work(share: Share) -> Share:
            writers = [_ShareWriter(keys, writer) for keys, writer in zip(known, into, strict=True)]
            targets = [Target(target.extractor, writer) for target, writer in zip(opened, writers, strict=True)]
            return _extracted(share, targets, writers, default_workers(engines, processors=self.threads), self.burst)

        return work


@dataclass(frozen=True, slots=True)
class _StartDecoding:
    """Decodes in a task, once for each Recipe and the stores of all that see images alike."""

    specs: tuple[tuple[Recipe, tuple[_KnownKeys, ...]], ...]
    burst: int

    def __call__(self) -> Work:
        known = [_in_all([keys.get() for keys in group]) for _, group in self.specs]

        def work(share: Share) -> Share:
            writers = [_ShareWriter(keys) for keys in known]
            targets = [
                Target(Extractor(_EngineElsewhere(recipe), recipe), writer)
                for (recipe, _), writer in zip(self.specs, writers, strict=True)
            ]
            return _extracted(share, targets, writers, 1, self.burst, partial(ImageLoader, columns=_pixels))

        return work


@dataclass(frozen=True, slots=True)
class _StartNetworks:
    """Opens the engines in an actor that is given pixels; `groups`: the targets of each kind of pixels."""

    targets: tuple[ClusterTarget, ...]
    groups: tuple[tuple[int, ...], ...]

    def __call__(self) -> Work:
        nothing = np.zeros(0, dtype=f"S{KEY_BYTES}")
        into = [target.open_writer() for target in self.targets]
        opened = [target.opened(_ShareWriter(nothing)) for target in self.targets]
        alone = threading.Lock()  # a writer is for one thread, and this actor has several

        def work(share: Share) -> Share:
            started = time.perf_counter()
            arrays = {name: share.arrays[name] for name in ("digests", "stats")}
            for place, numbers in enumerate(self.groups):
                keys, pixels = share.arrays[f"{place}"], share.arrays.get(f"{place}:pixels")
                for number in numbers:
                    writer = _ShareWriter(nothing, into[number])
                    if pixels is not None:
                        # an engine may want memory that it could write to
                        flat = np.array(pixels).reshape(-1, *pixels.shape[2:])
                        columns = image_columns(opened[number].extractor, flat, len(keys))
                        with alone:
                            writer.append(keys, columns)
                            writer.commit()
                    arrays.update(writer.arrays(number))
            seconds = time.perf_counter() - started
            changed = {
                "stages": {**share.values["stages"], "network": seconds},
                "seconds": share.values["seconds"] + seconds,
                "written": into[0] is not None,
            }
            return Share({**share.values, **changed}, arrays)

        return work


def _extracted(
    share: Share,
    targets: Sequence[Target],
    writers: Sequence[_ShareWriter],
    workers: int,
    burst: int,
    new_loader: NewLoader | None = None,
) -> Share:
    started = time.perf_counter()
    # all at the end, in one commit: before, a share is not done
    settings = ExtractSettings(commit_rows=sys.maxsize, commit_seconds=math.inf, burst=burst)
    extraction = extract(
        paths_of(share), targets, workers=workers, settings=settings, progress=False, new_loader=new_loader
    )
    values = {
        "start": share.values["start"],
        "failures": {str(position): reason for position, reason in extraction.failures.items()},
        "stages": extraction.seconds_by_stage,
        "seconds": time.perf_counter() - started,
        "written": any(writer.hands_on for writer in writers),
    }
    arrays: dict[str, npt.NDArray[Any]] = {"digests": extraction.digests, "stats": extraction.stats}
    for number, writer in enumerate(writers):
        arrays.update(writer.arrays(number))
    return Share(values, arrays)


def _in_all(known: Sequence[npt.NDArray[np.bytes_]]) -> npt.NDArray[np.bytes_]:
    common = known[0]
    for keys in known[1:]:
        common = np.intersect1d(common, keys)
    return common


class _EngineElsewhere(CompiledNetwork):
    """Stands for an engine that is not in this process."""

    version, batch_size, workers = "0", 1, 1

    def __init__(self, recipe: Recipe, columns: tuple[tuple[str, tuple[int, ...]], ...] = ()) -> None:
        self.name, self.precision, self.columns = "elsewhere", recipe.precision, columns

    def _release(self) -> None:
        """Nothing is held."""


def _pixels(extractor: Extractor, pixels: npt.NDArray[np.uint8], count: int) -> dict[str, npt.NDArray[Any]]:
    """Return the pixels of all views as rows, for a network elsewhere."""
    views = extractor.recipe.views
    return {"pixels": pixels[: count * views].reshape(count, views, *pixels.shape[1:]).copy()}
