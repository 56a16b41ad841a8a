"""`Batcher`: the inputs that wait for one model are run together, on threads of its own.

While batches are computed, the inputs that come meanwhile are the next ones. A batch is begun as soon as a thread is
free, unless it may hold more than one input and further ones are being decoded: then it waits for them, though no
longer than `max_delay`. A lone input therefore never waits.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.errors import CorruptError

Prepared = npt.NDArray[Any]  # an input as the network takes it: pixels, token ids
Logits = npt.NDArray[np.float32]
Batch = list[tuple[Prepared, Future[Logits]]]


class Batcher:
    """Threads that run batches of prepared inputs. Thread-safe.

    Parameters
    ----------
    run
        Returns the logits (n, k) of a batch (n, …); called by `workers` threads, with n ≤ `max_batch`.
    lone
        The same for one input while no other is there: what answers soonest, not most. None: `run`.
    stack
        Makes a batch of several inputs.
    together
        Returns how many of the first of the inputs that wait are worth a batch, one at least.
    workers
        How many threads run batches.
    max_batch
        Inputs in a batch at most.
    max_delay
        Seconds that a batch waits at most for inputs that are announced.
    ran
        Called with the size of each batch and the seconds that it took.
    """

    def __init__(
        self,
        run: Callable[[Prepared], Logits],
        *,
        max_batch: int,
        max_delay: float,
        workers: int = 1,
        lone: Callable[[Prepared], Logits] | None = None,
        stack: Callable[[Sequence[Prepared]], Prepared] = np.stack,
        together: Callable[[Sequence[Prepared]], int] = len,
        ran: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self._run, self._lone = run, run if lone is None else lone
        self._stack, self._together = stack, together
        self._max_batch, self._max_delay, self._ran = max_batch, max_delay, ran
        self._changed = threading.Condition()
        self._ready: deque[tuple[Prepared, Future[Logits], float]] = deque()
        self._announced = 0
        self._under_way = 0
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"featcache-batches-{number}", daemon=True)
            for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def announce(self) -> None:
        """Say that an input is being prepared; it is then `put`, or withdrawn."""
        with self._changed:
            self._announced += 1

    def withdraw(self) -> None:
        """Say that an announced input does not come."""
        with self._changed:
            self._announced -= 1
            self._changed.notify_all()

    def put(self, prepared: Prepared, answer: Future[Logits]) -> None:
        """Let an announced input be run; its logits (k,), or the error, become those of `answer`."""
        with self._changed:
            self._announced -= 1
            self._ready.append((prepared, answer, time.monotonic()))
            if self._max_batch > 1:
                self._changed.notify_all()
            else:
                self._changed.notify()

    def close(self) -> None:
        """Run what waits, then end the threads; nothing may be announced any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while True:
            batch, run = self._next_batch()
            if not batch:
                return
            self._answer(batch, run)
            with self._changed:
                self._under_way -= 1

    def _answer(self, batch: Batch, run: Callable[[Prepared], Logits]) -> None:
        started = time.monotonic()
        try:
            logits = run(self._stack([prepared for prepared, _ in batch]))
            if not np.isfinite(logits).all():
                raise CorruptError("the model must answer with finite numbers, it did not: export the bundle again")
        except BaseException as error:  # noqa: BLE001 - it is raised where each answer is awaited
            for _, answer in batch:
                answer.set_exception(error)
            return
        self._ran(len(batch), time.monotonic() - started)
        for (_, answer), row in zip(batch, logits, strict=True):
            answer.set_result(row)

    def _next_batch(self) -> tuple[Batch, Callable[[Prepared], Logits]]:
        """Return the next inputs and what runs them; none once the batcher is closed and nothing waits."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._ready or self._closed)
                if not self._ready:
                    return [], self._run
                if self._max_batch > 1:
                    until = self._ready[0][2] + self._max_delay
                    self._changed.wait_for(self._has_batch, timeout=max(0.0, until - time.monotonic()))
                if self._ready:  # else another thread was first
                    break
            count = self._together([prepared for prepared, *_ in islice(self._ready, self._max_batch)])
            batch = [self._ready.popleft()[:2] for _ in range(count)]
            alone = count == 1 and not self._ready and not self._announced and not self._under_way
            self._under_way += 1
            return batch, self._lone if alone else self._run

    def _has_batch(self) -> bool:
        return len(self._ready) >= self._max_batch or not self._announced or not self._ready
