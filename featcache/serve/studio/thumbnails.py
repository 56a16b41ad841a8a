"""`Thumbnails`: small JPEGs of images, made when they are first looked at and kept by the digest of the image."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from featcache.images.thumbnail import thumbnail
from featcache.system.threads import processor_count

SIDES = (192, 1024)
_KEPT = 192  # larger ones are made anew: few are looked at


class Thumbnails:
    """Pictures below the folder `place`, made by as many threads as there are processors."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._pool = ThreadPoolExecutor(processor_count(), thread_name_prefix="featcache-thumbnail")

    async def get(self, digest: str, read: Callable[[], bytes], *, side: int) -> bytes:
        """Return the JPEG, `side` pixels wide and high at most, of the image that `read` gives the bytes of.

        Raises `ImageError` where it cannot be read.
        """
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._get, digest, read, side)

    def _get(self, digest: str, read: Callable[[], bytes], side: int) -> bytes:
        file = self._place / digest[:2] / f"{digest}.jpg"
        if side == _KEPT:
            try:
                return file.read_bytes()
            except FileNotFoundError:
                pass  # made now
        data = thumbnail(read(), side=side)
        if side == _KEPT:
            file.parent.mkdir(parents=True, exist_ok=True)
            aside = file.with_suffix(f".{os.urandom(4).hex()}.tmp")
            aside.write_bytes(data)  # made again where it is lost: it need not be durable, only whole
            os.replace(aside, file)
        return data

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)
