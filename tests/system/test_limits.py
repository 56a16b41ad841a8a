"""Processors and memory: what a process may use, by its affinity and the limits of its container."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from featcache.system.machine import memory_bytes_of_machine
from featcache.system.threads import processor_count

ALLOWED = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write(root: Path, files: dict[str, str]) -> Path:
    """Write a fake hierarchy of control groups."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "20000 100000"}, 1),  # a fifth of one
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu,cpuacct/cpu.cfs_quota_us": "50000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 1),
        ({"cpuset.cpus.effective": "3"}, 1),
        ({"cpuset/cpuset.cpus": "0-1,7"}, 3),
        ({"cpuset.cpus": ""}, None),
        ({"cpu.max": "nonsense"}, None),
    ],
)
def test_processor_count_is_the_lowest_limit(tmp_path: Path, files: dict[str, str], limit: int | None) -> None:
    """Quota and set of either version of control groups count where they are below the affinity."""
    assert processor_count(write(tmp_path, files)) == min(ALLOWED, ALLOWED if limit is None else limit)


def test_processor_count_follows_the_affinity(tmp_path: Path) -> None:
    """A process bound to one processor has one, whatever the machine has."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [min(before)])
    try:
        assert processor_count(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"memory.max": "max"}, None),
        ({"memory.max": "1048576"}, 1 << 20),
        ({"memory/memory.limit_in_bytes": "2097152"}, 2 << 20),
        ({"memory/memory.limit_in_bytes": "9223372036854771712"}, None),  # what version 1 says for no limit
    ],
)
def test_memory_is_at_most_what_the_container_allows(tmp_path: Path, files: dict[str, str], limit: int | None) -> None:
    """A limit below the machine's memory is what can be used; one above it says nothing."""
    machine = memory_bytes_of_machine(tmp_path / "none")
    assert machine is not None and machine > 4 << 20
    assert memory_bytes_of_machine(write(tmp_path, files)) == (limit or machine)
