"""`Service`: what every endpoint needs, and the bound on inputs that wait."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from starlette.responses import Response

from featcache.serve.bodies import Bodies
from featcache.serve.metrics import Metrics
from featcache.serve.models import Models
from featcache.serve.refusals import RefusedError, busy
from featcache.serve.served import Answer
from featcache.serve.settings import ServeSettings


class Service:
    """The models, the counters and the bounds of one server."""

    def __init__(self, models: Models, settings: ServeSettings, metrics: Metrics) -> None:
        self.models, self.settings, self.metrics = models, settings, metrics
        self.bodies = Bodies(settings.max_body_bytes, seconds=settings.body_seconds)
        self.stopping = False
        self._waiting = 0

    def begin_to_stop(self) -> None:
        """Be ready no more. Callable from any thread."""
        self.stopping = True

    def check_room(self) -> None:
        """Raise `RefusedError` (503) where the queue is full: said before a body is read."""
        if self._waiting >= self.settings.max_queue:
            raise busy(f"{self._waiting} inputs wait already, the most there may be", close=True)

    @contextmanager
    def room_for(self, count: int, noun: str) -> Iterator[None]:
        """Count `count` inputs, each called `noun`, as waiting inside the block.

        Raises `RefusedError`: 413 for more than the queue holds when empty, 503 for more than it has room for now.
        """
        most = self.settings.max_queue
        if count > most:
            raise RefusedError(413, f"a request must hold at most {most} {noun}s, got {count}: send several requests")
        if self._waiting + count > most:
            raise busy(f"{self._waiting} inputs wait already, {most} is the most there may be")
        self._waiting += count
        self.metrics.waiting.set(self._waiting)
        try:
            yield
        finally:
            self._waiting -= count
            self.metrics.waiting.set(self._waiting)


async def settled(answers: Sequence[Future[Answer]]) -> list[Answer | BaseException]:
    """Return each answer, or the error that it ended with, once all are there."""
    return await asyncio.gather(*map(asyncio.wrap_future, answers), return_exceptions=True)


def json_response(value: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return `value` as a JSON answer."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(text.encode("utf-8", "backslashreplace"), status, headers, media_type="application/json")
