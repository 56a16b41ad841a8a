"""Inputs that are files of their own, on a disk."""

from __future__ import annotations

import os
import stat as stat_module

from featcache.errors import ReadError
from featcache.system.sources.interface import MAX_FILE_BYTES, FileStat

_ATTEMPTS = 3
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def read_file(path: str | bytes) -> tuple[bytes, FileStat]:
    """Return a file's bytes and the (size, mtime_ns, ctime_ns, inode) that belong to just these bytes.

    Raises `ReadError` for what is not a regular file (a pipe would block for ever), is larger than 1 GiB, changes
    while it is read, or the system refuses.
    """
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
    except (OSError, ValueError) as error:
        raise ReadError(f"cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    try:
        with open(descriptor, "rb", buffering=0) as file:
            for _ in range(_ATTEMPTS):
                before = os.fstat(descriptor)
                if not stat_module.S_ISREG(before.st_mode):
                    raise ReadError("is not a regular file")
                if before.st_size > MAX_FILE_BYTES:
                    raise ReadError(f"is larger than {MAX_FILE_BYTES} bytes")
                file.seek(0)
                data = file.readall()
                after = os.fstat(descriptor)
                if file_stat(before) == file_stat(after) and len(data) == after.st_size:
                    return data, file_stat(after)
    except OSError as error:
        raise ReadError(f"cannot be read: {error.strerror or error}") from error
    raise ReadError("is being written to")


def file_stat(status: os.stat_result) -> FileStat:
    """Return what names the content of a file."""
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
