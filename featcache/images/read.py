"""Read the bytes of an image file, and the stat that belongs to just these bytes."""

from __future__ import annotations

import os
import stat as stat_module

from featcache.errors import ImageError

MAX_FILE_BYTES = 1 << 30
_ATTEMPTS = 3
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

FileStat = tuple[int, int, int, int]


def read_image_file(path: str | bytes) -> tuple[bytes, FileStat]:
    """Return a file's bytes and the (size, mtime_ns, ctime_ns, inode) that belong to just these bytes.

    Raises `ImageError` for what is not a regular file (a pipe would block for ever), is larger than 1 GiB, changes
    while it is read, or the system refuses.
    """
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    try:
        with open(descriptor, "rb", buffering=0) as file:
            for _ in range(_ATTEMPTS):
                before = os.fstat(descriptor)
                if not stat_module.S_ISREG(before.st_mode):
                    raise ImageError("is not a regular file")
                if before.st_size > MAX_FILE_BYTES:
                    raise ImageError(f"is larger than {MAX_FILE_BYTES} bytes")
                file.seek(0)
                data = file.readall()
                after = os.fstat(descriptor)
                if _identity(before) == _identity(after) and len(data) == after.st_size:
                    return data, _identity(after)
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from error
    raise ImageError("is being written to")


def read_image_bytes(path: str | bytes | os.PathLike[str]) -> bytes:
    """Return the bytes of an image file; raises as `read_image_file`."""
    return read_image_file(os.fspath(path))[0]


def _identity(status: os.stat_result) -> FileStat:
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
