"""`BodyLimit`: requests whose bodies are small and come soon; those that are files have bounds of their own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from featcache.serve.refusals import CLOSE, RefusedError, busy

_MOST_BYTES = 16 << 20  # a million samples to label
_BODIES_AT_ONCE = 8  # of that size: what bodies in memory may take together
_SECONDS = 30.0  # for a body to come
_LEAST_RATE = 10_000  # bytes per second: a larger body has longer


class BodyLimit:
    """The application `inner`, given bodies of at most 16 MB; `is_file(path)`: where it sees to their size itself.

    A body has half a minute and as long as it takes at 10 kB/s.
    """

    def __init__(self, inner: ASGIApp, *, is_file: Callable[[str], bool]) -> None:
        self._inner, self._is_file = inner, is_file
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; raises `RefusedError` (413, 408, 503) in place of what the application makes of it."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        bounded, size, ended, began = not self._is_file(scope["path"]), 0, False, time.monotonic()
        refused: RefusedError | None = None

        async def limited() -> Message:
            nonlocal size, ended, refused
            if ended:  # a listener waits here for the client to go: for as long as it takes
                return await receive()
            try:
                left = began + _SECONDS + size / _LEAST_RATE - time.monotonic()
                message = await asyncio.wait_for(receive(), max(left, 0))
            except TimeoutError:
                refused = RefusedError(
                    408, f"a body must come within {_SECONDS:g} seconds or at {_LEAST_RATE} bytes a second, got {size} "
                    "of it", headers=CLOSE,
                )  # fmt: skip
                raise refused from None
            came = len(message.get("body", b""))
            size += came
            ended = not message.get("more_body", False)
            if bounded:
                self._held += came
                if size > _MOST_BYTES:
                    refused = RefusedError(
                        413, f"a body must have at most {_MOST_BYTES} bytes, this one has more", headers=CLOSE
                    )
                    raise refused
                if self._held > _MOST_BYTES * _BODIES_AT_ONCE:
                    refused = busy("the memory for bodies of requests is used up", close=True)
                    raise refused
            return message

        async def unless_refused(message: Message) -> None:
            if refused is None:
                await send(message)

        try:
            await self._inner(scope, limited, unless_refused)
        finally:
            self._held -= size if bounded else 0
        if refused is not None:
            raise refused
