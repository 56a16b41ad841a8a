"""The kinds of store on disk: each is one class of generation, known by the ending of its file or directory."""

from __future__ import annotations

from pathlib import Path

from featcache.errors import InputError
from featcache.store._generation import Generation
from featcache.store._lmdb import LmdbGeneration
from featcache.store._zarr import ZarrGeneration
from featcache.store.settings import StoreSettings

BACKENDS: dict[str, type[Generation]] = {"lmdb": LmdbGeneration, "zarr": ZarrGeneration}


def check_kind(kind: str) -> str:
    """Return `kind` if there is a store of it on disk; raises `InputError` for others."""
    if kind not in BACKENDS:
        raise InputError(f"a store must be one of {sorted(BACKENDS)!r}, got {kind!r}")
    return kind


def open_generation(path: Path, settings: StoreSettings) -> Generation:
    """Return the generation in the file or directory `path`."""
    return BACKENDS[path.suffix[1:]](path, settings)
