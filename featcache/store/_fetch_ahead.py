"""Fetching what will be wanted next while what is wanted now is worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Fetched = TypeVar("Fetched")


def fetch_ahead(fetch: Callable[[Item], Fetched], items: Iterable[Item], *, most: int) -> Iterator[Fetched]:
    """Yield ``fetch(item)`` for each item, in order, `most` of them at once in threads; no more lie in memory."""
    waiting: deque[Future[Fetched]] = deque()
    with ThreadPoolExecutor(most) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(fetch, item))
                if len(waiting) == most:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
