"""The bound of a share as a message states it: one that, given back, is within it."""

from __future__ import annotations

import math

_STEP = 1000


def floor_share(share: float) -> str:
    """Return a share cut, not rounded, after three digits: what a user copies from a message must be allowed.

    >>> floor_share(0.94996)
    '0.949'
    """
    return f"{math.floor(share * _STEP + 1e-9) / _STEP:g}"
