"""`Batcher`: the images that wait for one model are run together, on a thread of its own.

While a batch is computed, the images that come meanwhile are the next one. A batch is begun as soon as the thread is
free, unless further images are being decoded: then it waits for them, though no longer than `max_delay`. A lone image
therefore never waits.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import numpy.typing as npt

from featcache.errors import CorruptError

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]


class Batcher:
    """A thread that runs batches of images. Thread-safe.

    Parameters
    ----------
    run
        Returns the logits (n, k) of images (n, height, width, 3); called by one thread, with n ≤ `max_batch`.
    max_batch
        Images in a batch at most.
    max_delay
        Seconds that a batch waits at most for images that are announced.
    ran
        Called with the size of each batch and the seconds that it took.
    """

    def __init__(
        self,
        run: Callable[[Pixels], Logits],
        *,
        max_batch: int,
        max_delay: float,
        ran: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self._run, self._max_batch, self._max_delay, self._ran = run, max_batch, max_delay, ran
        self._changed = threading.Condition()
        self._ready: deque[tuple[Pixels, Future[Logits], float]] = deque()
        self._announced = 0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="featcache-batches", daemon=True)
        self._thread.start()

    def announce(self) -> None:
        """Say that an image is being decoded; it is then `put`, or withdrawn."""
        with self._changed:
            self._announced += 1

    def withdraw(self) -> None:
        """Say that an announced image does not come."""
        with self._changed:
            self._announced -= 1
            self._changed.notify()

    def put(self, pixels: Pixels, answer: Future[Logits]) -> None:
        """Let an announced image (height, width, 3) be run; its logits (k,), or the error, become those of `answer`."""
        with self._changed:
            self._announced -= 1
            self._ready.append((pixels, answer, time.monotonic()))
            self._changed.notify()

    def close(self) -> None:
        """Run what waits, then end the thread; nothing may be announced any more."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            started = time.monotonic()
            try:
                logits = self._run(np.stack([pixels for pixels, _ in batch]))
                if not np.isfinite(logits).all():
                    raise CorruptError("the model must answer with finite numbers, it did not: export the bundle again")
            except BaseException as error:  # noqa: BLE001 - it is raised where each answer is awaited
                for _, answer in batch:
                    answer.set_exception(error)
                continue
            self._ran(len(batch), time.monotonic() - started)
            for (_, answer), row in zip(batch, logits, strict=True):
                answer.set_result(row)

    def _next_batch(self) -> list[tuple[Pixels, Future[Logits]]]:
        """Return the next images to run; none once the batcher is closed and nothing waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._closed)
            if self._ready:
                until = self._ready[0][2] + self._max_delay
                self._changed.wait_for(
                    lambda: len(self._ready) >= self._max_batch or not self._announced,
                    timeout=max(0.0, until - time.monotonic()),
                )
            count = min(len(self._ready), self._max_batch)
            return [self._ready.popleft()[:2] for _ in range(count)]
