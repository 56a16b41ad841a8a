"""Choose the range that a tensor's 8 bits cover: where clipping a few large values costs less than it saves.

Functions are named after those of torch.ao, but for `power_range`, which it has not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from featcache.model.quantization import QuantParams

LEVELS = 255
_SAMPLED_VALUES = 200_000
POWERS = (2.0, 1.5)  # of an error; squares let the few largest values spread the steps of all others
_SHARES = tuple(1 - 0.02 * step for step in range(26))  # of the full range: 1, 0.98, … 0.5


def affine_qparams(low: float, high: float) -> QuantParams:
    """Return the unsigned 8-bit scale and zero point that cover [low, high], widened to hold 0 exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    width = high - low
    scale = np.float32(width / LEVELS) if width > 0 else np.float32(1)
    if low == 0.0 and float(scale) * LEVELS > high > 0.0:
        scale = np.nextafter(scale, np.float32(0))  # a range that sticks out of ReLU6's 6 could not stand in for it
    zero_point = int(np.clip(np.rint(-low / float(scale)), 0, LEVELS))
    return QuantParams((float(scale),), (zero_point,), "uint8", None)


def power_range(
    batches: Sequence[Tensor], *, power: float = 1.5, least: float | None = None, most: float | None = None
) -> QuantParams:
    """Return the range with the least mean error on all values of `batches`, to this `power`, of 26 shares of the full.

    `least`, `most`: beyond them values are as good as they themselves to everything that reads them, so that nothing is
    spent there.
    """
    flat = torch.cat([values.flatten() for values in batches])
    step = max(1, len(flat) // _SAMPLED_VALUES) | 1  # odd, so as not to fall in step with rows and channels
    sample, ends = flat[::step].contiguous(), torch.stack([flat.min(), flat.max()])
    if least is not None or most is not None:
        sample, ends = sample.clamp(least, most), ends.clamp(least, most)
    low, high = ends.tolist()
    candidates = [affine_qparams(low * share, high * share) for share in _SHARES]
    errors = [float((fake_quantize(sample, params) - sample).abs().pow(power).mean()) for params in candidates]
    return candidates[int(np.argmin(errors))]


def fake_quantize(values: Tensor, params: QuantParams) -> Tensor:
    """Return `values` as they come back from their 8 bits, which are unsigned and of one scale."""
    return torch.fake_quantize_per_tensor_affine(values, params.scale[0], params.zero_point[0], 0, LEVELS)
