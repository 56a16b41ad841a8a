"""`featcache.graph.nodes` for a program in another environment: the package, and what it needs, may not be there.

The file is loaded by itself; it takes onnx and numpy, and a newer Python than 3.7.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_NAME = "featcache_graph_nodes"
_PLACE = Path(__file__).resolve().parents[2] / "graph" / "nodes.py"


def graph_nodes() -> ModuleType:
    """Return the module, loaded once."""
    if _NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(_NAME, _PLACE)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[_NAME] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    return sys.modules[_NAME]
