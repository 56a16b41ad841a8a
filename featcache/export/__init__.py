"""Turn a MODEL into files for devices, each run and compared before it is claimed, and keep them in one BUNDLE.

Names are resolved on first use: opening a bundle's files (`featcache.runtime`) must not load torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "ExportReport": "bundle",
    "FormatReport": "measure",
    "Runner": "base",
    "Target": "base",
    "export": "bundle",
    "TargetStatus": "listing",
    "find_target": "base",
    "install_targets": "listing",
    "list_targets": "listing",
    "target_names": "base",
    "pack": "archive",
    "unpack": "archive",
    "verify_bundle": "verify",
    "write_onnx": "_onnx",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'featcache.export' has no attribute {name!r}")
    return getattr(importlib.import_module(f"featcache.export.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
