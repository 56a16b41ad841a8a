"""The kinds of heads by name; a kind's file is read when it is asked for."""

from __future__ import annotations

import importlib

from featcache.errors import InputError
from featcache.heads.base import Head

_HOMES = {
    "linear": "LinearHead",
    "mlp": "MlpHead",
    "prototype": "PrototypeHead",
    "knn": "NeighborsHead",
}

KINDS = tuple(_HOMES)


def head_class(kind: str) -> type[Head]:
    """Return the class of heads of `kind`; `InputError` for a name that is no kind."""
    if kind not in _HOMES:
        raise InputError(f"kind must be one of {KINDS!r}, got {kind!r}")
    found: type[Head] = getattr(importlib.import_module(f"featcache.heads.{kind}"), _HOMES[kind])
    return found
