"""The backbone in this package: a small network that learned from larger ones (`weights/featcache_nano.md`).

It needs no model hub and no weights file, so it is what a first command uses.
"""

from __future__ import annotations

from pathlib import Path

EMBEDDED_BACKBONE = "featcache_nano"


def embedded_weights() -> Path:
    """Return the path of the embedded backbone's safetensors file."""
    return Path(__file__).resolve().parent / "weights" / f"{EMBEDDED_BACKBONE}.safetensors"
