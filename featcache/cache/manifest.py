"""The manifest of a cache: what its directory is, the Recipe of its rows, and what was asked for; under a checksum."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featcache.errors import CorruptError, FormatError, MissingError
from featcache.recipe import Recipe
from featcache.system.files import write_atomically
from featcache.system.json import DocumentKind, read_document, with_checksum

CACHE_VERSION = 2
UNCHECKED_VERSION = 1  # as version 2, without checksums and copy: still read
_FORMAT = "featcache-cache"
_MAIN, _COPY = "manifest.json", "manifest-copy.json"
_MEND = (
    "featcache verify --repair restores it from its copy; where that is lost too, 'featcache build IMAGES --cache "
    "CACHE --overwrite' begins anew"
)
_DOCUMENT = DocumentKind(
    "CACHE",
    make="make one with 'featcache build'",
    renew=_MEND,
    format=_FORMAT,
    versions=(UNCHECKED_VERSION, CACHE_VERSION),
    keys=("fingerprint", "store", "recipe", "request"),
    checksum=True,
    unchecked=(UNCHECKED_VERSION,),
)


def is_cache(path: Path) -> bool:
    """Return whether `path` looks like a cache, intact or not."""
    return (path / "store").is_dir() and any((path / name).is_file() for name in (_MAIN, _COPY))


def may_be_cache(path: Path) -> bool:
    """Return whether the directory `path` holds what is left of a cache and nothing else: it may be replaced."""
    names = set(os.listdir(path)) if path.is_dir() and not path.is_symlink() else set()
    return bool(names & {_MAIN, _COPY, "store"}) and names <= {_MAIN, _COPY, "store", "samples", "requests.json"}


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the checked manifest of the cache at `path`.

    Raises `MissingError` where there is nothing, `FormatError` where it is no cache or one of a newer format,
    `CorruptError` where its manifest was changed.
    """
    if not path.exists():
        raise MissingError(
            f"CACHE must be an existing cache, {str(path)!r} does not exist: make one with featcache build"
        )
    return _read(path / _MAIN)


def write_manifest(place: Path, recipe: Recipe, *, store: str, request: Mapping[str, Any]) -> None:
    """Write ``manifest.json`` and its copy into `place`, which makes a directory with a store a cache."""
    manifest = with_checksum(
        {
            "format": _FORMAT,
            "version": CACHE_VERSION,
            "fingerprint": recipe.fingerprint,
            "store": store,
            "recipe": recipe.to_json(),
            "request": dict(request),
        }
    )
    for name in (_COPY, _MAIN):
        write_atomically(place / name, json.dumps(manifest, indent=1, sort_keys=True).encode())


def check_manifest(path: Path, *, repair: bool = False) -> list[str]:
    """Return what is wrong with the manifest of the cache at `path` and its copy.

    `repair`: restore a damaged one from the other. Raises `CorruptError` where both are damaged, and as
    `read_manifest` where this is no cache.
    """
    main, copy = path / _MAIN, path / _COPY
    try:
        manifest = read_manifest(path)
    except (CorruptError, FormatError) as error:
        try:
            _read(copy)
        except (CorruptError, FormatError):
            raise error from None
        if repair:
            write_atomically(main, copy.read_bytes())
        return [str(error)]
    if manifest["version"] == UNCHECKED_VERSION or (copy.is_file() and copy.read_bytes() == main.read_bytes()):
        return []
    if repair:
        write_atomically(copy, main.read_bytes())
    return [f"{str(copy)!r} must be as {_MAIN!r}, it is not"]


def _read(file: Path) -> dict[str, Any]:
    path = file.parent
    if not file.exists():
        if is_cache(path):
            raise CorruptError(f"{str(file)!r} must be there, it is missing; {_MEND}")
        inside = sorted(str(manifest.parent) for manifest in path.glob(f"*/{_MAIN}"))
        hint = f"; it holds {inside!r}: name one of them" if inside else ""
        raise FormatError(f"CACHE must be a directory that featcache build made, {str(path)!r} is not{hint}")
    manifest = read_document(file, _DOCUMENT)
    if Recipe.from_json(manifest["recipe"]).fingerprint != manifest["fingerprint"]:
        raise CorruptError(f"{str(file)!r} must match its fingerprint, it does not; {_MEND}")
    return manifest
