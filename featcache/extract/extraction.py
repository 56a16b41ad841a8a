"""`extract`: images become committed rows. The only meeting of images, engine and store.

Each worker thread carries its own images the whole way: it reads, hashes, decodes and resizes into the slots of its own
batch, then runs the network on one processor. While one thread decodes another computes, no processor waits for another
and no image crosses a queue; decoding and the network release the interpreter's lock. This thread hands the rows to the
writer and commits. A row does not depend on its neighbours in a batch, on the order, or on an interruption.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.cache.cache import column_name
from featcache.engines import Engine
from featcache.errors import ImageError, InputError
from featcache.extract.collection import Collection, ComputedRows, Extraction, StageClock
from featcache.extract.ledger import ExtractionLedger, Known
from featcache.extract.settings import ExtractSettings
from featcache.images.load import decode, resize_crop, upright_size
from featcache.images.read import image_reader
from featcache.images.view_spec import ViewSpec
from featcache.images.views import draw_view
from featcache.recipe import Recipe
from featcache.store import StoreWriter
from featcache.system.sources.interface import FileStat
from featcache.system.threads import one_torch_thread, processor_count

DEFAULT_SETTINGS = ExtractSettings()
_CHUNK_FILES = 8
_CHUNK_BYTES = 8 << 20
_LARGEST_FLOAT16 = 65504.0


@dataclass(frozen=True, slots=True)
class Target:
    """Where rows go: the engine that computes them, their Recipe, and the writer of their store."""

    engine: Engine
    recipe: Recipe
    writer: StoreWriter

    def columns(self, pixels: npt.NDArray[np.uint8], count: int) -> dict[str, npt.NDArray[Any]]:
        """Return, by the name of each column, the rows of `count` images, all views of one after another in `pixels`.

        `pixels` may be longer, so that the last run of the engine need not be padded. Raises `InputError` for a
        feature that is not finite, or beyond float16.
        """
        engine, recipe = self.engine, self.recipe
        starts = range(0, count * recipe.views, engine.batch_size)
        runs = [engine.run(pixels[start : start + engine.batch_size]) for start in starts]
        columns = {}
        for position, (name, shape) in enumerate(engine.columns):
            parts = [run[position] for run in runs]
            values = np.concatenate(parts) if len(parts) > 1 else parts[0]
            rows = values[: count * recipe.views].reshape(count, recipe.views, *shape)
            _check_range(name, rows, recipe)
            for view in range(recipe.views):
                columns[column_name(name, view)] = rows[:, view].astype(recipe.dtype)
        return columns


class _Batch:
    """One worker's images for one target: as many as fill some whole runs of the engine with all their views.

    Runs follow one another in bursts: the network's weights and code are then in the processor's caches for all of them
    but the first, where a decode between two runs would drive them out.
    """

    def __init__(self, number: int, target: Target, spec: ViewSpec, *, burst: int) -> None:
        self.number, self.spec, self._target = number, spec, target
        size, views = spec.preprocessing, len(spec.views)
        whole = target.engine.batch_size // math.gcd(target.engine.batch_size, views)
        self.capacity = -(-burst // (whole * views)) * whole
        self._pixels = np.zeros((self.capacity * views, size.height, size.width, 3), dtype=np.uint8)
        self._keys: list[bytes] = []

    @property
    def free(self) -> int:
        """How many more images fit."""
        return self.capacity - len(self._keys)

    def slot(self) -> npt.NDArray[np.uint8]:
        """Return the pixels (views, height, width, 3) of the next image, to be written to."""
        views = len(self.spec.views)
        first = len(self._keys) * views
        return self._pixels[first : first + views]

    def push(self, key: bytes) -> None:
        """Count the image in `slot` in."""
        self._keys.append(key)

    def compute(self) -> ComputedRows | None:
        """Return the rows of the images in here, which are forgotten; None where there are none."""
        count = len(self._keys)
        if not count:
            return None
        # The last run may be partly filled: the slots behind hold older images, whose rows are thrown away.
        columns = self._target.columns(self._pixels, count)
        keys = np.frombuffer(b"".join(self._keys), dtype=np.uint8).reshape(count, 32)
        self._keys.clear()
        return ComputedRows(self.number, keys, columns)


def _check_range(name: str, rows: npt.NDArray[np.float32], recipe: Recipe) -> None:
    largest = float(np.abs(rows).max())  # NaN where any is
    if not math.isfinite(largest):
        raise InputError(
            f"output {name!r} must be finite, {recipe.model!r} with weights {recipe.weights!r} gives {largest}: "
            "check the weights, or compute with precision='fp32'"
        )
    if recipe.dtype == "float16" and largest > _LARGEST_FLOAT16:
        raise InputError(
            f"output {name!r} must fit into float16 (up to {_LARGEST_FLOAT16:g}), got {largest:g}; "
            "build another cache with --dtype float32"
        )


@dataclass(frozen=True, slots=True)
class _Run:
    """What the threads share. `filled`: whether each target had rows at the start; `read`: gives an index's image."""

    collection: Collection
    targets: Sequence[Target]
    specs: Sequence[ViewSpec]
    filled: Sequence[bool]
    read: Callable[[int], tuple[bytes, FileStat]]

    @property
    def ledger(self) -> ExtractionLedger:
        """What became of which image."""
        return self.collection.ledger


