"""Which file a row of a table names: as it stands there, in another spelling, or by its name without the ending."""

from __future__ import annotations

import os
import stat as stat_module
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

from featcache.datasets.walk import find_files, has_image_extension
from featcache.images.read import FileStat


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file that a row names: `path` below the table's folder, its `stat`; `spelled`: otherwise than in the table."""

    path: str
    stat: FileStat
    spelled: bool


class TableFolder:
    """The files in the folder of a table, looked up as the table calls them."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._real = os.path.realpath(root)

    def find(self, path: str) -> FoundFile | str:
        """Return the file that `path` names, or why it names none."""
        inside = self._inside(path)
        if inside is None:
            return "the path leaves the folder of the CSV"
        found = self._stat(inside)
        if isinstance(found, FoundFile) or found != _ABSENT:
            return found
        spelled = self._inside(path.strip().replace("\\", "/"))
        if spelled is not None and spelled != inside and isinstance(found := self._stat(spelled), FoundFile):
            return found
        key = _key(spelled or inside)
        candidates = self._called.get(key, [])
        if not has_image_extension(inside):
            candidates = candidates or self._called_without_ending.get(key) or self._named.get(key, [])
        if len(candidates) == 1:
            found = self._stat(candidates[0])
            return found if isinstance(found, str) else FoundFile(found.path, found.stat, True)
        if candidates:
            return f"names {len(candidates)} files: {', '.join(sorted(candidates)[:3])}{', …' * (len(candidates) > 3)}"
        return _ABSENT

    def names_an_image(self, path: str) -> bool:
        """Return whether `path` reads like an image's, or is found by its name without the ending."""
        return bool(path) and (has_image_extension(path) or isinstance(self.find(path), FoundFile))

    def common_folder(self, path: str) -> str | None:
        """Return the one folder below which `path` is found, where there is just one; None else."""
        inside = self._inside(path.strip().replace("\\", "/"))
        if inside is None:
            return None
        end = "/" + _key(inside)
        depth = inside.count("/") + 1
        above = {"/".join(name.split("/")[:-depth]) for name in self._files if _key(name).endswith(end)}
        return above.pop() if len(above) == 1 else None

    def _inside(self, path: str) -> str | None:
        """Return `path` relative to the folder and normalised; None where it is empty or climbs out of it."""
        if not path or "\0" in path:
            return None
        pure = PurePosixPath(path.replace("\\", "/") if os.sep == "\\" else path)
        if pure.is_absolute():
            for root in (self.root, self._real):
                if pure.is_relative_to(root):
                    pure = pure.relative_to(root)
                    break
            else:
                return None
        parts: list[str] = []
        for part in pure.parts:
            if part != "..":
                parts.append(part)
            elif parts:
                parts.pop()
            else:
                return None
        return "/".join(parts) or None

    def _stat(self, inside: str) -> FoundFile | str:
        place = os.path.join(self.root, inside)
        try:
            status = os.stat(place)
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        if not os.path.realpath(place).startswith(self._real.rstrip(os.sep) + os.sep):
            return "a symbolic link that leaves the folder of the CSV"
        if not stat_module.S_ISREG(status.st_mode):
            return "not a regular file"
        stat = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        return FoundFile(inside, stat, False)

    @cached_property
    def _files(self) -> list[str]:
        return find_files(self.root).paths

    @cached_property
    def _called(self) -> dict[str, list[str]]:
        """Files by their whole path, in one spelling."""
        return _grouped((_key(name), name) for name in self._files)

    @cached_property
    def _called_without_ending(self) -> dict[str, list[str]]:
        return _grouped((_key(name.rpartition(".")[0]), name) for name in self._files)

    @cached_property
    def _named(self) -> dict[str, list[str]]:
        """Files by their name without folder and ending, in one spelling."""
        return _grouped((_key(name.rpartition("/")[2].rpartition(".")[0]), name) for name in self._files)


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


_ABSENT = f"cannot be read: {os.strerror(2)}"


def _key(path: str) -> str:
    """Return one spelling for all that differ in letter case or in how accents are composed."""
    return unicodedata.normalize("NFC", path.casefold())
