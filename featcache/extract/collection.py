"""What every extraction ends in: computed rows are handed to their writers, and committed in between and at the end.

Where they are computed is another matter: in threads of this process (`extraction.py`) or elsewhere in a cluster
(`cluster_extraction.py`). Both send what they have to a `Collection`, whose thread alone touches the writers.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from featcache.extract.computed import STAGES, ComputedRows, StageClock
from featcache.extract.ledger import ExtractionLedger
from featcache.extract.settings import ExtractSettings
from featcache.store import StoreWriter
from featcache.system.interrupts import deferred_interrupts


@dataclass(frozen=True, slots=True)
class Extraction:
    """What became of n images, in the order of their paths.

    `digests` (n, 32) uint8: sha256 of the bytes, zeros where they could not be read. `stats` (n, 4) int64: size,
    mtime_ns, ctime_ns, inode of the very file that was read. `failures`: index → reason. `extracted`: rows computed
    (of the target with the most). `reused`: images whose row was there or came with an equal image. `extract_seconds`:
    first file opened to last commit fsynced. `seconds_by_stage`: time of all threads together in ``read`` (with the
    hash), ``decode``, ``resize``, ``network``, ``write``, and ``wait`` (for the store).
    `extracted_by_target`: rows computed for each.
    """

    digests: npt.NDArray[np.uint8]
    stats: npt.NDArray[np.int64]
    failures: dict[int, str]
    extracted: int
    reused: int
    extract_seconds: float
    seconds_by_stage: dict[str, float]
    extracted_by_target: tuple[int, ...]


class Collection:
    """Rows from several threads on their way to the writers of their targets.

    `unit`: what one input is called. `ledger`: what became of which. `stop`: set where the threads shall end. `store`:
    held by whoever asks or tells a writer anything. `started`: when the first file was opened, on the clock of
    `time.perf_counter`.
    """

    def __init__(
        self,
        ledger: ExtractionLedger,
        writers: Sequence[StoreWriter],
        settings: ExtractSettings,
        *,
        room: int,
        unit: str = "image",
    ) -> None:
        self.ledger = ledger
        self.unit = unit
        self.writers = writers
        self.settings = settings
        self.store = threading.Lock()
        self.stop = threading.Event()
        self.started = time.perf_counter()
        self._rows: queue.Queue[ComputedRows | BaseException | None] = queue.Queue(maxsize=room)
        self._clocks: list[StageClock] = []
        self._counts = [0] * len(writers)
        self._committed: float | None = None

    def new_clock(self) -> StageClock:
        """Return a clock whose seconds count in the sum of all threads."""
        clock = StageClock()
        self._clocks.append(clock)
        return clock

    def send(self, rows: ComputedRows, clock: StageClock) -> None:
        """Hand rows over, waiting while too many are on their way already."""
        clock.stop("network")
        self._rows.put(rows)  # the other end takes rows until every thread has ended
        clock.stop("wait")

    def count(self, number: int, rows: int) -> None:
        """Count rows of target `number` that were committed elsewhere."""
        self._counts[number] += rows
        self._committed = time.perf_counter()

    def run(self, bodies: Sequence[Callable[[], None]], *, progress: bool) -> Extraction:
        """Run each of `bodies` in a thread and write what they send until all have ended; return what became of all.

        What one of them raises is raised here; what was committed before stays. Interrupts set `stop`, and are
        delivered once what was sent is committed.
        """
        with deferred_interrupts() as interrupt:
            self.started = time.perf_counter()
            pool = [
                threading.Thread(target=self._run_body, args=(body,), name=f"extract-{number}", daemon=True)
                for number, body in enumerate(bodies)
            ]
            for thread in pool:
                thread.start()
            try:
                count = len(self.ledger.paths)
                with tqdm(total=count, desc="features", unit=self.unit, disable=None if progress else True) as bar:
                    self._write(len(pool), bar=bar, interrupted=interrupt.is_set)
            finally:
                self._end(pool)
            seconds = (self._committed or time.perf_counter()) - self.started
        ledger = self.ledger
        return Extraction(
            ledger.digests, ledger.stats, ledger.settled_failures(), max(self._counts, default=0), ledger.reused(),
            seconds, {stage: sum(clock.seconds[stage] for clock in self._clocks) for stage in STAGES},
            tuple(self._counts),
        )  # fmt: skip

    def _run_body(self, body: Callable[[], None]) -> None:
        try:
            body()
            self._rows.put(None)
        except BaseException as error:  # noqa: BLE001 (raised again where it is seen: in the collecting thread)
            self._rows.put(error)

    def _write(self, working: int, *, bar: Any, interrupted: Callable[[], bool]) -> None:
        """Hand rows to the writers until every thread has ended; commit in between and at the end."""
        clock = self.new_clock()
        last_commit, uncommitted = time.perf_counter(), 0
        while working:
            try:
                item = self._rows.get(timeout=0.1)
            except queue.Empty:
                pass
            else:
                clock.start()
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    working -= 1
                else:
                    with self.store:
                        self._counts[item.number] += self.writers[item.number].append(item.keys, item.columns)
                    uncommitted += len(item.keys)
                clock.stop("write")
            bar.update(self.ledger.finished - bar.n)
            late = time.perf_counter() - last_commit > self.settings.commit_seconds
            if uncommitted >= self.settings.commit_rows or (uncommitted and late):
                self._commit(clock)
                last_commit, uncommitted = time.perf_counter(), 0
            if interrupted():
                self.stop.set()
        if uncommitted:
            self._commit(clock)

    def _commit(self, clock: StageClock) -> None:
        clock.start()
        with self.store:
            for writer in self.writers:
                writer.commit()
        clock.stop("write")
        self._committed = time.perf_counter()

    def _end(self, pool: Sequence[threading.Thread]) -> None:
        """End every thread, throwing away what it still sends: after an error nothing more is stored."""
        self.stop.set()
        for thread in pool:
            while thread.is_alive():
                try:
                    self._rows.get_nowait()
                except queue.Empty:
                    thread.join(timeout=0.01)
