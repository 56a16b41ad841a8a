"""Files of `featcache.graph` for a program in another environment: the package, and what it needs, may not be there.

Each file is loaded by itself: ``nodes`` takes onnx and numpy, ``torch_graph`` numpy and torch, and both a newer Python
than 3.7.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_PLACE = Path(__file__).resolve().parents[2] / "graph"


def graph_module(name: str) -> ModuleType:
    """Return the module `name` of that room, loaded once."""
    alone = f"featcache_graph_{name}"
    if alone not in sys.modules:
        spec = importlib.util.spec_from_file_location(alone, _PLACE / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[alone] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    return sys.modules[alone]
