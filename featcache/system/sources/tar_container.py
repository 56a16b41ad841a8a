"""A tar as a container: its members read by their names."""

from __future__ import annotations

from featcache.errors import ReadError
from featcache.system.sources.interface import MAX_FILE_BYTES, Container, FileStat
from featcache.system.sources.parts import open_parts
from featcache.system.sources.tar import TarWalk, member_stat
from featcache.system.sources.tar_index import kept_index


class TarContainer(Container):
    """A tar whose members are read by their names, each by one read."""

    def __init__(self, path: str) -> None:
        self._file = open_parts(path)
        index = kept_index(self._file)
        if index is not None:
            members = index.members
        else:
            with self._file.open() as opened:
                members = list(TarWalk(opened))
        self._members = {member.name: member for member in members}

    def read(self, name: str) -> tuple[bytes, FileStat]:
        """Return the member called `name`; raises `ReadError` as `Container.read`."""
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
