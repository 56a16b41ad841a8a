"""`extract`: images become committed rows. The only meeting of images, engine and store.

Worker threads read, hash, decode and resize; this thread runs the network and hands the rows to the writer. Decoding
and the network release the GIL, so they overlap. Batches have a fixed shape and rows are computed one image each, so a
row does not depend on its neighbours, on the order, or on an interruption.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from featcache.cache import column_name
from featcache.engines import Engine
from featcache.errors import ImageError, InputError
from featcache.images import decode, resize_crop
from featcache.recipe import Preprocessing, Recipe
from featcache.store import StoreWriter
from featcache.views import draw_view

COMMIT_SECONDS = 5.0
COMMIT_ROWS = 4096
_LARGEST_FLOAT16 = 65504.0


@dataclass(frozen=True, slots=True)
class Target:
    """Where rows go: the engine that computes them, their Recipe, and the writer of their store."""

    engine: Engine
    recipe: Recipe
    writer: StoreWriter


@dataclass(frozen=True, slots=True)
class Extraction:
    """What became of n images, in the order of their paths.

    `digests` (n, 32) uint8: sha256 of the bytes, zeros where they could not be read. `stats` (n, 4) int64: size,
    mtime_ns, ctime_ns, inode of the file that was read. `failures`: index → reason. `extracted`: rows computed (of
    the target with the most). `reused`: images whose row was there or came with an equal image. `extract_seconds`: the
    first file opened to last commit fsynced. `seconds_by_stage`: busy time of ``read``, ``decode``, ``resize`` (of all
    threads), ``network``, ``write``, and ``wait``: the network idle for lack of images.
    """

    digests: npt.NDArray[np.uint8]
    stats: npt.NDArray[np.int64]
    failures: dict[int, str]
    extracted: int
    reused: int
    extract_seconds: float
    seconds_by_stage: dict[str, float]


@dataclass(frozen=True, slots=True)
class _Shape:
    """What images of several targets have to agree in to share one decode and resize."""

    preprocessing: Preprocessing
    decoder: str
    dct_scaling: bool
    views: int
    view_seed: int


@dataclass(slots=True)
class _Loaded:
    """One image read and decoded: pixels (views, height, width, 3) for each distinct preprocessing."""

    index: int
    digest: bytes | None
    stat: tuple[int, int, int, int]
    pixels: dict[_Shape, npt.NDArray[np.uint8]] | None
    failure: str | None
    wanted: tuple[int, ...] = ()


class _Clock:
    """Busy seconds by stage, added to from several threads."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("read", "decode", "resize", "network", "write", "wait"), 0.0)
        self._lock = threading.Lock()

    def add(self, stage: str, started: float) -> float:
        """Count the time since `started` to `stage`; return the time now."""
        now = time.perf_counter()
        with self._lock:
            self.seconds[stage] += now - started
        return now


