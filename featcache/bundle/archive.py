"""A bundle as one zip file, and back: what is unpacked cannot leave its folder, nor fill the disk."""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from featcache.bundle.manifest import files_below, verify_bundle
from featcache.bundle.signature import load_public_key
from featcache.errors import CorruptError, InputError, MissingError, VerificationError
from featcache.runtime.bundle import check_inside
from featcache.system.files import new_directory, new_file, refuse_existing

_CHUNK = 1 << 20
_MAX_FILES = 10_000
_MAX_RATIO = 100  # of what comes out to what is stored: weights do not shrink, text by ten times; a bomb by a thousand
_EPOCH = (1980, 1, 1, 0, 0, 0)


def pack(bundle: str | os.PathLike[str], out: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write the bundle at `bundle` as the zip file `out`, and return that; one bundle gives the same bytes anywhere.

    Files are stored uncompressed: weights hardly shrink, and the bytes of a compressed one depend on the library that
    made it. Raises `VerificationError` for a bundle that does not match its manifest, `ExistsError`.
    """
    place, target = Path(bundle), Path(os.path.abspath(out))
    refuse_existing(target, overwrite=overwrite)
    _, problems = verify_bundle(place)
    if problems:
        raise VerificationError(f"only an unchanged bundle can be packed, {str(place)!r} is not: {problems[0]}")
    with new_file(target, overwrite=overwrite) as file, zipfile.ZipFile(file, "w") as archive:
        for name, path in sorted(files_below(place)):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            entry.file_size = path.stat().st_size
            with open(path, "rb") as source, archive.open(entry, "w") as packed:
                shutil.copyfileobj(source, packed, _CHUNK)
    return target


def unpack(
    archive: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    public_key: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Unpack the zip of a bundle at `archive` as the directory `out`, and return it; nothing is written outside it.

    `public_key`: the PEM file of the key that it must be signed with. Raises `InputError` for an entry with an absolute
    path, a ``..``, a link or a name twice, and for an archive that unpacks to far more than it holds or than fits the
    disk; `MissingError` where there is no archive, `CorruptError` for a broken zip; `VerificationError` for a bundle
    that does not match its manifest or its signature. `out` then does not exist.
    """
    target, named = Path(os.path.abspath(out)), os.fspath(archive)
    key = None if public_key is None else load_public_key(public_key)
    try:
        with zipfile.ZipFile(archive) as packed, new_directory(target, overwrite=overwrite) as folder:
            entries = [entry for entry in packed.infolist() if not entry.is_dir()]
            _check_size(named, entries, stored=os.path.getsize(archive), free=shutil.disk_usage(folder).free)
            for entry in entries:
                _check_entry(named, entry)
                destination = folder / entry.filename
                destination.parent.mkdir(parents=True, exist_ok=True)
                with packed.open(entry) as source, open(destination, "xb") as file:
                    shutil.copyfileobj(source, file, _CHUNK)
            _, problems = verify_bundle(folder, public_key=key)
            if problems:
                raise VerificationError(f"{named!r} must hold an unchanged bundle: {problems[0]}")
    except FileNotFoundError as error:
        raise MissingError(f"the archive must exist, {named!r} does not") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise CorruptError(f"{named!r} must be a whole zip file, got: {error}") from error
    return target


def _check_size(named: str, entries: Sequence[zipfile.ZipInfo], *, stored: int, free: int) -> None:
    """Raise `InputError` for an archive that states too much: no more than stated is read of any entry."""
    if len({entry.filename.casefold() for entry in entries}) != len(entries):
        raise InputError(f"{named!r} must not name a file twice, also where upper and lower case are one")
    if len(entries) > _MAX_FILES:
        raise InputError(f"{named!r} must hold at most {_MAX_FILES} files, got {len(entries)}")
    total = sum(entry.file_size for entry in entries)
    if total > _MAX_RATIO * stored:
        raise InputError(
            f"{named!r} must unpack to at most {_MAX_RATIO} times its {stored} bytes, it states {total}: no bundle does"
        )
    if total > free:
        raise InputError(f"{named!r} must fit the disk, it unpacks to {total} bytes and {free} are free")


def _check_entry(named: str, entry: zipfile.ZipInfo) -> None:
    """Raise `InputError` unless the entry is a plain file with a path inside the bundle."""
    check_inside(entry.filename)
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise InputError(f"a bundle must hold no links, only files, got {entry.filename!r} in {named!r}")
    if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{named!r} must be stored or deflated and not encrypted, {entry.filename!r} is not")
