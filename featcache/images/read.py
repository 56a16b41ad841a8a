"""Read the bytes of images, wherever they lie, and say what they are by sha256."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featcache.errors import ImageError, ReadError
from featcache.system.read_ahead import THREADS
from featcache.system.sources.interface import FileStat
from featcache.system.sources.opening import is_remote, read_input
from featcache.system.threads import processor_count

_WINDOW = 1024  # files handed to the threads at a time: a million waiting calls would be a burden

ImageSource = Callable[[], bytes]  # reads one image; raises `ImageError` where it cannot be had


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An `ImageSource` of the image at `path`, wherever that is; of another sha256 than `digest` it fails."""

    path: str | bytes | os.PathLike[str]
    digest: bytes | None = None

    def __call__(self) -> bytes:
        """Return the bytes; raises as `read_image_bytes`."""
        return read_image_bytes(self.path, digest=self.digest)

    @property
    def is_remote(self) -> bool:
        """Whether a read waits for a storage."""
        return is_remote(os.fspath(self.path))


def read_image_file(path: str | bytes) -> tuple[bytes, FileStat]:
    """Return the bytes of an image and the stat that belongs to just these bytes.

    `path`: whatever `read_input` takes: a file, a URL, a member of a tar, a row of a Parquet or Arrow file. Raises
    `ImageError` where this image cannot be had, and `StorageError` where a storage does not answer.
    """
    try:
        return read_input(path)
    except ReadError as error:
        raise ImageError(str(error)) from error


def read_image_bytes(path: str | bytes | os.PathLike[str], *, digest: bytes | None = None) -> bytes:
    """Return the bytes of an image file, those with the sha256 `digest` where one is named.

    Raises `ImageError` as `read_image_file`, and where the file holds other bytes than those of `digest`.
    """
    data, _ = read_image_file(os.fspath(path))
    if digest is not None and hashlib.sha256(data).digest() != digest:
        raise ImageError("has changed: its bytes are others than when it was listed")
    return data


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
    """Return the sha256 of every file at `paths`, read by as many threads as there are processors.

    Of a storage, which answers late, many more are read at once.
    """
    from tqdm import tqdm

    digests = np.zeros((len(paths), 32), dtype=np.uint8)
    failures: dict[int, str] = {}

    def settle(index: int) -> None:
        try:
            data, _ = read_image_file(paths[index])
        except ImageError as error:
            failures[index] = str(error)
        else:
            digests[index] = np.frombuffer(hashlib.sha256(data).digest(), dtype=np.uint8)

    threads = THREADS if len(paths) and is_remote(paths[0]) else processor_count()
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=len(paths), desc="hash", unit="image", disable=None, delay=1) as bar,
    ):
        for start in range(0, len(paths), _WINDOW):
            for _ in pool.map(settle, range(start, min(start + _WINDOW, len(paths)))):
                bar.update()
    return HashedFiles(digests, dict(sorted(failures.items())))
