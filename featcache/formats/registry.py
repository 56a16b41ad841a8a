"""The list of formats: a name, and how its target is made when it is first asked for."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable

from featcache.errors import InputError
from featcache.formats.interface import Target

_NAME = re.compile(r"[a-z][a-z0-9_-]*")  # it is a folder's name in a bundle and a word on the command line
_RESERVED = ("all", "torch")  # words that stand where a format's name can


def _from_module(module: str, kind: str) -> Callable[[], Target]:
    """Return a factory of the class `kind` in the module below `featcache.formats`, which is imported when called."""

    def make() -> Target:
        target: Target = getattr(importlib.import_module(f"featcache.formats.{module}"), kind)()
        return target

    return make


# the order is that of reports
_FACTORIES: dict[str, Callable[[], Target]] = {
    "onnx": _from_module("onnx", "OnnxTarget"),
    "openvino": _from_module("openvino", "OpenVinoTarget"),
    "coreml": _from_module("coreml.target", "CoreMlTarget"),
    "tflite": _from_module("tflite.target", "TfliteTarget"),
    "executorch": _from_module("executorch.target", "ExecuTorchTarget"),
    "mslite": _from_module("mindspore.lite", "MsliteTarget"),
    "mindir": _from_module("mindspore.lite", "MindirTarget"),
    "mindspore": _from_module("mindspore.framework", "MindSporeTarget"),
    "ncnn": _from_module("ncnn", "NcnnTarget"),
    "web": _from_module("web.target", "WebTarget"),
    "tfjs": _from_module("tfjs.target", "TfjsTarget"),
    "tensorrt": _from_module("tensorrt", "TensorRtTarget"),
}


def register_target(name: str, factory: Callable[[], Target]) -> None:
    """Make a format of your own known to this process, after those there are.

    A process that opens a bundle with its files must register it too.

    Parameters
    ----------
    name
        The word that `export` and bundles call it: lower case letters, digits, ``-`` and ``_``.
    factory
        Returns the target, whose `name` is this one; called each time it is asked for.

    Raises
    ------
    InputError
        For a name that is taken, or is no such word.
    """
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise InputError(f"a format's name must be lower case letters, digits, '-' and '_', got {name!r}")
    if name in _FACTORIES:
        raise InputError(f"a format's name must be new, {name!r} is there already")
    _FACTORIES[name] = factory


def unregister_target(name: str) -> None:
    """Take back what `register_target` added; `InputError` where `name` is no format."""
    _factory(name)
    del _FACTORIES[name]


def target_names() -> tuple[str, ...]:
    """Return the names of all formats."""
    return tuple(_FACTORIES)


def find_target(name: str) -> Target:
    """Return the target of a device format.

    Parameters
    ----------
    name
        One of `target_names`.

    Raises
    ------
    InputError
        For another name.

    Examples
    --------
    >>> find_target("tflite").needs
    "featcache targets install tflite, or pip install 'featcache[tflite]'"
    """
    return _factory(name)()


def _factory(name: str) -> Callable[[], Target]:
    if name not in _FACTORIES:
        raise InputError(f"format must be one of {', '.join(_FACTORIES)}, got {name!r}")
    return _FACTORIES[name]
