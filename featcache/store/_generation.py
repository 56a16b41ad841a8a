"""One generation of a store on disk: a file or directory that only ever grows, and what a backend must do with it.

The store's directory holds ``rows-000001.KIND``; the highest number is the store. Appending changes it in place, so
that rows once committed are never written again. Removing rows writes the next generation under a hidden name and
renames it into place, complete: that rename is the commit. The old one is removed once no reader holds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from featcache.errors import FeatcacheError, FormatError, MissingError, StorageError
from featcache.store._record import Layout, Record
from featcache.store._spare import BEGIN_ANEW
from featcache.store.settings import StoreSettings
from featcache.system.files import sync_directory

_NAME = re.compile(r"rows-(\d{6,})\.(lmdb|zarr)")


@dataclass(frozen=True, slots=True)
class Block:
    """Rows to be written as block `index` of an array: `payload` holds their bytes, for all of its rows so far."""

    layout: Layout
    index: int
    payload: bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a stored block's payload lies: `size` bytes from `offset` of the open `file`, and their stored crc32c."""

    file: int
    offset: int
    size: int
    crc32c: int


@dataclass(frozen=True, slots=True)
class Committed:
    """What is committed at one instant: the `record`, and the checked payload of each array's last, partial block."""

    record: Record
    tails: dict[str, memoryview]


class Generation(ABC):
    """One generation, open in this process. Its readers hold it; writers hold the store's lock as well."""

    _hold = -1

    def __init__(self, path: Path, settings: StoreSettings) -> None:
        self.path = path
        self.settings = settings
        self._hold = _hold_shared(path)

    @property
    def number(self) -> int:
        """Its number; the store is the generation with the highest."""
        return int(self.path.stem.removeprefix("rows-"))

    @property
    def kind(self) -> str:
        """The kind of store it is, ``lmdb`` or ``zarr``."""
        return self.path.suffix[1:]

    @classmethod
    @abstractmethod
    def create(cls, path: Path, record: Record, settings: StoreSettings) -> None:
        """Make a generation at `path`, holding `record` and no rows."""

    @abstractmethod
    def stamp(self) -> bytes:
        """Return bytes that change with every commit."""

    @abstractmethod
    def load(self) -> Committed:
        """Return what is committed; raises `CorruptError`, `FormatError`."""

    @abstractmethod
    def record(self) -> Record:
        """Return the commit record alone, from its second copy where the first is damaged."""

    @abstractmethod
    def locate(self, layout: Layout, block: int) -> AbstractContextManager[Extent]:
        """Open the file that holds a block; raises `CorruptError` where there is none of its size."""

    @abstractmethod
    def write(self, blocks: Iterable[Block], record: Record | None) -> None:
        """Write blocks, durably, then publish `record`; without one nothing becomes visible. Raises `StorageError`."""

    @abstractmethod
    def read_block(self, layout: Layout, block: int, rows: int) -> tuple[bytes, bool]:
        """Return the bytes of a block of at least `rows` rows as they are on disk now, and whether they are intact.

        Raises `CorruptError` where there is no such block, or not of that size.
        """

    @abstractmethod
    def trim(self, record: Record) -> None:
        """Remove what was written and never committed."""

    @abstractmethod
    def check_structure(self, record: Record) -> list[str]:
        """Return one line for each thing damaged outside the blocks; `read_block` then finds what can be found."""

    @abstractmethod
    def nbytes(self) -> int:
        """Return the bytes it occupies on disk."""

    @abstractmethod
    def spare_bytes(self) -> int:
        """Return the bytes of `nbytes` that writing the same rows afresh would save."""

    def close(self) -> None:
        """Let go of it, so that it may be removed once it is outdated."""
        if self._hold >= 0:
            os.close(self._hold)
            self._hold = -1

    def __del__(self) -> None:
        self.close()


def list_generations(path: Path) -> list[tuple[int, Path]]:
    """Return (number, path) of the store's generations, rising; raises `MissingError`, `FormatError`."""
    try:
        names = os.listdir(path)
    except FileNotFoundError as error:
        raise MissingError(f"a store must be an existing directory, {str(path)!r} is not") from error
    except NotADirectoryError as error:
        raise FormatError(f"a store must be a directory, {str(path)!r} is a file") from error
    generations = sorted((int(match[1]), path / name) for name in names if (match := _NAME.fullmatch(name)))
    if not generations:
        raise FormatError(
            f"a store must hold a file or directory rows-NUMBER.lmdb or .zarr, {str(path)!r} does not: {BEGIN_ANEW}"
        )
    return generations


def generation_path(path: Path, number: int, kind: str) -> Path:
    """Return the place of a generation."""
    return path / f"rows-{number:06d}.{kind}"


@contextlib.contextmanager
def new_generation(path: Path, number: int, kind: str) -> Iterator[Path]:
    """Yield a hidden place for generation `number`; when the block ends well it is renamed into its own, durably.

    Raises `StorageError` where the directory cannot be written to.
    """
    final = generation_path(path, number, kind)
    temporary = path / f".{final.name}"
    remove(temporary)
    try:
        yield temporary
        os.rename(temporary, final)
        sync_directory(path)
        remove(temporary)  # what LMDB leaves beside it
    except FeatcacheError:
        remove(temporary)
        raise
    except OSError as error:
        remove(temporary)
        raise StorageError(f"{str(path)!r} must be writable, got: {error.strerror or error}") from error
    except BaseException:
        remove(temporary)
        raise


def remove_outdated(path: Path) -> None:
    """Remove generations that are no longer the store and that no reader holds, and unfinished ones."""
    generations = list_generations(path)
    for name in os.listdir(path):
        if name.startswith(".") and _NAME.fullmatch(name[1:].removesuffix("-lock")):
            remove(path / name)
    for _, old in generations[:-1]:
        handle = os.open(old, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        finally:
            os.close(handle)
        remove(old)


def remove(path: Path) -> None:
    """Remove a generation, hidden or not, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.with_name(path.name + "-lock").unlink(missing_ok=True)


def _hold_shared(path: Path) -> int:
    """Lock `path` against removal for as long as the returned descriptor, or a forked child's copy of it, is open."""
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if not os.path.exists(path):  # it was removed between the two calls
            raise FileNotFoundError(path)
    except OSError:
        os.close(handle)
        raise
    return handle
