"""Make a MODEL smaller, then refit its head on the compressed backbone's own features, and say what that cost.

Names are resolved on first use, so that importing the package loads neither torch nor ONNX Runtime.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "CompressResult": "result",
    "apply_quantization": "qdq",
    "prune": "prune",
    "quantize": "quantize",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'featcache.compress' has no attribute {name!r}")
    return getattr(importlib.import_module(f"featcache.compress.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
