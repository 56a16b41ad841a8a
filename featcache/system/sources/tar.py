"""Members of a tar, on a disk or in a storage: found by their headers alone, nothing is ever unpacked."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from featcache.errors import FormatError, ReadError
from featcache.system.sources.interface import MAX_FILE_BYTES, Container, FileStat
from featcache.system.sources.parts import PartedFile, open_parts


@dataclass(frozen=True, slots=True)
class Member:
    """A plain file within a tar. `name`: ``/``-separated, without ``./``; it cannot lead out of the tar."""

    name: str
    offset: int
    size: int


class TarWalk:
    """The members of an opened tar, one after another, and what else there was, known at the end.

    `ignored`: links, devices and other members that are no plain files. `failures`: (name, reason): members whose name
    leads out of the tar, and, under the name "", a tar that breaks off. Raises `FormatError` for what is no tar.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.ignored = 0
        self.failures: list[tuple[str, str]] = []

    def __iter__(self) -> Iterator[Member]:
        size = self._file.seek(0, io.SEEK_END)
        self._file.seek(0)
        count = 0
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as tar:
                while (entry := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # the library would keep each
                    if entry.isdir():
                        continue
                    if not entry.isreg() or entry.issparse():
                        self.ignored += 1
                        continue
                    name = _inside(entry.name)
                    if entry.offset_data + entry.size > size:
                        break
                    if name is None:
                        self.failures.append((entry.name, "its name leads out of the tar"))
                        continue
                    count += 1
                    yield Member(name, entry.offset_data, entry.size)
                else:
                    self._file.seek(tar.offset)
                    if self._file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE):
                        return
        except tarfile.TarError as error:
            if not count and not self.ignored and not self.failures:
                raise FormatError(
                    f"must be a tar that is not compressed, it cannot be read as one ({error})"
                ) from error
        self.failures.append(("", f"is cut off or damaged behind its first {count} files"))

    def read(self, member: Member) -> bytes:
        """Return the bytes of `member`, best right after it was met."""
        self._file.seek(member.offset)
        return self._file.read(member.size)


class TarContainer(Container):
    """A tar whose members are read by their names, each by one read."""

    def __init__(self, path: str) -> None:
        self._file = open_parts(path)
        with self._file.open() as opened:
            self._members = {member.name: member for member in TarWalk(opened)}

    def read(self, name: str) -> tuple[bytes, FileStat]:
        """Return the member called `name`."""
        member = self._members.get(name)
        if member is None:
            raise ReadError("cannot be read: the tar has no such member")
        if member.size > MAX_FILE_BYTES:
            raise ReadError(f"is larger than {MAX_FILE_BYTES} bytes")
        data = self._file.read_part(member.offset, member.offset + member.size) if member.size else b""
        return data, member_stat(self._file, member)

    def is_current(self) -> bool:
        """Return whether the tar is the one whose members are known."""
        return self._file.is_current()


def member_stat(file: PartedFile, member: Member) -> FileStat:
    """Return what names the content of a member of the tar `file`."""
    return file.stat(member.size, member.offset)


def _inside(name: str) -> str | None:
    """Return the name without empty parts and ``.``; None where it leads out of the tar."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or not parts or "\0" in name:
        return None
    return "/".join(parts)
