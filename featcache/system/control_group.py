"""The control groups (cgroups, version 1 and 2) that a container's limits stand in, as Linux shows them in files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")


def control_group_folders(controller: str, root: Path = CGROUP_ROOT) -> Iterator[Path]:
    """Yield the folders at `root` whose limits on `controller` (``cpu``, ``memory``, …) may bind this process.

    A container sees its own group as the root. Without a container it is the group named in ``/proc/self/cgroup``, and
    every group above that binds, too.
    """
    bases = [root, *(root / name for name in (controller, "cpu,cpuacct") if (root / name).is_dir())]
    for base in bases:
        yield base
        for group in _own_groups(controller):
            folder = base
            for part in group.split("/"):
                folder = folder / part
                if part not in ("", ".", "..") and folder.is_dir():
                    yield folder


def _own_groups(controller: str) -> set[str]:
    """Return the paths of this process's groups that count `controller`, of version 1 and 2."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    entries = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    return {path for _, controllers, path in entries if not controllers or controller in controllers.split(",")}


def read_number(file: Path) -> int | None:
    """Return the whole number in a control group's `file`; None where it is absent or says ``max``."""
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
