"""Files that are read in parts, on a disk or in a storage: what containers of many inputs stand on."""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import BinaryIO, cast

from featcache.errors import MissingError, ReadError, StorageError
from featcache.system.objects import ObjectPath, ObjectStatus, place_of
from featcache.system.sources.files import file_stat
from featcache.system.sources.interface import FileStat, fold
from featcache.system.sources.remote import object_stat, one_input

# A request brings the headers of several small members of a tar, or what stands beside a large one.
_READ_AHEAD = 256 << 10


class PartedFile(ABC):
    """A file as it was when it was opened; what is read once it has become another raises `ReadError`."""

    size: int

    @abstractmethod
    def open(self) -> BinaryIO:
        """Return it as a file to read and seek in, with a read-ahead; to be closed."""

    @abstractmethod
    def read_part(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` up to `stop`, which lie within it."""

    @abstractmethod
    def stat(self, size: int, *member: object) -> FileStat:
        """Return what names the content of the `member` that these words name, of `size` bytes."""

    @abstractmethod
    def is_current(self) -> bool:
        """Return whether it is still as it was."""


def open_parts(path: str) -> PartedFile:
    """Return the file at `path`, or of that URL; `MissingError` where there is none, `StorageError` if it is denied."""
    place = place_of(path)
    return ObjectParts(place) if isinstance(place, ObjectPath) else LocalParts(place)


class LocalParts(PartedFile):
    """A file on a disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._stat = file_stat(os.stat(path))
        except FileNotFoundError as error:
            raise MissingError(f"{str(path)!r} must exist, it does not") from error
        except OSError as error:
            raise StorageError(f"{str(path)!r} must be readable, got: {error.strerror}") from error
        self.size = self._stat[0]

    def open(self) -> BinaryIO:
        """Return the file, opened; `StorageError` where the system refuses."""
        try:
            return open(self._path, "rb")
        except OSError as error:
            raise StorageError(f"{str(self._path)!r} must be readable, got: {error.strerror}") from error

    def read_part(self, start: int, stop: int) -> bytes:
        """Return a part, opened anew, so that no file is left open; `ReadError` for another file by now."""
        try:
            with open(self._path, "rb", buffering=0) as file:
                before = file_stat(os.fstat(file.fileno()))
                file.seek(start)
                data = file.read(stop - start)
                if before != self._stat or file_stat(os.fstat(file.fileno())) != before or len(data) != stop - start:
                    raise ReadError("is being written to")
        except OSError as error:
            raise ReadError(f"cannot be read: {error.strerror or error}") from error
        return data

    def stat(self, size: int, *member: object) -> FileStat:
        """Return the times of the file, so that the rule for files that were just changed holds for its members."""
        return (size, self._stat[1], self._stat[2], fold(self._stat[0], self._stat[3], *member))

    def is_current(self) -> bool:
        """Return whether the file's stat is what it was."""
        try:
            return file_stat(os.stat(self._path)) == self._stat
        except OSError:
            return False


class ObjectParts(PartedFile):
    """An object in a storage."""

    def __init__(self, place: ObjectPath) -> None:
        self._place, self._status = place, place.status()
        self.size = self._status.size

    def open(self) -> BinaryIO:
        """Return the object as a file; what lies near is fetched together."""
        return cast(BinaryIO, io.BufferedReader(PartsFile(self), _READ_AHEAD))

    def read_part(self, start: int, stop: int) -> bytes:
        """Return a part by one request, which says what it is of; `ReadError` for another object by now."""
        data, status = one_input(lambda: self._place.read_part(start, stop))
        if not _same(status, self._status):
            raise ReadError("is being written to")
        return data

    def stat(self, size: int, *member: object) -> FileStat:
        """Return the object's, with the member folded in."""
        return (size, *object_stat(self._place, self._status, *member)[1:])

    def is_current(self) -> bool:
        """Return whether the storage has the same object still."""
        try:
            return _same(self._place.status(), self._status)
        except MissingError:
            return False


def _same(one: ObjectStatus, other: ObjectStatus) -> bool:
    if one.etag or other.etag:
        return (one.size, one.etag) == (other.size, other.etag)
    return one == other


class PartsFile(io.RawIOBase):
    """A file that is read in parts as one to seek in: each read is one read of a part, and nothing is left open."""

    def __init__(self, parts: PartedFile) -> None:
        self._parts, self._position = parts, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return where the next read begins."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to `offset` from the beginning, from here or from the end."""
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._parts.size}[whence]
        self._position = max(0, begin + offset)
        return self._position

    def readinto(self, buffer: object) -> int:
        """Fill `buffer` from here on; return how many bytes there were."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        stop = min(self._position + len(view), self._parts.size)
        if stop <= self._position:
            return 0
        data = self._parts.read_part(self._position, stop)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)
