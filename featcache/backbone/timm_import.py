"""Import timm and transformers, also beside a torchvision whose compiled operators cannot be loaded.

Both import torchvision. A torchvision wheel built for CUDA next to a CPU-only torch fails on import with
"operator torchvision::nms does not exist", because its Python layer registers fake kernels for operators that
only its compiled library declares. Nothing here ever runs those operators, so declaring their schemas is enough.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from featcache.errors import DependencyError

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared: Any = None  # torch.library.Library: the declarations live only as long as this object


def _torchvision_library_loads() -> bool:
    """Return whether torchvision's compiled operator library is there and can be loaded into this torch."""
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # nothing to mend: timm itself will say that torchvision is missing
    folder = Path(spec.origin).parent
    libraries = [folder / f"_C{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    for library in (path for path in libraries if path.exists()):
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except OSError:
            continue
        return True
    return False


def declare_operators() -> None:
    """Declare torchvision's two missing operators, where that is needed before torchvision is imported."""
    global _declared
    import torch

    if _declared is None and not _torchvision_library_loads():
        _declared = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        _declared.define(f"nms{_SCHEMA}")
        _declared.define(f"qnms{_SCHEMA}")


def import_timm() -> ModuleType:
    """Return the ``timm`` module, which knows the embedded backbone's architecture, too."""
    declare_operators()
    import timm

    from featcache.backbone.nano import register

    register()
    return timm


def import_transformers() -> ModuleType:
    """Return the ``transformers`` module, without its progress bars; `DependencyError` where it is not installed."""
    declare_operators()
    try:
        transformers = importlib.import_module("transformers")  # by name: its types are not ours to check
    except ImportError as error:
        raise DependencyError("text encoders need transformers: pip install featcache[text]") from error
    transformers.utils.logging.disable_progress_bar()
    return transformers
