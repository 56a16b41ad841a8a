"""Reads that wait for a storage, begun before they are asked for: many at once, in order, within bounds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")

THREADS = 48
MOST_AHEAD = 256
MOST_BYTES = 256 << 20


class ReadAhead(Generic[T]):
    """What `read` returns for 0, …, `count` - 1, each taken once, about in this order, from any thread.

    Reads ahead grow from a few to `most` as they are taken, so that who takes one costs few others; those that wait to
    be taken hold no more than about `most_bytes`, by `size`. Close it, best as a context manager.

    Parameters
    ----------
    read
        Called in other threads; what it raises is raised where its turn comes.
    size
        The bytes that a result holds.
    """

    def __init__(
        self,
        read: Callable[[int], T],
        count: int,
        *,
        size: Callable[[T], int],
        threads: int = THREADS,
        most: int = MOST_AHEAD,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._read, self._count, self._size = read, count, size
        self._most, self._most_bytes = most, most_bytes
        self._threads = max(1, min(threads, count))
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._pending: dict[int, Future[T]] = {}
        self._begun = 0  # all before were begun
        self._ahead = 4
        self._reading = 0
        self._held = 0
        self._largest = 0

    def take(self, index: int) -> T:
        """Return what `read` returns for `index`, or raise what it raises."""
        with self._lock:
            if index not in self._pending:
                self._begin(index)
            future = self._pending.pop(index)
            self._ahead = min(self._most, 2 * self._ahead)
            self._fill()
        result = future.result()
        with self._lock:
            self._held -= self._size(result)
            self._fill()
        return result

    def close(self) -> None:
        """Begin no further read, and wait for none."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> ReadAhead[T]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _fill(self) -> None:
        while self._begun < self._count and len(self._pending) < self._ahead:
            # those on their way may be as large as the largest so far
            if self._held + (self._reading + 1) * self._largest > self._most_bytes and self._pending:
                return
            self._begin(self._begun)

    def _begin(self, index: int) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="read-ahead")
        self._pending[index] = self._pool.submit(self._load, index)
        self._begun = max(self._begun, index + 1)
        self._reading += 1

    def _load(self, index: int) -> T:
        size = 0
        try:
            result = self._read(index)
            size = self._size(result)
            return result
        finally:
            with self._lock:
                self._reading -= 1
                self._held += size
                self._largest = max(self._largest, size)
