"""`BodyLimit`: requests whose bodies are small and come soon; those that are files have bounds of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from featcache.serve.refusals import CLOSE, RefusedError

_MOST_BYTES = 16 << 20  # a million samples to label
_SECONDS = 30.0  # between two pieces of a body


class BodyLimit:
    """The application `inner`, given bodies of at most 16 MB; `is_file(path)`: where it sees to their size itself."""

    def __init__(self, inner: ASGIApp, *, is_file: Callable[[str], bool]) -> None:
        self._inner, self._is_file = inner, is_file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; raises `RefusedError` (413, 408) in place of what the application makes of it."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        bounded, size, ended = not self._is_file(scope["path"]), 0, False
        refused: RefusedError | None = None

        async def limited() -> Message:
            nonlocal size, ended, refused
            if ended:  # a listener waits here for the client to go: for as long as it takes
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), _SECONDS)
            except TimeoutError:
                refused = RefusedError(
                    408, f"a body must keep coming, nothing came for {_SECONDS:g} seconds", headers=CLOSE
                )
                raise refused from None
            size += len(message.get("body", b""))
            ended = not message.get("more_body", False)
            if bounded and size > _MOST_BYTES:
                refused = RefusedError(
                    413, f"a body must have at most {_MOST_BYTES} bytes, this one has more", headers=CLOSE
                )
                raise refused
            return message

        async def unless_refused(message: Message) -> None:
            if refused is None:
                await send(message)

        await self._inner(scope, limited, unless_refused)
        if refused is not None:
            raise refused
