"""The body of a request, read within bounds: of its size, of the time it takes, of all bodies in memory together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect, Request

from featcache.serve.refusals import CLOSE, RefusedError, busy

_LINGER_SECONDS = 2.0
_BODIES_AT_ONCE = 16  # of the largest size: what all bodies together may take


class Bodies:
    """Reads bodies of at most `most` bytes each, in at most `seconds`, and a small multiple of that size together."""

    def __init__(self, most: int, *, seconds: float) -> None:
        self._most, self._seconds = most, seconds
        self._held = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Give the body of `request`, which counts as memory that is used until the block ends.

        Raises `RefusedError`: 413 for one that is too large, 408 for one that takes too long, 503 where all together
        are too large, 400 where the connection ends before the body does.
        """
        held = 0
        try:
            chunks, stream = [], request.stream()
            stated = request.headers.get("content-length", "")
            if stated.isdecimal() and int(stated) > self._most:
                raise await self._too_large(stream)
            try:
                async with asyncio.timeout(self._seconds):
                    async for chunk in stream:
                        held += len(chunk)
                        self._held += len(chunk)
                        if held > self._most or self._held > self._most * _BODIES_AT_ONCE:
                            break
                        chunks.append(chunk)
            except TimeoutError as error:
                raise RefusedError(
                    408, f"a body must arrive within {self._seconds:g} seconds, got {held} bytes of it", headers=CLOSE
                ) from error
            except ClientDisconnect as error:
                raise RefusedError(
                    400, "the connection must stay open until the body has arrived, it was closed"
                ) from error
            if held > self._most:
                raise await self._too_large(stream)
            if self._held > self._most * _BODIES_AT_ONCE:
                raise busy("the memory for bodies of requests is used up", close=True)
            yield b"".join(chunks)
        finally:
            self._held -= held

    async def _too_large(self, stream: AsyncGenerator[bytes, None]) -> RefusedError:
        """Return the refusal, after reading on for a moment: a client that sends before it listens would not see it."""
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                async for _ in stream:
                    pass
        except (TimeoutError, ClientDisconnect):
            pass
        return RefusedError(413, f"a body must be at most {self._most} bytes, this one is larger", headers=CLOSE)
