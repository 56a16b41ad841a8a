"""What every place of inputs answers: the bytes of one input, with the stat that belongs to just these bytes.

Nothing here knows what an input is. Numbers of a stat that are not a system's own are folds, which are negative, so
that columns 1 and 2 of it hold a time or something below every time.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod

MAX_FILE_BYTES = 1 << 30

FileStat = tuple[int, int, int, int]
"""What names the content of an input without a look at it.

Of a file size, mtime_ns, ctime_ns, inode. Of an object its size and folds of URL and ETag: an ETag names content by
itself, so there is no time that a change could hide behind. Of an object whose storage says no ETag the time of its
change stands as both times. Of a member its container's, with the member's place folded in.
"""


class Container(ABC):
    """A file of many inputs, each read by its name alone; safe to use from several threads."""

    @abstractmethod
    def read(self, name: str) -> tuple[bytes, FileStat]:
        """Return the input called `name`.

        Raises `ReadError` where there is none, or it cannot be read; `StorageError` where the storage is gone.
        """

    @abstractmethod
    def is_current(self) -> bool:
        """Return whether the file is still the one that was opened."""


def fold(*parts: object) -> int:
    """Return a negative 64-bit number that stands for `parts`."""
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogateescape")
    return -1 - (int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1)
