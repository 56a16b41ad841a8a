"""The best bias of given weights: k numbers, found by damped Newton steps far closer than descent brings them.

A free bias makes the dual feasible only where its gradient is zero, which is why a certificate needs it so well.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from featcache.heads.solvers.rows import Float64


def pseudo_inverse(curvature: Float64) -> Float64:
    """Return the inverse of a curvature in the bias ``(k, k)`` but for the direction that moves all logits alike."""
    return np.asarray(np.linalg.pinv(curvature, rcond=1e-9, hermitian=True), dtype=np.float64)


def optimize_bias(
    evaluate: Callable[[Float64], tuple[Float64, Float64]],
    bias: Float64,
    *,
    mean_target: Float64,
    tolerance: float,
    max_steps: int,
    least_step: float = 0.0,
) -> Float64:
    """Return the bias ``(k,)`` float64 after at most `max_steps` Newton steps from `bias`.

    `evaluate` gives the slope of the loss in the bias ``(k,)`` and the inverse of its curvature ``(k, k)``. The steps
    end where each entry of the slope is below `tolerance` of that of `mean_target`, or the step below `least_step`. The
    bias returned after the last of the steps has not been evaluated.
    """
    for _ in range(max_steps):
        slope, inverse = evaluate(bias)
        if float(np.abs(slope / np.maximum(mean_target, 1e-6)).max()) < tolerance:
            break
        step = inverse @ slope
        length = float(np.abs(step).max())
        if length < least_step:
            break
        bias = bias - step / max(1.0, length)
    return bias
