"""Where the files that a table names are looked for: on a disk, in a storage that lists, on a web server."""

from __future__ import annotations

import os
import stat as stat_module
from abc import ABC, abstractmethod
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

from featcache.datasets.object_walk import find_objects
from featcache.datasets.walk import find_files
from featcache.errors import ReadError
from featcache.system.objects import ObjectPath
from featcache.system.read_ahead import THREADS
from featcache.system.sources.files import file_stat
from featcache.system.sources.interface import FileStat
from featcache.system.sources.remote import object_stat, one_input

ABSENT = f"cannot be read: {os.strerror(2)}"


class TablePlace(ABC):
    """The files below the folder of a table, by their path relative to it, which does not climb out of it."""

    roots: tuple[str, ...]

    @abstractmethod
    def stat(self, inside: str) -> FileStat | str:
        """Return the stat of the file `inside`, or why it cannot be read: `ABSENT` where there is none."""

    @abstractmethod
    def images(self) -> list[str]:
        """Return the paths of all image files."""

    def prepare(self, paths: Iterable[str]) -> None:
        """Look up the files at `paths`, which will be asked for, together."""
        return  # a place that answers at once needs none


class DiskPlace(TablePlace):
    """A folder on a disk."""

    def __init__(self, root: str) -> None:
        self._root, self._real = root, os.path.realpath(root)
        self.roots = (self._root, self._real)

    def stat(self, inside: str) -> FileStat | str:
        """Return the stat; a link must stay in the folder."""
        place = os.path.join(self._root, inside)
        try:
            status = os.stat(place)
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        if not os.path.realpath(place).startswith(self._real.rstrip(os.sep) + os.sep):
            return "a symbolic link that leaves the folder of the CSV"
        return file_stat(status) if stat_module.S_ISREG(status.st_mode) else "not a regular file"

    def images(self) -> list[str]:
        """Return the image files of the folder."""
        return find_files(self._root).paths


class StoragePlace(TablePlace):
    """A place in a storage; one listing of it says of all files what they are."""

    def __init__(self, root: str) -> None:
        self._place = ObjectPath(root)
        self.roots = (root,)

    def stat(self, inside: str) -> FileStat | str:
        """Return the stat, of an image from the listing."""
        if inside in self._listed:
            return self._listed[inside]
        return _stat(self._place / inside)

    def images(self) -> list[str]:
        """Return the image objects."""
        return list(self._listed)

    @cached_property
    def _listed(self) -> dict[str, FileStat]:
        files = find_objects(self._place)
        numbers = files.numbers
        return {
            path: (numbers[4 * i], numbers[4 * i + 1], numbers[4 * i + 2], numbers[4 * i + 3])
            for i, path in enumerate(files.paths)
        }


class WebPlace(TablePlace):
    """A folder of a web server, which does not say what is in it: each file is asked for."""

    def __init__(self, root: str) -> None:
        self._place = ObjectPath(root)
        self.roots = (root,)
        self._stats: dict[str, FileStat | str] = {}

    def stat(self, inside: str) -> FileStat | str:
        """Return the stat that the server says."""
        if inside not in self._stats:
            self._stats[inside] = _stat(self._place / inside)
        return self._stats[inside]

    def images(self) -> list[str]:
        """Return nothing: the server does not say."""
        return []

    def prepare(self, paths: Iterable[str]) -> None:
        """Ask for many files at once."""
        todo = list(dict.fromkeys(path for path in paths if path not in self._stats))
        self._stats.update(zip(todo, object_stats([self._place / path for path in todo]), strict=True))


def table_place(root: str) -> TablePlace:
    """Return the place at `root`, a folder or a URL."""
    if "://" not in root:
        return DiskPlace(root)
    return WebPlace(root) if root.startswith(("http://", "https://")) else StoragePlace(root)


def object_stats(places: list[ObjectPath]) -> list[FileStat | str]:
    """Return the stat of each object, or why it cannot be read; many are asked for at once."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(_stat, places))


def _stat(place: ObjectPath) -> FileStat | str:
    try:
        return object_stat(place, one_input(place.status))
    except ReadError as error:
        return ABSENT if "no such object" in str(error) else str(error)
