"""What a measurement was made on: processor, memory, system and the versions of what computed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from featcache.system.control_group import CGROUP_ROOT, control_group_folders, read_number
from featcache.system.processor import processor_name
from featcache.system.threads import processor_count

_PACKAGES = ("featcache", "torch", "timm", "onnx", "onnxruntime", "openvino", "numpy", "pillow")


def describe_machine() -> dict[str, Any]:
    """Return the machine as JSON values: no host or user name, nothing that identifies it."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": processor_name(),
        "architecture": platform.machine(),
        "threads": processor_count(),
        "memory_bytes": memory_bytes_of_machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def memory_bytes_of_machine(cgroup_root: Path = CGROUP_ROOT) -> int | None:
    """Return the bytes of main memory, or the limit of the container where that is lower; None where nothing says.

    `cgroup_root`: where control groups are mounted.
    """
    limits = []
    names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
    if all(name in getattr(os, "sysconf_names", {}) for name in names):
        page, pages = (os.sysconf(name) for name in names)
        limits.append(page * pages)
    for folder in control_group_folders("memory", cgroup_root):
        limits += [
            limit
            for name in ("memory.max", "memory.limit_in_bytes")
            if (limit := read_number(folder / name)) is not None and limit > 0
        ]
    return min(limits, default=None)
