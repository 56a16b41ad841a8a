"""Read the bytes of image files, with the stat that belongs to just these bytes, and say what they are by sha256."""

from __future__ import annotations

import hashlib
import os
import stat as stat_module
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featcache.errors import ImageError
from featcache.system.threads import processor_count

MAX_FILE_BYTES = 1 << 30
_ATTEMPTS = 3
_WINDOW = 1024  # files handed to the threads at a time: a million waiting calls would be a burden
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

FileStat = tuple[int, int, int, int]
ImageSource = Callable[[], bytes]  # reads one image; raises `ImageError` where it cannot be had


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


def read_image_bytes(path: str | bytes | os.PathLike[str], *, digest: bytes | None = None) -> bytes:
    """Return the bytes of an image file, those with the sha256 `digest` where one is named.

    Raises `ImageError` as `read_image_file`, and where the file holds other bytes than those of `digest`.
    """
    data, _ = read_image_file(os.fspath(path))
    if digest is not None and hashlib.sha256(data).digest() != digest:
        raise ImageError("has changed: its bytes are others than when it was listed")
    return data


def hash_file(path: str | bytes) -> tuple[bytes, FileStat]:
    """Return the sha256 (32 bytes) of a file's bytes and the stat that belongs to them; raises as `read_image_file`."""
    data, stat = read_image_file(path)
    return hashlib.sha256(data).digest(), stat


@dataclass(frozen=True, slots=True, eq=False)
class HashedFiles:
    """`digests` (n, 32) uint8: sha256 of each file, zeros for those in `failures`, index → why it cannot be read."""

    digests: npt.NDArray[np.uint8]
    failures: dict[int, str]

    @property
    def readable(self) -> npt.NDArray[np.bool_]:
        """(n,) whether the file has a digest."""
        mask = np.ones(len(self.digests), dtype=bool)
        mask[list(self.failures)] = False
        return mask


def hash_files(paths: Sequence[str]) -> HashedFiles:
    """Return the sha256 of every file at `paths`, read by as many threads as there are processors."""
    from tqdm import tqdm

    digests = np.zeros((len(paths), 32), dtype=np.uint8)
    failures: dict[int, str] = {}

    def settle(index: int) -> None:
        try:
            digest, _ = hash_file(paths[index])
        except ImageError as error:
            failures[index] = str(error)
        else:
            digests[index] = np.frombuffer(digest, dtype=np.uint8)

    with (
        ThreadPoolExecutor(processor_count()) as pool,
        tqdm(total=len(paths), desc="hash", unit="image", disable=None, delay=1) as bar,
    ):
        for start in range(0, len(paths), _WINDOW):
            for _ in pool.map(settle, range(start, min(start + _WINDOW, len(paths)))):
                bar.update()
    return HashedFiles(digests, dict(sorted(failures.items())))


def _identity(status: os.stat_result) -> FileStat:
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
