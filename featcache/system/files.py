"""Write files and directories so that a reader sees either the old one or the new one, whole, whatever is killed."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from featcache.errors import ExistsError, FeatcacheError, StorageError


def sync_directory(path: Path) -> None:
    """Make the names in directory `path` durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the file `path` by `data`, durable on return; `StorageError` where the disk refuses."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
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
        raise StorageError(f"{str(path)!r} must be writable, got: {error.strerror}; free space or rights") from error


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
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    except OSError as error:
        raise StorageError(f"{str(path)!r} must be a place to write, got: {error.strerror}") from error
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
        raise StorageError(f"{str(path)!r} must be writable, got: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def new_file(path: Path, *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """Yield a file to write that takes the name `path`, durable, if the block succeeds, and vanishes if it fails.

    Raises `ExistsError` as `refuse_existing`, `StorageError` where the disk refuses.
    """
    refuse_existing(path, overwrite=overwrite)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
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
        raise StorageError(f"{str(path)!r} must be writable, got: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        retired = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old")
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
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "featcache"
