"""Files that are dropped into the page: streamed to disk within bounds, under names that cannot leave their folder."""

from __future__ import annotations

import os
import shutil
import unicodedata
import zipfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from featcache.errors import InputError
from featcache.serve.refusals import CLOSE, RefusedError
from featcache.system.files import sync_directory

_MOST_PARTS = 8
_LONGEST_PART = 240  # bytes; file systems hold 255, and a file is made under a longer name first


@dataclass(frozen=True, slots=True)
class UploadBounds:
    """What is taken at most: bytes of a file and of a zip, and of what a zip holds its entries, bytes, and ratio."""

    file_bytes: int = 64_000_000
    zip_bytes: int = 4_000_000_000
    zip_entries: int = 200_000
    unpacked_bytes: int = 16_000_000_000
    ratio: float = 200.0


def safe_path(name: str) -> Path:
    """Return the relative path that a client calls a file by; `InputError` where it could leave its folder, or hide.

    >>> safe_path("cat/a b.jpg").as_posix()
    'cat/a b.jpg'
    >>> safe_path("../x.jpg")
    Traceback (most recent call last):
    featcache.errors.InputError: a file's name must be a path of 1 to 8 plain names, got '../x.jpg'
    """
    parts = name.split("/")
    plain = len(parts) <= _MOST_PARTS and all(_is_plain(part) for part in parts)
    if not plain:
        raise InputError(f"a file's name must be a path of 1 to {_MOST_PARTS} plain names, got {name[:100]!r}")
    return Path(*parts)


def _is_plain(part: str) -> bool:
    shown = not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in part)
    return (
        shown and bool(part.strip()) and not part.startswith(".") and not part.endswith(".")
        and not any(character in part for character in "\\:") and len(os.fsencode(part)) <= _LONGEST_PART
    )  # fmt: skip


async def receive(stream: AsyncIterator[bytes], target: Path, *, aside: Path, most: int) -> int:
    """Write what comes to the file `target`, whole and durable when this returns; return its bytes.

    It is written to `aside` first, of the same file system. Raises `RefusedError`: 413 for more than `most` bytes; 409
    where something of that name is no file. What is cut in the middle leaves nothing, no folder either.
    """
    size = 0
    try:
        with open(aside, "xb") as file:
            async for chunk in stream:
                size += len(chunk)
                if size > most:
                    raise RefusedError(413, f"a file must have at most {most} bytes, this one has more", headers=CLOSE)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        _put(aside, target)
        sync_directory(target.parent)
    finally:
        aside.unlink(missing_ok=True)
    return size


def _put(aside: Path, target: Path) -> None:
    """Move a file to its place; raises `RefusedError` (409) where something of that name is in the way."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise RefusedError(409, "a folder's name must not be a file's, there is one of that name") from error
    try:
        os.replace(aside, target)
    except IsADirectoryError as error:
        raise RefusedError(409, "a file's name must not be a folder's, there is one of that name") from error


def unpack_images(
    archive: Path, folder: Path, *, aside: Path, bounds: UploadBounds
) -> tuple[int, list[tuple[str, str]]]:
    """Unpack the zip file `archive` into `folder`; return how many files, and (name, reason) of those left out.

    Each is written to `aside` first, of the same file system, and durable when this returns. Raises `InputError` for
    what is no zip file, `RefusedError` (413) for one that unpacks to more than the bounds.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            _check_size(entries, packed=archive.stat().st_size, bounds=bounds)
            left_out, count = [], 0
            for entry in entries:
                try:
                    target = folder / safe_path(entry.filename)
                    if entry.flag_bits & 1 or (entry.external_attr >> 28) not in (0, 8):
                        raise InputError("an entry must be a plain file without a password")
                    _unpack(opened, entry, target, aside=aside)
                    count += 1
                except (InputError, RefusedError, zipfile.BadZipFile, NotImplementedError, OSError) as error:
                    left_out.append((entry.filename[:200], str(error)))
            if count:
                os.sync()  # durable, as a lone file is: one call for all of them
            return count, left_out
    except zipfile.BadZipFile as error:
        raise InputError(f"the file must be a zip file, got: {error}") from error


def _check_size(entries: list[zipfile.ZipInfo], *, packed: int, bounds: UploadBounds) -> None:
    unpacked = sum(entry.file_size for entry in entries)
    if len(entries) > bounds.zip_entries:
        raise RefusedError(413, f"a zip file must hold at most {bounds.zip_entries} files, this one {len(entries)}")
    if unpacked > bounds.unpacked_bytes or unpacked > bounds.ratio * max(packed, 1):
        raise RefusedError(
            413,
            f"a zip file must unpack to at most {bounds.unpacked_bytes} bytes and {bounds.ratio:g} times its own, this "
            f"one of {packed} says {unpacked}",
        )
    for entry in entries:
        if entry.file_size > bounds.file_bytes:
            raise RefusedError(413, f"a file must have at most {bounds.file_bytes} bytes, one has {entry.file_size}")


def _unpack(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, *, aside: Path) -> None:
    """Write one entry: as many bytes as it states and no more, which `zipfile` itself sees to."""
    try:
        with opened.open(entry) as source, open(aside, "xb") as file:
            shutil.copyfileobj(source, file)
        _put(aside, target)
    finally:
        aside.unlink(missing_ok=True)
