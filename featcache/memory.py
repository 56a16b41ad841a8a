"""The memory that the C library keeps after it was freed."""

from __future__ import annotations

import ctypes
import sys


def return_freed_memory() -> None:
    """Give the system what was freed: compiling a network leaves tens of megabytes behind. glibc only, else nothing."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
