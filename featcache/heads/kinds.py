"""The kinds of heads by name: those built in, whose files are read when asked for, and those that others register.

A kind named in a file is looked up here and nowhere else: loading a head imports no module that a file names.
"""

from __future__ import annotations

import importlib
from typing import TypeVar

from featcache.errors import InputError
from featcache.heads.base import Head

_BUILT_IN = {
    "linear": ("featcache.heads.linear", "LinearHead"),
    "mlp": ("featcache.heads.mlp", "MlpHead"),
    "prototype": ("featcache.heads.prototype", "PrototypeHead"),
    "knn": ("featcache.heads.knn", "NeighborsHead"),
}
_registered: dict[str, type[Head]] = {}

KINDS = tuple(_BUILT_IN)

AnyHead = TypeVar("AnyHead", bound=Head)


def register_head(cls: type[AnyHead]) -> type[AnyHead]:
    """Return `cls`, which heads of its `kind` are from now on loaded as, in this process.

    A class decorator for a kind of head outside featcache, the outermost one. Whoever loads such a head imports the
    module that registers it first.

    Raises `InputError` for a kind that is built in or registered by another class.
    """
    kind = cls.kind
    if not kind or kind in _BUILT_IN or _registered.get(kind, cls) is not cls:
        raise InputError(
            f"kind must be a name of its own, got {kind!r}; taken are {(*KINDS, *_registered)!r}: give {cls.__name__} "
            "another"
        )
    _registered[kind] = cls
    return cls


def head_class(kind: str) -> type[Head]:
    """Return the class of heads of `kind`.

    Raises `InputError` for a name that is no kind.
    """
    if kind in _registered:
        return _registered[kind]
    if kind not in _BUILT_IN:
        raise InputError(
            f"kind must be one of {(*KINDS, *_registered)!r}, got {kind!r}: if it is of another package, import the "
            "module that registers it first"
        )
    module, name = _BUILT_IN[kind]
    built_in: type[Head] = getattr(importlib.import_module(module), name)
    return built_in
