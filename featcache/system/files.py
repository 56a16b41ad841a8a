"""Write files and directories so that a reader sees either the old one or the new one, whole, whatever is killed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from featcache.errors import ExistsError, FeatcacheError, StorageError
from featcache.system.objects import ObjectPath


def sync_directory(path: Path) -> None:
    """Make the names in directory `path` durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path | ObjectPath, data: bytes) -> None:
    """Replace the file or object `path` by `data`, durable on return; `StorageError` where the disk refuses."""
    if isinstance(path, ObjectPath):
        path.write_bytes(data)  # a storage replaces an object whole
        return
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
    except OSError as error:
        raise _refused(path, error) from error


_FULL = (errno.ENOSPC, errno.EDQUOT)


def _refused(path: Path, error: OSError) -> StorageError:
    """Return the error of an output that could not be made at `path`, naming what the system refused."""
    named = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(path)
    own = named == str(path) or f".{path.name}." in named  # what is made aside is no name that a user knows
    what = f"{str(path)!r} must be writable" if own else f"{named!r} must be usable"
    advice = free_space_advice() if error.errno in _FULL else "see to its rights, or name another place"
    return StorageError(f"{what}, got: {error.strerror or error}; {advice}")


def free_space_advice() -> str:
    """Return what to do where a disk is full; what is computed in between lies in the temporary folder."""
    return f"free space there and in the temporary folder {temporary_folder()!r} (TMPDIR)"


def temporary_folder() -> str:
    """Return where temporary folders are made; the one asked for, where none can be."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        return os.environ.get("TMPDIR") or "/tmp"


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise `ExistsError` where `path` exists and may not be replaced."""
    if os.path.lexists(path) and not overwrite:
        raise ExistsError(f"{str(path)!r} exists already: name another place or pass --overwrite")


@contextlib.contextmanager
def new_directory(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty directory beside `path` that takes its name if the block succeeds, and vanishes if it fails.

    Raises `ExistsError` as `refuse_existing`, `StorageError` where the disk refuses.
    """
    refuse_existing(path, overwrite=overwrite)
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    except OSError as error:
        raise _refused(path, error) from error
    try:
        yield temporary
        if overwrite and os.path.lexists(path):
            _remove(path)
        refuse_existing(path, overwrite=False)  # another process may have made it meanwhile
        os.rename(temporary, path)
        sync_directory(path.parent)
    except FeatcacheError:
        raise  # some are an OSError too: they have said what is wrong
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def new_file(path: Path, *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """Yield a file to write that takes the name `path`, durable, if the block succeeds, and vanishes if it fails.

    Raises `ExistsError` as `refuse_existing`, `StorageError` where the disk refuses.
    """
    refuse_existing(path, overwrite=overwrite)
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except FeatcacheError:
        raise  # some are an OSError too: they have said what is wrong
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        retired = path.with_name(f".{path.name}.{os.urandom(4).hex()}.old")
        os.rename(path, retired)
        shutil.rmtree(retired)
    else:
        path.unlink()


def safe_name(name: str) -> str:
    """Return `name` as a file name that cannot leave its folder; unusual characters as %XX of their UTF-8."""
    return re.sub(r"[^A-Za-z0-9_.-]|^\.", lambda match: "".join(f"%{b:02X}" for b in os.fsencode(match[0])), name)


def cache_home() -> Path:
    """Return where converted networks and downloaded tools are kept: $FEATCACHE_HOME, else the user's cache folder."""
    named = os.environ.get("FEATCACHE_HOME")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or user_home() / ".cache") / "featcache"


def user_home() -> Path:
    """Return the user's home; the root folder for a user number without a name and ``HOME``, as containers set it."""
    home = os.path.expanduser("~")
    return Path(os.sep if home == "~" else home)