def extract(
    paths: Sequence[str | bytes],
    targets: Sequence[Target],
    *,
    workers: int | None = None,
    settings: ExtractSettings = DEFAULT_SETTINGS,
    progress: bool = True,
    out: Known | None = None,
) -> Extraction:
    """Compute and commit the rows of the images at `paths` that the targets do not have; return what became of each.

    Several targets share one read of each file and, where they look at it alike, one decode. Rows are committed as
    `settings` say. An image that cannot be read or decoded is one recorded failure. `workers`: threads, default
    `default_workers`. `progress`: a bar on stderr where that is a terminal. `out`: arrays for digests and stats.

    Raises `StorageError` where the disk refuses and `InputError` where a feature is beyond float16; what was committed
    before stays. Ctrl-C and SIGTERM commit what is computed, then go on their way.
    """
    if workers is not None and workers < 1:
        raise InputError(f"workers must be at least 1, got {workers!r}")
    threads = workers or default_workers([target.engine for target in targets], processors=processor_count())
    threads = max(1, min(threads, len(paths)))
    specs = [ViewSpec.of(target.recipe) for target in targets]
    filled = [len(target.writer) > 0 for target in targets]
    collection = Collection(
        ExtractionLedger(paths, out), [target.writer for target in targets], settings, room=2 * threads
    )
    uses_torch = any(target.recipe.decoder == "fast" or target.engine.name == "torch" for target in targets)
    with one_torch_thread() if uses_torch else nullcontext(), image_reader(paths) as read:
        run = _Run(collection, targets, specs, filled, read)
        return collection.run([partial(_work, run)] * threads, progress=progress)


def default_workers(engines: Sequence[Engine], *, processors: int) -> int:
    """Return one thread per processor, and one for each call that waits for a device while the others decode."""
    return processors + sum(engine.workers for engine in engines if engine.on_device)


def _work(run: _Run) -> None:
    """Carry images from file to row until there are none left."""
    collection = run.collection
    clock = collection.new_clock()
    batches = [
        _Batch(number, target, run.specs[number], burst=collection.settings.burst)
        for number, target in enumerate(run.targets)
    ]
    while not collection.stop.is_set():
        clock.start()
        chunk = _read_chunk(run, min(batch.free for batch in batches), clock)
        if chunk is None:
            break
        for index, data, wanted in chunk:
            _load(run, index, data, [batches[number] for number in wanted], clock)
            for number in wanted:
                if not batches[number].free:
                    clock.start()
                    collection.send(batches[number].compute(), clock)
    for batch in batches:
        clock.start()
        collection.send(batch.compute(), clock)


def _read_chunk(run: _Run, most: int, clock: StageClock) -> list[tuple[int, bytes, list[int]]] | None:
    """Return the next images to decode, ``(index, bytes, numbers of the targets without its row)``; None at the end."""
    ledger = run.ledger
    read: list[tuple[int, bytes]] = []
    size = 0
    while len(read) < min(most, _CHUNK_FILES) and size < _CHUNK_BYTES:
        index = ledger.take()
        if index is None:
            break
        try:
            data, stat = run.read(index)
        except ImageError as error:
            ledger.fail(index, str(error))
            continue
        if ledger.identify(index, data, stat):
            read.append((index, data))
            size += len(data)
    clock.stop("read")
    if not read:
        return None if ledger.exhausted else []
    missing = _missing(run, ledger.digests[[index for index, _ in read]])
    clock.stop("wait")
    chunk = []
    for (index, data), absent in zip(read, missing, strict=True):
        if absent.any():
            chunk.append((index, data, [int(number) for number in np.flatnonzero(absent)]))
        else:
            ledger.reuse(index)
    return chunk


def _missing(run: _Run, keys: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return (n, targets): whether a target lacks the row of each key, none of which came before in this extraction."""
    # What was stored since the start is of other images. So a store that was empty need not be asked, and a thread
    # need not wait until it has synced a commit.
    missing = np.ones((len(keys), len(run.targets)), dtype=bool)
    if any(run.filled):
        with run.collection.store:
            for number in np.flatnonzero(run.filled).tolist():
                missing[:, number] = run.targets[number].writer.find(keys) < 0
    return missing


def _load(run: _Run, index: int, data: bytes, batches: Sequence[_Batch], clock: StageClock) -> None:
    """Decode an image into the next slot of every batch that wants it."""
    digest = run.ledger.digests[index].tobytes()
    slots = {batch.number: batch.slot() for batch in batches}
    shared: dict[ViewSpec, list[_Batch]] = {}
    for batch in batches:
        shared.setdefault(batch.spec, []).append(batch)
    todo = [(spec, place, view) for spec in shared for place, view in enumerate(spec.views)]
    clock.start()
    try:
        for decoder, min_side in dict.fromkeys((spec.decoder, spec.min_side(view)) for spec, _, view in todo):
            pixels = decode(data, decoder=decoder, min_side=min_side, reuse=True)
            full_size = None if min_side is None else upright_size(data)
            clock.stop("decode")
            for spec, place, view in todo:
                if (spec.decoder, spec.min_side(view)) == (decoder, min_side):
                    drawn = draw_view(spec.view_seed, digest, view)
                    out = slots[shared[spec][0].number][place]
                    resize_crop(pixels, spec.preprocessing, decoder=decoder, view=drawn, full_size=full_size, out=out)
            clock.stop("resize")
    except ImageError as error:
        run.ledger.fail(index, str(error))
        return
    for users in shared.values():
        for batch in users:
            if batch is not users[0]:
                slots[batch.number][...] = slots[users[0].number]
            batch.push(digest)
    run.ledger.finish(index)