class _Claims:
    """Which digests of this run are taken, for each target: equal images are decoded once."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self._writers = [target.writer for target in targets]
        self._taken: set[bytes] = set()
        self._lock = threading.Lock()

    def claim(self, digest: bytes) -> tuple[int, ...]:
        """Return the targets that still need the row of `digest`, and take it for the caller."""
        with self._lock:
            if digest in self._taken:
                return ()
            wanted = tuple(i for i, writer in enumerate(self._writers) if digest not in writer)
            if wanted:
                self._taken.add(digest)
            return wanted

    def settle(self, digests: Sequence[bytes]) -> None:
        """Forget digests whose rows the writers know by now, so that memory does not grow with the images."""
        with self._lock:
            self._taken.difference_update(digests)


@dataclass(slots=True)
class _Batch:
    """Rows waiting for one target's engine: its input, and whose pixels lie in which slot."""

    target: Target
    shape: _Shape
    input: npt.NDArray[np.uint8]
    keys: list[bytes] = field(default_factory=list)

    @property
    def per_run(self) -> int:
        """Images that fit into one run of the engine, with all their views."""
        return max(1, self.target.engine.batch_size // self.shape.views)


def extract(paths: Sequence[str], targets: Sequence[Target], *, workers: int | None = None) -> Extraction:
    """Compute and commit the rows of the images at `paths` that the targets do not have; return what became of each.

    Several targets share one read and, where their preprocessing is the same, one decode. Rows are committed every 5 s
    or 4096 rows. An image that cannot be read or decoded is one recorded failure. `workers`: decoding threads, default
    one per core.

    Raises `StorageError` where the disk refuses and `InputError` where a feature is beyond float16; what was committed
    before stays. An interrupt commits what is computed, then goes on its way.
    """
    threads = workers or usable_cores()
    if threads < 1:
        raise InputError(f"workers must be at least 1, got {workers!r}")
    n = len(paths)
    digests, stats = np.zeros((n, 32), dtype=np.uint8), np.zeros((n, 4), dtype=np.int64)
    failures: dict[int, str] = {}
    clock, claims = _Clock(), _Claims(targets)
    shapes = [_shape(target.recipe) for target in targets]
    batches = [_new_batch(target, shape) for target, shape in zip(targets, shapes, strict=True)]
    counts = [0] * len(targets)
    reused = 0
    started = last_commit = time.perf_counter()
    uncommitted = 0
    try:
        with tqdm(total=n, desc="features", unit="image", disable=None) as bar:
            for loaded in _load_all(paths, shapes, claims, clock, threads):
                bar.update()
                stats[loaded.index] = loaded.stat
                if loaded.digest is not None:
                    digests[loaded.index] = np.frombuffer(loaded.digest, dtype=np.uint8)
                if loaded.failure is not None:
                    failures[loaded.index] = loaded.failure
                elif not loaded.wanted:
                    reused += 1
                for number in loaded.wanted if loaded.pixels is not None else ():
                    batch = batches[number]
                    _fill(batch, loaded)
                    if len(batch.keys) == batch.per_run:
                        uncommitted += len(batch.keys)
                        counts[number] += _flush(batch, clock, claims if number == len(targets) - 1 else None)
                if uncommitted >= COMMIT_ROWS or time.perf_counter() - last_commit > COMMIT_SECONDS:
                    last_commit = _commit(targets, clock)
                    uncommitted = 0
    finally:
        # also on an interrupt: what is computed is kept
        for number, batch in enumerate(batches):
            counts[number] += _flush(batch, clock, None)
        _commit(targets, clock)
    return Extraction(
        digests, stats, failures, max(counts, default=0), reused, time.perf_counter() - started, dict(clock.seconds)
    )


def usable_cores() -> int:
    """Return the processor cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _shape(recipe: Recipe) -> _Shape:
    return _Shape(recipe.preprocessing, recipe.decoder, recipe.dct_scaling, recipe.views, recipe.view_seed)


def _new_batch(target: Target, shape: _Shape) -> _Batch:
    size = shape.preprocessing
    slots = max(target.engine.batch_size, shape.views)
    return _Batch(target, shape, np.zeros((slots, size.height, size.width, 3), dtype=np.uint8))


def _load_all(
    paths: Sequence[str], shapes: Sequence[_Shape], claims: _Claims, clock: _Clock, threads: int
) -> Iterator[_Loaded]:
    """Yield every image in order, a bounded number of them loaded ahead by `threads` threads."""
    ahead = 32 + 4 * threads
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        queue: deque[Future[_Loaded]] = deque()
        upcoming = iter(range(len(paths)))
        try:
            while True:
                while len(queue) < ahead and (index := next(upcoming, None)) is not None:
                    queue.append(pool.submit(_load, index, paths[index], shapes, claims, clock))
                if not queue:
                    return
                begun = time.perf_counter()
                loaded = queue.popleft().result()
                clock.add("wait", begun)
                yield loaded
        finally:
            for future in queue:
                future.cancel()


def _load(index: int, path: str, shapes: Sequence[_Shape], claims: _Claims, clock: _Clock) -> _Loaded:
    """Read, hash, and where a target needs it decode one image."""
    begun = time.perf_counter()
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            data = file.read()
    except OSError as error:
        return _Loaded(index, None, (0, 0, 0, 0), None, f"cannot be read: {error.strerror}")
    stat = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    digest = hashlib.sha256(data).digest()
    begun = clock.add("read", begun)
    wanted = claims.claim(digest)
    if not wanted:
        return _Loaded(index, digest, stat, None, None)
    pixels: dict[_Shape, npt.NDArray[np.uint8]] = {}
    try:
        for shape in {shapes[number] for number in wanted}:
            size = shape.preprocessing
            begun = time.perf_counter()
            min_side = size.resize if shape.dct_scaling and size.crop_mode == "center" else None
            image = decode(data, decoder=shape.decoder, min_side=min_side)  # type: ignore[arg-type]
            begun = clock.add("decode", begun)
            made = np.empty((shape.views, size.height, size.width, 3), dtype=np.uint8)
            for number in range(shape.views):
                view = draw_view(shape.view_seed, digest, number)
                resize_crop(image, size, decoder=shape.decoder, view=view, out=made[number])  # type: ignore[arg-type]
            clock.add("resize", begun)
            pixels[shape] = made
    except ImageError as error:
        claims.settle([digest])
        return _Loaded(index, digest, stat, None, str(error))
    return _Loaded(index, digest, stat, pixels, None, wanted)


def _fill(batch: _Batch, loaded: _Loaded) -> None:
    assert loaded.pixels is not None
    assert loaded.digest is not None
    views = batch.shape.views
    slot = len(batch.keys) * views
    batch.input[slot : slot + views] = loaded.pixels[batch.shape]
    batch.keys.append(loaded.digest)


def _flush(batch: _Batch, clock: _Clock, claims: _Claims | None) -> int:
    """Compute the rows waiting in `batch` and append them; return how many there were."""
    count = len(batch.keys)
    if not count:
        return 0
    engine, recipe, views = batch.target.engine, batch.target.recipe, batch.shape.views
    begun = time.perf_counter()
    parts: list[list[npt.NDArray[np.float32]]] = []
    for start in range(0, count * views, engine.batch_size):
        part = batch.input[start : start + engine.batch_size]
        if len(part) < engine.batch_size:  # more views than the engine's batch: the last run is padded
            part = np.concatenate([part, np.zeros((engine.batch_size - len(part), *part.shape[1:]), dtype=np.uint8)])
        parts.append([output.copy() for output in engine.run(part)])
    begun = clock.add("network", begun)
    columns = {}
    for position, (name, shape) in enumerate(engine.columns):
        rows = np.concatenate([part[position] for part in parts])[: count * views].reshape(count, views, *shape)
        if recipe.dtype == "float16" and not np.abs(rows).max() <= _LARGEST_FLOAT16:
            raise InputError(
                f"output {name!r} must fit into float16 (at most {_LARGEST_FLOAT16:g}), got {np.abs(rows).max():g}: "
                "build another cache with --dtype float32"
            )
        for view in range(views):
            columns[column_name(name, view)] = rows[:, view].astype(recipe.dtype)
    keys = np.frombuffer(b"".join(batch.keys), dtype=np.uint8).reshape(count, 32)
    batch.target.writer.append(keys, columns)
    if claims is not None:
        claims.settle(batch.keys)
    batch.keys.clear()
    clock.add("write", begun)
    return count


def _commit(targets: Sequence[Target], clock: _Clock) -> float:
    begun = time.perf_counter()
    for target in targets:
        target.writer.commit()
    return clock.add("write", begun)
