"""Making a cache: it appears whole, at its end, or not at all."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from featcache.cache.cache import FeatureCache, open_cache, recipe_columns
from featcache.cache.manifest import (
    CONTENT,
    clear_contents,
    is_cache,
    make_manifest,
    may_be_cache,
    named_contents,
    write_manifest,
)
from featcache.errors import ExistsError, StorageError
from featcache.recipe import Recipe
from featcache.store import DEFAULT_SETTINGS, Column, StoreSettings, check_kind_at, create_store
from featcache.system.files import new_directory
from featcache.system.objects import ObjectPath, remove_objects


def create_cache(
    path: Path | ObjectPath,
    recipe: Recipe,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    store: str,
    request: Mapping[str, Any],
    store_settings: StoreSettings = DEFAULT_SETTINGS,
    overwrite: bool = False,
) -> FeatureCache:
    """Return a new, empty cache at `path`, which must not exist but for `overwrite`; it appears whole or not at all.

    `shapes`: the shape of one row of each output. `store`: ``lmdb`` or ``zarr``. `request`: what was asked, as JSON.
    Raises `ExistsError` where there is one, `InputError` for a store that cannot be there.
    """
    columns = recipe_columns(recipe, shapes)
    with new_cache(
        path, recipe, columns=columns, store=store, request=request, settings=store_settings, overwrite=overwrite
    ):
        pass
    return open_cache(path)


@contextlib.contextmanager
def new_cache(
    path: Path | ObjectPath,
    recipe: Recipe,
    *,
    columns: Sequence[Column],
    store: str,
    request: Mapping[str, Any],
    settings: StoreSettings = DEFAULT_SETTINGS,
    overwrite: bool = False,
) -> Iterator[FeatureCache]:
    """Yield an empty cache, open, that takes its place at `path` where the block succeeds and vanishes where it fails.

    Raises `ExistsError` where there is one and `overwrite` is false, `StorageError` where nothing can be written.
    """
    check_kind_at(path, store)
    if isinstance(path, ObjectPath):
        making = _new_objects(path, recipe, columns, store, request, settings, overwrite=overwrite)
    else:
        making = _new_directory(path, recipe, columns, store, request, settings, overwrite=overwrite)
    with making as cache:
        yield cache


@contextlib.contextmanager
def _new_directory(
    path: Path,
    recipe: Recipe,
    columns: Sequence[Column],
    store: str,
    request: Mapping[str, Any],
    settings: StoreSettings,
    *,
    overwrite: bool,
) -> Iterator[FeatureCache]:
    with new_directory(path, overwrite=overwrite) as place:
        create_store(place / "store", kind=store, columns=columns, settings=settings).close()
        (place / "samples").mkdir()
        write_manifest(place, make_manifest(recipe, store=store, request=request))
        with open_cache(place) as cache:
            yield cache


@contextlib.contextmanager
def _new_objects(
    path: ObjectPath,
    recipe: Recipe,
    columns: Sequence[Column],
    store: str,
    request: Mapping[str, Any],
    settings: StoreSettings,
    *,
    overwrite: bool,
) -> Iterator[FeatureCache]:
    """The same on object storage: the content is named by the manifest, which is put last.

    So of several that make the same cache one does, and who reads an old one meanwhile reads it whole.
    """
    taken = is_cache(path)
    if taken and not overwrite:
        raise ExistsError(f"{str(path)!r} exists already: name another place or pass --overwrite")
    if not taken and any(path.children()) and not may_be_cache(path):
        raise ExistsError(f"{str(path)!r} must hold a cache or nothing, it holds other objects: name another --cache")
    name = f"{CONTENT}{uuid.uuid4().hex}"
    content = path / name
    manifest = make_manifest(recipe, store=store, request=request, content=name)
    replaced = named_contents(path) if taken else set()
    try:
        with create_store(content / "store", kind=store, columns=columns, settings=settings) as made:
            yield FeatureCache(path, manifest=manifest, store=made)
        if not (content / "store" / "layout.json").exists():
            raise StorageError(
                f"{str(content)!r} must be there until it is whole, it was removed meanwhile: begin again"
            )
        write_manifest(path, manifest, overwrite=overwrite)
    except BaseException:
        with contextlib.suppress(StorageError):  # what is left is cleared by a later repair
            remove_objects([one for one, _ in content.walk()])
        raise
    if overwrite:
        # of several that begin it anew the last is named; none removes what another has just made
        for old in replaced - named_contents(path):
            remove_objects([one for one, _ in (path / old).walk()])
        clear_contents(path)
