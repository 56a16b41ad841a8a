"""`Thumbnails`: samples as a person sees them; small JPEGs of images are kept by the digest of the image."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from featcache.extract.inputs.interface import Input
from featcache.system.threads import processor_count

SIDES = (192, 1024)
_KEPT = 192  # larger ones are made anew: few are looked at


class Thumbnails:
    """Pictures below the folder `place`, made by as many threads as there are processors."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._pool = ThreadPoolExecutor(processor_count(), thread_name_prefix="featcache-thumbnail")

    async def get(self, kind: Input, digest: str, read: Callable[[], bytes], *, side: int) -> tuple[str, bytes]:
        """Return media type and bytes of what `kind` shows of the bytes that `read` gives.

        Of an image that is a JPEG, `side` pixels wide and high at most. Raises `SampleError` where it cannot be read.
        """
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._get, kind, digest, read, side)

    def _get(self, kind: Input, digest: str, read: Callable[[], bytes], side: int) -> tuple[str, bytes]:
        file = self._place / digest[:2] / f"{digest}.jpg"
        kept = kind.shown == "picture" and side == _KEPT
        if kept:
            try:
                return "image/jpeg", file.read_bytes()
            except FileNotFoundError:
                pass  # made now
        media_type, data = kind.show(read(), side=side)
        if kept:
            file.parent.mkdir(parents=True, exist_ok=True)
            aside = file.with_suffix(f".{os.urandom(4).hex()}.tmp")
            aside.write_bytes(data)  # made again where it is lost: it need not be durable, only whole
            os.replace(aside, file)
        return media_type, data

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)
