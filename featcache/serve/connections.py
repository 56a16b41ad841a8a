"""`bounded_connections`: connections that wait for their client do so for a while, in bounded number and memory.

Uvicorn bounds what is idle after an answer alone. Here a client has `_SECONDS` from the connection, or the last answer,
to the end of a request's head, and as long to take what it was answered; a head has a largest size; and where there are
as many connections as the process can have, the one that has kept the server waiting longest makes room for the next.
What goes for bodies is in `bodies.py` and, for the studio, `studio/limits.py`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from functools import partial
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_SECONDS = 30.0
_MOST_HEAD_BYTES = 64 << 10
_MOST = 8192  # connections, whatever the system allows
_KEPT = 256  # descriptors for everything else: files, models, processes


def bounded_connections() -> type[asyncio.Protocol]:
    """Return what makes the protocol of a connection for uvicorn, after raising the bound on descriptors."""
    limit = _raised_descriptor_limit()
    made = partial(BoundedConnection, most=min(max(limit - _KEPT, limit // 2), _MOST))
    return cast(type[asyncio.Protocol], made)  # of a class, uvicorn wants no more than to call it


class BoundedConnection(HttpToolsProtocol):
    """One connection of at most `most`, given `seconds` for whatever only its client can do."""

    def __init__(self, *arguments: Any, most: int, seconds: float = _SECONDS, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._most, self._seconds = most, seconds
        self._since = time.monotonic()
        self._beside_bodies = 0  # bytes that came since the last that are of a body, or end a request
        self._waiting: asyncio.TimerHandle | None = None  # for a head, or for what was answered to go
        self._stalled: asyncio.TimerHandle | None = None

    # --- what asyncio tells ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request; make room where there is none for this connection."""
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > self._most:
            min(self.connections, key=_rank).transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take in what came; a head, or what stands between two pieces of a body, has a largest size."""
        self._beside_bodies += len(data)
        super().data_received(data)
        if self._beside_bodies > _MOST_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\r\n")
            self._end()

    def pause_writing(self) -> None:
        """The client does not take what it is answered: it has a while to begin."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self._seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has taken some."""
        super().resume_writing()
        _cancel(self._stalled)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        _cancel(self._waiting)
        _cancel(self._stalled)
        super().connection_lost(exc)

    # --- what the parser tells ---

    def on_headers_complete(self) -> None:
        """Begin to answer: whoever reads the body bounds its time."""
        _cancel(self._waiting)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take in a piece of a body."""
        self._beside_bodies = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is whole."""
        self._beside_bodies = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the client to take the last of the answer."""
        super().on_response_complete()
        if self.cycle.response_complete:  # else another has come behind it
            self._wait()

    # --- waiting ---

    @property
    def keeps_waiting(self) -> int | None:
        """What the client keeps the server waiting for: 0 a request, 1 a body or the taking of an answer; None: not."""
        if self.cycle is None or self.cycle.response_complete:
            return 0
        return 1 if self.cycle.more_body or self.flow.write_paused else None

    def _wait(self) -> None:
        self._since = time.monotonic()
        _cancel(self._waiting)
        self._waiting = self.loop.call_later(self._seconds, self._end)

    def _end(self) -> None:
        """Close the connection, without waiting for what the client does not take."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()


def _rank(connection: Any) -> tuple[int, float]:
    """Return what sorts connections by how little is lost with them: those that keep the server waiting, oldest first.

    Where each is being answered, the newest goes.
    """
    waits = connection.keeps_waiting
    return (2, -connection._since) if waits is None else (waits, connection._since)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def _raised_descriptor_limit() -> int:
    """Return how many descriptors this process may have, having raised that as far as it may."""
    if sys.platform == "win32":
        return 512
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST + _KEPT if hard == resource.RLIM_INFINITY else min(hard, _MOST + _KEPT)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
