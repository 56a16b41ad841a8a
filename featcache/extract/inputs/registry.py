"""Which input kinds there are, by name: featcache's own, imported when they are asked for, and those a program adds."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from featcache.errors import InputError
from featcache.extract.inputs.interface import Input
from featcache.recipe import InputPreprocessing, register_preprocessing

IMAGE = "image"


def register_input(kind: Input, preprocessing: type[InputPreprocessing]) -> None:
    """Add an input kind that ``build_cache(..., input=NAME)`` and every verb on its cache then know.

    Parameters
    ----------
    kind : Input
        Of a `name` that is free; that of `preprocessing`.
    preprocessing : type
        A frozen dataclass, the kind's part of the Recipe.

    Raises
    ------
    InputError
        For a name that is taken, or two names.
    """
    if kind.name != preprocessing.input:
        raise InputError(f"an input kind must have one name, got {kind.name!r} and {preprocessing.input!r}")
    if kind.name in _kinds:
        raise InputError(f"the name of an input kind must be free, {kind.name!r} is taken")
    register_preprocessing(preprocessing)
    _kinds[kind.name] = lambda: kind


def input_names() -> tuple[str, ...]:
    """Return the names of all kinds, featcache's own first."""
    return tuple(_kinds)


def find_input(name: str) -> Input:
    """Return the kind called `name`; `InputError` where there is none."""
    if name not in _kinds:
        raise InputError(f"an input kind must be one of {input_names()!r}, got {name!r}: register it first")
    return _kinds[name]()


def input_of(source: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> Input:
    """Return the kind of what is at `source`: the one that has all of `options`, if any, else which recognizes it.

    Images, the first kind, are what is left.
    """
    stated = [name for name, value in (options or {}).items() if value is not None]
    others = [make() for name, make in _kinds.items() if name != IMAGE]
    if stated:
        for kind in others:
            if all(name in (*kind.scan_options, *kind.recipe_options) for name in stated):
                return kind
    for kind in others:
        if kind.recognizes(os.fspath(source)):
            return kind
    return find_input(IMAGE)


def _image() -> Input:
    from featcache.extract.inputs.images import ImageInput

    return ImageInput()


def _text() -> Input:
    from featcache.extract.inputs.texts import TextInput

    return TextInput()


_kinds: dict[str, Callable[[], Input]] = {IMAGE: _image, "text": _text}
