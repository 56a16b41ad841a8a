"""`Events`: what happens, told to every page that listens, as server-sent events."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

from featcache.serve.refusals import busy

_MOST_LISTENERS = 64
_MOST_WAITING = 512
_HEARTBEAT_SECONDS = 10.0


class Events:
    """Who listens. `publish` may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[asyncio.Queue[str | None], asyncio.AbstractEventLoop] = {}
        self._closed = False

    def publish(self, event: str, **values: Any) -> None:
        """Tell every listener of `event`, with JSON `values`; who has not read the last 512 of them is let go."""
        text = f"event: {event}\ndata: {json.dumps(values)}\n\n"
        with self._lock:
            for queue, loop in self._listeners.items():
                loop.call_soon_threadsafe(_put, queue, text)

    async def listen(self) -> AsyncIterator[str]:
        """Yield what is published from now on, and a comment now and then, until the server stops.

        Raises `RefusedError` (503) where too many listen already.
        """
        queue: asyncio.Queue[str | None] = asyncio.Queue(_MOST_WAITING)
        with self._lock:
            if len(self._listeners) >= _MOST_LISTENERS:
                raise busy(f"{_MOST_LISTENERS} pages listen already")
            self._listeners[queue] = asyncio.get_running_loop()
            closed = self._closed
        try:
            yield "retry: 1000\n\n"
            while not closed:
                try:
                    text = await asyncio.wait_for(queue.get(), _HEARTBEAT_SECONDS)
                except TimeoutError:
                    text = ": still here\n\n"
                if text is None:
                    return
                yield text
        finally:
            with self._lock:
                self._listeners.pop(queue, None)

    @property
    def closed(self) -> bool:
        """Whether the server is about to stop."""
        return self._closed

    def close(self) -> None:
        """End every listener."""
        with self._lock:
            self._closed = True
            for queue, loop in self._listeners.items():
                loop.call_soon_threadsafe(_put, queue, None)


def _put(queue: asyncio.Queue[str | None], text: str | None) -> None:
    if text is None or queue.full():
        while not queue.empty():
            queue.get_nowait()
        text = None  # its page comes again, and reads everything anew
    queue.put_nowait(text)
