"""Which engines there are, by name: featcache's own, imported when they are asked for, and those a program adds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from featcache.engines.interface import Engine
from featcache.errors import InputError
from featcache.recipe import Recipe

if TYPE_CHECKING:
    from featcache.backbone.backbone import Backbone


class OpenBackbone(Protocol):
    """How an engine is opened: the arguments are those of `featcache.engines.open_engine`, checked."""

    def __call__(self, backbone: Backbone, *, precision: str, batch_size: int | None, cached: bool) -> Engine:
        """Return `backbone` compiled; raise `InputError` for a `precision` that this engine or machine lacks."""


@dataclass(frozen=True, slots=True)
class EngineEntry:
    """An engine that can be named.

    `package`: the distribution whose version its rows depend on. `open_recipe`: returns the engine of a Recipe without
    its backbone where a compiled network is kept, else None; None for engines that keep none.
    """

    open_backbone: OpenBackbone
    package: str
    open_recipe: Callable[[Recipe], Engine | None] | None = None


def register_engine(name: str, open_backbone: OpenBackbone, *, package: str) -> None:
    """Add an engine that ``open_engine(backbone, engine=name)`` and ``build_cache(..., engine=name)`` then open.

    Parameters
    ----------
    name : str
        What stands in the Recipe of the rows it computes; `Engine.name` must be the same.
    open_backbone : OpenBackbone
        Called with a `Backbone` and the checked arguments of `open_engine`.
    package : str
        The installed distribution that computes: another version of it makes another Recipe be looked up.

    Raises
    ------
    InputError
        For a name that is taken.

    Examples
    --------
    >>> from featcache.engines.registry import engine_names, register_engine
    >>> "openvino" in engine_names()
    True
    >>> register_engine("openvino", lambda backbone, **settings: None, package="numpy")
    Traceback (most recent call last):
    featcache.errors.InputError: the name of an engine must be free, 'openvino' is taken
    """
    if name in _entries or name == "auto":
        raise InputError(f"the name of an engine must be free, {name!r} is taken")
    _entries[name] = EngineEntry(open_backbone, package)


def engine_names() -> tuple[str, ...]:
    """Return the names of all engines, featcache's own first."""
    return tuple(_entries)


def find_engine(name: str) -> EngineEntry:
    """Return the engine called `name`; `InputError` where there is none."""
    if name not in _entries:
        raise InputError(f"engine must be 'auto' or one of {engine_names()!r}, got {name!r}")
    return _entries[name]


def _open_openvino(backbone: Backbone, *, precision: str, batch_size: int | None, cached: bool) -> Engine:
    from featcache.engines import _openvino

    return _openvino.open_backbone(backbone, precision=precision, batch_size=batch_size, cached=cached)


def _open_onnxruntime(backbone: Backbone, *, precision: str, batch_size: int | None, cached: bool) -> Engine:
    from featcache.engines import _onnxruntime

    return _onnxruntime.open_backbone(backbone, precision=precision, batch_size=batch_size, cached=cached)


def _open_torch(backbone: Backbone, *, precision: str, batch_size: int | None, cached: bool) -> Engine:
    from featcache.engines import _torch

    return _torch.open_backbone(backbone, precision=precision, batch_size=batch_size)


def _openvino_of_recipe(recipe: Recipe) -> Engine | None:
    from featcache.engines import _openvino

    return _openvino.open_recipe(recipe)


def _onnxruntime_of_recipe(recipe: Recipe) -> Engine | None:
    from featcache.engines import _onnxruntime

    return _onnxruntime.open_recipe(recipe)


_entries = {
    "openvino": EngineEntry(_open_openvino, "openvino", _openvino_of_recipe),
    "onnxruntime": EngineEntry(_open_onnxruntime, "onnxruntime", _onnxruntime_of_recipe),
    "torch": EngineEntry(_open_torch, "torch"),
}
