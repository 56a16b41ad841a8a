"""Check a bundle against its manifest, byte for byte, and unpack one from a zip without leaving its folder."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featcache.errors import CorruptError, FeatcacheError, InputError, MissingError, VerificationError
from featcache.files import new_directory
from featcache.recipe import canonical_json
from featcache.runtime.bundle import MANIFEST_FILE, REPORT_FILE, check_inside, open_bundle, read_manifest

_CHUNK = 1 << 20
_MAX_UNPACKED = 16 << 30  # a zip of a few bytes can claim to hold any amount


def digest_file(path: Path) -> str:
    """Return the sha256 (hexadecimal) of the bytes of the file at `path`."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest_bytes(values: Mapping[str, Any]) -> bytes:
    """Return the one form of a manifest with `values`; their own ``sha256`` is in it, so no byte can change alone."""
    plain = {key: value for key, value in values.items() if key != "sha256"}
    digest = hashlib.sha256(canonical_json(plain).encode()).hexdigest()
    return (json.dumps({**plain, "sha256": digest}, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def manifest_entries(folder: Path) -> dict[str, dict[str, Any]]:
    """Return ``{name: {sha256, bytes}}`` of every file below `folder` but the manifest and the report, by name."""
    return {
        name: {"sha256": digest_file(path), "bytes": path.stat().st_size}
        for name, path in sorted(_files_below(folder))
        if name not in (MANIFEST_FILE, REPORT_FILE)
    }


def verify_bundle(path: str | os.PathLike[str]) -> tuple[int, tuple[str, ...]]:
    """Return the number of intact files of the bundle at `path` and one line per problem.

    A problem is a changed, added or missing file, a link (it could point anywhere), or JSON that is not a bundle's.
    Only ``report.json``, which holds measurements, may differ. A manifest rewritten to match is not noticed: that takes
    a signature.
    """
    place = Path(path)
    if not place.is_dir():
        raise MissingError(f"BUNDLE must be a directory, {str(path)!r} is none")
    try:
        manifest = read_manifest(place)
        if manifest_bytes(manifest) != (place / MANIFEST_FILE).read_bytes():
            return 0, (f"{MANIFEST_FILE} is not as it was exported: it does not have its own sha256, or another form",)
        stated = manifest["files"]
        open_bundle(place)
    except (FeatcacheError, KeyError) as error:
        return 0, (str(error),)
    problems, intact = [], 0
    present = dict(_files_below(place))
    for name in sorted(stated):
        entry = stated[name]
        try:
            check_inside(name)
        except InputError as error:
            problems.append(str(error))
            continue
        if name not in present:
            problems.append(f"{name!r} is missing")
        elif present[name].is_symlink():
            problems.append(f"{name!r} is a symbolic link, not a file")
        elif not isinstance(entry, dict) or digest_file(present[name]) != entry.get("sha256"):
            problems.append(f"{name!r} is not the file that was exported: its sha256 differs")
        elif present[name].stat().st_size != entry.get("bytes"):
            problems.append(f"{name!r} is stated with another size")
        else:
            intact += 1
    extra = sorted(set(present) - set(stated) - {MANIFEST_FILE, REPORT_FILE})
    problems += [f"{name!r} was added after the export" for name in extra]
    problems += [
        f"{name!r} is a symbolic link, not a file"
        for name in (MANIFEST_FILE, REPORT_FILE)
        if name in present and present[name].is_symlink()
    ]
    return intact, tuple(problems)


def unpack(archive: str | os.PathLike[str], out: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Unpack the zip of a bundle at `archive` as the directory `out`, and return it; nothing is written outside it.

    Raises `InputError` for an entry with an absolute path, a ``..``, a link or a name twice, `CorruptError` for a
    broken zip, `VerificationError` for a bundle that does not match its manifest; `out` then does not exist.
    """
    target = Path(os.path.abspath(out))
    try:
        with zipfile.ZipFile(archive) as packed, new_directory(target, overwrite=overwrite) as folder:
            entries = [entry for entry in packed.infolist() if not entry.is_dir()]
            if len({entry.filename for entry in entries}) != len(entries):
                raise InputError(f"{os.fspath(archive)!r} must not name a file twice")
            if sum(entry.file_size for entry in entries) > _MAX_UNPACKED:
                raise InputError(f"{os.fspath(archive)!r} must unpack to at most {_MAX_UNPACKED >> 30} GiB")
            for entry in entries:
                check_inside(entry.filename)
                if stat.S_ISLNK(entry.external_attr >> 16):
                    raise InputError(f"a bundle must hold no links, got {entry.filename!r}")
                destination = folder / entry.filename
                destination.parent.mkdir(parents=True, exist_ok=True)
                with packed.open(entry) as source, open(destination, "xb") as file:
                    while chunk := source.read(_CHUNK):
                        file.write(chunk)
            _, problems = verify_bundle(folder)
            if problems:
                raise VerificationError(f"{os.fspath(archive)!r} must hold an unchanged bundle: {problems[0]}")
    except FileNotFoundError as error:
        raise MissingError(f"the archive must exist, {os.fspath(archive)!r} does not") from error
    except zipfile.BadZipFile as error:
        raise CorruptError(f"{os.fspath(archive)!r} must be a zip file, got: {error}") from error
    return target


def _files_below(folder: Path) -> list[tuple[str, Path]]:
    """Return (name, path) of everything below `folder` that is no directory; links are not followed."""
    found = []
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in [*files, *links]:
            path = Path(parent, name)
            found.append((path.relative_to(folder).as_posix(), path))
    return found
