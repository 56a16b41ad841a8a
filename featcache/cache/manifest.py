"""The manifest of a cache: what its directory is, the Recipe of its rows, and what was asked for; under a checksum."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featcache.errors import CorruptError, FormatError, MissingError
from featcache.recipe import Recipe
from featcache.system.files import write_atomically
from featcache.system.json import DocumentKind, read_document, with_checksum
from featcache.system.objects import ObjectPath, remove_objects

CACHE_VERSION = 2
UNCHECKED_VERSION = 1  # as version 2, without checksums and copy: still read
_FORMAT = "featcache-cache"
_MAIN, _COPY = "manifest.json", "manifest-copy.json"
CONTENT = "content-"  # begins the name of what a cache on object storage holds
KEPT_SECONDS = 86_400.0  # content that no manifest names and that nobody put anything into for so long is of no use
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


def is_cache(path: Path | ObjectPath) -> bool:
    """Return whether `path` looks like a cache, intact or not."""
    if isinstance(path, ObjectPath):
        return any((path / name).exists() for name in (_MAIN, _COPY))
    return (path / "store").is_dir() and any((path / name).is_file() for name in (_MAIN, _COPY))


def may_be_cache(path: Path | ObjectPath) -> bool:
    """Return whether the directory `path` holds what is left of a cache and nothing else: it may be replaced."""
    if isinstance(path, ObjectPath):
        folders, objects = path.children()
        named = all(name.startswith(CONTENT) for name in folders) and {*objects} <= {_MAIN, _COPY}
        return bool(folders or objects) and named
    names = set(os.listdir(path)) if path.is_dir() and not path.is_symlink() else set()
    return bool(names & {_MAIN, _COPY, "store"}) and names <= {_MAIN, _COPY, "store", "samples", "requests.json"}


def read_manifest(path: Path | ObjectPath) -> dict[str, Any]:
    """Return the checked manifest of the cache at `path`.

    Raises `MissingError` where there is nothing, `FormatError` where it is no cache or one of a newer format,
    `CorruptError` where its manifest was changed.
    """
    if not (is_cache(path) if isinstance(path, ObjectPath) else path.exists()):
        inside = _caches_inside(path)
        hint = f": it holds {inside!r}, name one of them" if inside else ": make one with featcache build"
        raise MissingError(f"CACHE must be an existing cache, {str(path)!r} does not exist{hint}")
    return _read(path / _MAIN)


def content_of(path: Path | ObjectPath, manifest: Mapping[str, Any]) -> Path | ObjectPath:
    """Return where the rows and samples of the cache at `path` lie: on object storage below a name of their own.

    So the manifest alone says which they are, and a cache is begun anew by one put.
    """
    return path / manifest["content"] if "content" in manifest else path


def make_manifest(
    recipe: Recipe, *, store: str, request: Mapping[str, Any], content: str | None = None
) -> dict[str, Any]:
    """Return the manifest of a new cache; `content`: the name of what it holds, for one on object storage."""
    return with_checksum(
        {
            "format": _FORMAT,
            "version": CACHE_VERSION,
            "fingerprint": recipe.fingerprint,
            "store": store,
            "recipe": recipe.to_json(),
            "request": dict(request),
            **({} if content is None else {"content": content}),
        }
    )


def write_manifest(place: Path | ObjectPath, manifest: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Write ``manifest.json`` and its copy into `place`, which makes a directory with a store a cache.

    Raises `ExistsError` where there is one on object storage and `overwrite` is false.
    """
    text = json.dumps(manifest, indent=1, sort_keys=True).encode()
    if isinstance(place, ObjectPath) and not overwrite:
        (place / _MAIN).claim(text)
    elif isinstance(place, ObjectPath):
        (place / _MAIN).write_bytes(text)
    else:
        write_atomically(place / _COPY, text)
        write_atomically(place / _MAIN, text)
        return
    (place / _COPY).write_bytes(text)  # after it: the first manifest of several is the one


def named_contents(path: ObjectPath) -> set[str]:
    """Return the names of the content that the manifest at `path` or its copy names; a damaged one names none."""
    names = set()
    for file in (path / _MAIN, path / _COPY):
        with contextlib.suppress(MissingError, CorruptError, FormatError):
            names.add(str(read_document(file, _DOCUMENT).get("content")))
    return {name for name in names if name.startswith(CONTENT)}


def clear_contents(path: ObjectPath, *, kept_seconds: float = KEPT_SECONDS) -> int:
    """Remove content at `path` that no manifest names and into which nothing was put for `kept_seconds`.

    Creations that were killed left it; one that goes on puts something sooner. Returns how many objects it were.
    """
    before = time.time_ns() - round(kept_seconds * 1e9)
    removed = 0
    for name in path.children()[0]:
        if not name.startswith(CONTENT):
            continue
        objects = list((path / name).walk())
        # asked now, not before: what was just finished is named
        if all(status.modified_ns < before for _, status in objects) and name not in named_contents(path):
            remove_objects([one for one, _ in objects])
            removed += len(objects)
    return removed


def check_manifest(path: Path | ObjectPath, *, repair: bool = False) -> list[str]:
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
    if manifest["version"] == UNCHECKED_VERSION or (copy.exists() and copy.read_bytes() == main.read_bytes()):
        return []
    if repair:
        write_atomically(copy, main.read_bytes())
    return [f"{str(copy)!r} must be as {_MAIN!r}, it is not"]


def _read(file: Path | ObjectPath) -> dict[str, Any]:
    path = file.parent
    if not file.exists():
        if is_cache(path):
            raise CorruptError(f"{str(file)!r} must be there, it is missing; {_MEND}")
        inside = _caches_inside(path)
        hint = f"; it holds {inside!r}: name one of them" if inside else ""
        raise FormatError(f"CACHE must be a directory that featcache build made, {str(path)!r} is not{hint}")
    manifest = read_document(file, _DOCUMENT)
    if Recipe.from_json(manifest["recipe"]).fingerprint != manifest["fingerprint"]:
        raise CorruptError(f"{str(file)!r} must match its fingerprint, it does not; {_MEND}")
    return manifest


def _caches_inside(path: Path | ObjectPath) -> list[str]:
    """Return the caches right below `path`, as a build of several backbones makes them."""
    if isinstance(path, ObjectPath):
        return [str(path / name) for name in path.children()[0] if (path / name / _MAIN).exists()]
    return sorted(str(manifest.parent) for manifest in path.glob(f"*/{_MAIN}"))
