"""How many processors this process may use, and torch kept on the calling thread where each has its worker."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featcache.system.control_group import CGROUP_ROOT, control_group_folders, read_number


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Compute on the calling thread alone inside the block: results do not depend on how a sum was shared out."""
    import torch

    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def processor_count(cgroup_root: Path = CGROUP_ROOT) -> int:
    """Return how many processors this process may use: its affinity, and the cpuset and quota of its container.

    A quota of part of a processor counts as a whole one. `cgroup_root`: where control groups are mounted.

    >>> processor_count() >= 1
    True
    """
    limits = [affinity_count()]
    for folder in control_group_folders("cpu", cgroup_root):
        limits += [math.ceil(quota) for quota in _quotas(folder) if quota > 0]
    for folder in control_group_folders("cpuset", cgroup_root):
        limits += [_set_size(folder / name) for name in ("cpuset.cpus.effective", "cpuset.cpus")]
    return max(1, min(limit for limit in limits if limit > 0))


def affinity_count() -> int:
    """Return how many processors this process may be scheduled on, whatever its container's quota of their time."""
    return len(allowed_processors())


def allowed_processors() -> frozenset[int]:
    """Return the numbers of the processors this process may be scheduled on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _quotas(folder: Path) -> Iterator[float]:
    """Yield the processors' worth of time per second that a control group of either version allows, if it says so."""
    try:
        quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            yield int(quota) / int(period)
    except (OSError, ValueError):
        pass  # not version 2, or its root, which has no limit
    quota_us, period_us = read_number(folder / "cpu.cfs_quota_us"), read_number(folder / "cpu.cfs_period_us")
    if quota_us is not None and period_us:
        yield quota_us / period_us


def _set_size(file: Path) -> int:
    """Return how many processors a list such as ``0-3,8`` names; 0 where there is no such file or it is empty."""
    try:
        ranges = [part.split("-") for part in file.read_text(encoding="ascii").strip().split(",") if part]
        return sum(int(numbers[-1]) - int(numbers[0]) + 1 for numbers in ranges)
    except (OSError, ValueError):
        return 0
