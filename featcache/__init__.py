"""featcache: run a frozen backbone once, keep its features, train heads from them in seconds, ship the result.

Public names are resolved on first use, so that importing the package loads neither torch nor timm.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "FeatcacheError": "errors",
    "Recipe": "recipe",
    "Preprocessing": "recipe",
    "build_cache": "build",
    "build_caches": "build",
    "open_cache": "cache",
    "FeatureCache": "cache",
    "train_head": "train",
    "load_head": "heads",
    "save_head": "heads",
    "load_backbone": "backbone",
    "distill": "distill",
    "merge": "merge",
    "MergedModel": "merge",
    "prune": "compress",
    "quantize": "compress",
    "export": "export",
    "predict": "runtime",
    "evaluate": "runtime",
    "verify": "verify",
    "run": "run",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'featcache' has no attribute {name!r}")
    return getattr(importlib.import_module(f"featcache.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def _verb(name: str) -> property:
    """Return a property that gives the function `name`, though a module of that name is bound to the package too."""

    def resolve(_: ModuleType) -> Any:
        return __getattr__(name)

    def keep(_: ModuleType, value: object) -> None:
        """Let the import system bind the submodule; the function stays what the name means here."""

    return property(resolve, keep)


class _Package(ModuleType):
    """The package as a module whose verbs are functions: ``featcache.merge(...)``, not the module ``merge.py``."""

    distill, merge, export = _verb("distill"), _verb("merge"), _verb("export")
    verify, run = _verb("verify"), _verb("run")


sys.modules[__name__].__class__ = _Package
