"""The manifest: written over every file of a bundle but those measured or signed, and checked byte for byte."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.errors import FeatcacheError, InputError, MissingError
from featcache.runtime.bundle import (
    MANIFEST_FILE,
    PREPROCESS_FILE,
    REPORT_FILE,
    SIGNATURE_FILE,
    check_inside,
    open_bundle,
    read_manifest,
)
from featcache.system.json import canonical_json
from featcache.system.members import digest_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_UNCOVERED = (MANIFEST_FILE, REPORT_FILE, SIGNATURE_FILE)  # files that the manifest does not state


def manifest_bytes(values: Mapping[str, Any]) -> bytes:
    """Return the one form of a manifest with `values`; their own ``sha256`` is in it, so no byte can change alone."""
    plain = {key: value for key, value in values.items() if key != "sha256"}
    digest = hashlib.sha256(canonical_json(plain).encode()).hexdigest()
    return (json.dumps({**plain, "sha256": digest}, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def manifest_entries(folder: Path) -> dict[str, dict[str, Any]]:
    """Return ``{name: {sha256, bytes}}`` of every file below `folder` that the manifest covers, by name."""
    return {
        name: {"sha256": digest_file(path), "bytes": path.stat().st_size}
        for name, path in sorted(files_below(folder))
        if name not in _UNCOVERED
    }


def may_be_bundle(place: Path) -> bool:
    """Return whether `place` holds a bundle, whole or with one of its two documents lost."""
    return (place / PREPROCESS_FILE).is_file() or (place / MANIFEST_FILE).is_file()


def verify_bundle(
    path: str | os.PathLike[str], *, public_key: Ed25519PublicKey | None = None
) -> tuple[int, tuple[str, ...]]:
    """Return the number of intact files of the bundle at `path` and one line per problem.

    A problem is a changed, added or missing file, a link (it could point anywhere), or JSON that is not a bundle's.
    Only ``report.json``, which holds measurements, may differ. A manifest rewritten to match is a problem where the
    bundle is signed; where the signature was made anew or taken away as well, only with the `public_key` of its maker.
    Raises `MissingError` where `path` is no directory.
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
    from featcache.bundle.signature import check_signature

    problems, intact = list(check_signature(place, public_key)[1]), 0
    present = dict(files_below(place))
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
    extra = sorted(set(present) - set(stated) - set(_UNCOVERED))
    problems += [f"{name!r} was added after the export" for name in extra]
    problems += [
        f"{name!r} is a symbolic link, not a file"
        for name in _UNCOVERED
        if name in present and present[name].is_symlink()
    ]
    return intact, tuple(problems)


def files_below(folder: Path) -> list[tuple[str, Path]]:
    """Return (name, path) of everything below `folder` that is no directory; links are not followed."""
    entries = []
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in [*files, *links]:
            path = Path(parent, name)
            entries.append((path.relative_to(folder).as_posix(), path))
    return entries
