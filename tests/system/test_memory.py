"""Freed memory stays with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

COUNT = """
import resource, sys
import torch
from featcache.system.memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "kept" else False
for _ in range(20):
    torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(1 << 24)
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(how: str) -> tuple[bool, int]:
    """Return whether memory is kept, and the pages asked for while 64 megabytes are used and freed twenty times."""
    done = subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return kept == "1", int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library is another")
def test_what_was_freed_is_used_again() -> None:
    kept, faults = _faults("kept")
    if not kept:
        pytest.skip("this C library does not keep memory")
    _, usual = _faults("usual")
    assert usual > 20  # the system gives every block anew
    assert faults < usual / 10
