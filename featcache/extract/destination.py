"""The cache that a build writes to: opened and its Recipe compared, made, or put in the place of an old one."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from functools import partial

from featcache.backbone.embedded import EMBEDDED_BACKBONE, embedded_weights
from featcache.cache import FeatureCache, open_cache
from featcache.cache.creation import create_cache
from featcache.cache.manifest import is_cache, may_be_cache, read_manifest
from featcache.errors import CorruptError, ExistsError, FormatError, InputError, RecipeMismatchError, StorageError
from featcache.extract.auto_backbone import AutoBackbone
from featcache.extract.inputs.interface import Extractor
from featcache.extract.inputs.registry import IMAGE, find_input
from featcache.extract.opening import OpenExtractor, resolved_under
from featcache.extract.request import Request
from featcache.recipe import Recipe
from featcache.store import check_kind_at, hold_store
from featcache.system.objects import ObjectPath, Place


def open_or_create(
    place: Place,
    request: Request,
    *,
    store: str | None,
    extractor: Extractor | None,
    overwrite: bool,
    wait_seconds: float,
    open_backbone: OpenExtractor,
    auto: AutoBackbone,
) -> tuple[FeatureCache, Extractor | None]:
    """Return the cache, its Recipe checked against the request, and the engine where it had to be opened for that."""
    if overwrite and _is_taken(place):
        return _replace(
            place, request, store=store, extractor=extractor, wait_seconds=wait_seconds, open_backbone=open_backbone,
            auto=auto,
        )  # fmt: skip
    if not _is_taken(place):
        with contextlib.suppress(ExistsError):  # another build has made it meanwhile: it is extended
            return _create(place, request, store=store, extractor=extractor, open_backbone=open_backbone, auto=auto)
    cache = open_cache(place)
    try:
        if extractor is None:
            request = auto.for_existing(request, cache)
            wanted = request.adopting(cache.request)
            memo = resolved_under(wanted, cache.recipe)
            if memo in cache.known_requests():
                return cache, None
            extractor = open_backbone(wanted, adopt=cache.recipe)
            refuse_other_recipe(cache, extractor.recipe)
            with contextlib.suppress(StorageError):  # a memo only: where nothing can be written it is resolved again
                cache.remember_request(memo)
        else:
            refuse_other_recipe(cache, extractor.recipe)
    except BaseException:
        cache.close()
        raise
    return cache, extractor


def _is_taken(place: Place) -> bool:
    return is_cache(place) if isinstance(place, ObjectPath) else os.path.lexists(place)


def _create(
    place: Place,
    request: Request,
    *,
    store: str | None,
    extractor: Extractor | None,
    open_backbone: OpenExtractor,
    auto: AutoBackbone,
    overwrite: bool = False,
) -> tuple[FeatureCache, Extractor]:
    request = auto.for_new(request)
    full = dataclasses.replace(
        request, backbone=request.backbone or find_input(request.input or IMAGE).default_backbone
    )
    store = check_kind_at(place, store or ("zarr" if isinstance(place, ObjectPath) else "lmdb"))
    extractor = extractor or open_backbone(full, adopt=None)
    shapes = dict(extractor.engine.columns)
    cache = create_cache(
        place, extractor.recipe, shapes=shapes, store=store, request=full.to_json(), overwrite=overwrite
    )
    cache.remember_request(resolved_under(full, cache.recipe))
    return cache, extractor


def _replace(
    place: Place,
    request: Request,
    *,
    store: str | None,
    extractor: Extractor | None,
    wait_seconds: float,
    open_backbone: OpenExtractor,
    auto: AutoBackbone,
) -> tuple[FeatureCache, Extractor]:
    """Return a new cache in the place of an old one, asked for as that was where it can still be told."""
    if not may_be_cache(place):
        raise InputError(
            f"--overwrite replaces a cache, {str(place)!r} is none or holds other files too: name another --cache"
        )
    wanted = request
    with contextlib.suppress(CorruptError, FormatError):
        wanted = request.adopting(read_manifest(place)["request"])
    create = partial(
        _create, place, wanted, store=store, extractor=extractor, open_backbone=open_backbone, auto=auto, overwrite=True
    )
    if isinstance(place, ObjectPath):  # who writes to the old one goes on to, unseen
        return create()
    (place / "store").mkdir(exist_ok=True)
    with hold_store(place / "store", wait_seconds=wait_seconds):
        return create()


def refuse_other_recipe(cache: FeatureCache, recipe: Recipe) -> None:
    """Raise `RecipeMismatchError`, naming what differs, where `recipe` is not the cache's own."""
    differences = cache.recipe.differences(recipe)
    if differences:
        listed = "; ".join(
            f"{name}: the cache has {old!r}, this build {new!r}" for name, (old, new) in differences.items()
        )
        what_else = "ask for what the cache has"
        if "weights_sha256" in differences and cache.recipe.weights == recipe.weights == embedded_weights().name:
            what_else = f"begin it anew with build --overwrite: {EMBEDDED_BACKBONE} has other weights since"
        raise RecipeMismatchError(
            f"the cache {str(cache.path)!r} must be extended with its own Recipe, got another ({listed}): "
            f"name another --cache, or {what_else}"
        )
