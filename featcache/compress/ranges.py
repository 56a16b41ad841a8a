"""Choose the range that a tensor's 8 bits cover: where clipping a few large values costs less than it saves."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

LEVELS = 255
_SAMPLED_VALUES = 200_000
_SHARES = tuple(1 - 0.02 * step for step in range(26))  # of the full range: 1, 0.98, … 0.5


def covering(low: float, high: float) -> dict[str, Any]:
    """Return the unsigned 8-bit scale and zero point that cover [low, high], widened to hold 0 exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    width = high - low
    scale = np.float32(width / LEVELS) if width > 0 else np.float32(1)
    if low == 0.0 and float(scale) * LEVELS > high > 0.0:
        scale = np.nextafter(scale, np.float32(0))  # a range that sticks out of ReLU6's 6 could not stand in for it
    zero_point = int(np.clip(np.rint(-low / float(scale)), 0, LEVELS))
    return {"scale": float(scale), "zero_point": zero_point, "signed": False, "axis": None}


def best_range(values: Tensor) -> dict[str, Any]:
    """Return, as stored, the range with the least mean squared error on `values`, of 26 shares of the full one."""
    low, high = float(values.min()), float(values.max())
    flat = values.flatten()
    step = max(1, len(flat) // _SAMPLED_VALUES) | 1  # odd, so as not to fall in step with rows and channels
    sample = flat[::step].contiguous()
    candidates = [covering(low * share, high * share) for share in _SHARES]
    errors = [float((as_stored(sample, stored) - sample).square().mean()) for stored in candidates]
    return candidates[int(np.argmin(errors))]


def as_stored(values: Tensor, stored: dict[str, Any]) -> Tensor:
    """Return `values` as they come back from their 8 bits."""
    return torch.fake_quantize_per_tensor_affine(values, stored["scale"], stored["zero_point"], 0, LEVELS)
