"""`extract`: inputs become committed rows. The only meeting of inputs, engine and store.

Each worker thread carries its own inputs the whole way: it reads, hashes and decodes, then runs the network on one
processor. While one thread decodes another computes, no processor waits for another and no input crosses a queue;
decoding and the network release the interpreter's lock. This thread hands the rows to the writer and commits. A row
does not depend on its neighbours in a batch, on the order, or on an interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt

from featcache.engines.interface import CompiledNetwork
from featcache.errors import InputError, SampleError
from featcache.extract.collection import Collection, Extraction
from featcache.extract.computed import StageClock
from featcache.extract.inputs.interface import Extractor, Loader
from featcache.extract.inputs.registry import find_input
from featcache.extract.ledger import ExtractionLedger, Known
from featcache.extract.settings import ExtractSettings
from featcache.store import StoreWriter
from featcache.system.sources.interface import FileStat
from featcache.system.sources.reading import input_reader
from featcache.system.threads import one_torch_thread, processor_count

DEFAULT_SETTINGS = ExtractSettings()
_CHUNK_FILES = 8
_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Target:
    """Where rows go: what computes them, and the writer of their store."""

    extractor: Extractor
    writer: StoreWriter


class NewLoader(Protocol):
    """What makes the loader of a thread: `Input.loader`, or what stands in for it."""

    def __call__(self, extractors: Sequence[Extractor], *, burst: int) -> Loader:
        """Return a new loader."""


@dataclass(frozen=True, slots=True)
class _Run:
    """What the threads share. `filled`: whether each target had rows at the start; `read`: gives an index's input."""

    collection: Collection
    targets: Sequence[Target]
    new_loader: NewLoader
    filled: Sequence[bool]
    read: Callable[[int], tuple[bytes, FileStat]]

    @property
    def ledger(self) -> ExtractionLedger:
        """What became of which input."""
        return self.collection.ledger


def extract(
    paths: Sequence[str | bytes],
    targets: Sequence[Target],
    *,
    workers: int | None = None,
    settings: ExtractSettings = DEFAULT_SETTINGS,
    progress: bool = True,
    out: Known | None = None,
    new_loader: NewLoader | None = None,
) -> Extraction:
    """Compute and commit the rows of the inputs at `paths` that the targets do not have; return what became of each.

    Several targets, of one input kind, share one read of each file and, where they look at it alike, one decode. Rows
    are committed as `settings` say. An input that cannot be read or decoded is one recorded failure. `workers`:
    threads, default `default_workers`. `progress`: a bar on stderr where that is a terminal. `out`: arrays for digests
    and stats. `new_loader`: instead of the kind's own.

    Raises `StorageError` where the disk refuses and `InputError` where a feature is beyond float16; what was committed
    before stays. Ctrl-C and SIGTERM commit what is computed, then go on their way.
    """
    if workers is not None and workers < 1:
        raise InputError(f"workers must be at least 1, got {workers!r}")
    extractors = [target.extractor for target in targets]
    threads = workers or default_workers([one.engine for one in extractors], processors=processor_count())
    threads = max(1, min(threads, len(paths)))
    kind = find_input(extractors[0].recipe.input)
    filled = [len(target.writer) > 0 for target in targets]
    collection = Collection(
        ExtractionLedger(paths, out), [target.writer for target in targets], settings, room=2 * threads, unit=kind.noun
    )
    uses_torch = any(one.recipe.decoder == "fast" or one.engine.name == "torch" for one in extractors)
    with one_torch_thread() if uses_torch else nullcontext(), input_reader(paths) as read:
        run = _Run(collection, targets, new_loader or kind.loader, filled, read)
        return collection.run([partial(_work, run)] * threads, progress=progress)


def default_workers(engines: Sequence[CompiledNetwork], *, processors: int) -> int:
    """Return one thread per processor, and one for each call that waits for a device while the others decode."""
    return processors + sum(engine.workers for engine in engines if engine.on_device)


def _work(run: _Run) -> None:
    """Carry inputs from file to row until there are none left."""
    collection, ledger = run.collection, run.ledger
    clock = collection.new_clock()
    loader = run.new_loader([target.extractor for target in run.targets], burst=collection.settings.burst)
    while not collection.stop.is_set():
        clock.start()
        chunk = _read_chunk(run, loader.room, clock)
        if chunk is None:
            break
        for index, data, wanted in chunk:
            clock.start()
            try:
                loader.load(data, ledger.digests[index].tobytes(), wanted, clock)
            except SampleError as error:
                ledger.fail(index, str(error))
                continue
            ledger.finish(index)
            clock.start()
            for rows in loader.ready():
                collection.send(rows, clock)
    clock.start()
    for rows in loader.rest():
        collection.send(rows, clock)


def _read_chunk(run: _Run, most: int, clock: StageClock) -> list[tuple[int, bytes, list[int]]] | None:
    """Return the next inputs to decode, ``(index, bytes, numbers of the targets without its row)``; None at the end."""
    ledger = run.ledger
    read: list[tuple[int, bytes]] = []
    size = 0
    while len(read) < min(most, _CHUNK_FILES) and size < _CHUNK_BYTES:
        index = ledger.take()
        if index is None:
            break
        try:
            data, stat = run.read(index)
        except SampleError as error:
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
    # What was stored since the start is of other inputs. So a store that was empty need not be asked, and a thread
    # need not wait until it has synced a commit.
    missing = np.ones((len(keys), len(run.targets)), dtype=bool)
    if any(run.filled):
        with run.collection.store:
            for number in np.flatnonzero(run.filled).tolist():
                missing[:, number] = run.targets[number].writer.find(keys) < 0
    return missing
