"""What the processor is and which numbers it multiplies fast, as the system's own listing says (Linux on x86)."""

from __future__ import annotations

import platform
from pathlib import Path

_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
_INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


def processor_has_bf16() -> bool:
    """Return whether this processor multiplies bf16 numbers natively (x86 with AVX512-BF16 or AMX)."""
    return not _BF16_FLAGS.isdisjoint(_first_entry("flags").split())


def processor_has_int8() -> bool:
    """Return whether this processor sums products of INT8 numbers natively (x86 with VNNI or AMX)."""
    return not _INT8_FLAGS.isdisjoint(_first_entry("flags").split())


def processor_name() -> str:
    """Return the processor's name as its maker wrote it, or the architecture where nothing says."""
    return _first_entry("model name") or platform.processor() or platform.machine()


def _first_entry(name: str) -> str:
    """Return what ``/proc/cpuinfo`` says under `name` of the first processor; empty where it says nothing."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    entry = next((line for line in text.splitlines() if line.startswith(name)), "")
    return entry.partition(":")[2].strip()
