"""L1, elastic-net and group-L1 heads: accelerated proximal gradient (Beck and Teboulle 2009) with restart.

Zeros are exact: they come out of the proximal operator, never out of a threshold applied afterwards.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.heads.solvers.certificate import Penalty, column_norms
from featcache.heads.solvers.prepared import Prepared
from featcache.heads.solvers.rows import Float32
from featcache.heads.solvers.smooth import State, dot


def proximal(point: NDArray[Any], step: float, penalty: Penalty) -> NDArray[Any]:
    """Return the proximal point of ``step * Omega``: soft threshold, then group threshold, then the ridge's shrinkage."""
    kind = point.dtype.type
    result = point
    if penalty.l1:
        cut = kind(step * penalty.l1)
        result = np.sign(point) * np.maximum(np.abs(point) - cut, kind(0))
    if penalty.group_l1:
        norms = column_norms(result)
        shrink = np.maximum(1.0 - step * penalty.group_l1 / np.maximum(norms, 1e-300), 0.0)
        result = result * shrink.astype(point.dtype)
    if penalty.l2:
        result = result * kind(1.0 / (1.0 + step * penalty.l2))
    return result


def minimise_sparse(
    prepared: Prepared, state: State, *, penalty: Penalty, tolerance: float, max_passes: int
) -> tuple[State, float, bool]:
    """Return ``(state, relative gap, converged)`` of the penalised minimum, started at `state`."""
    bound = {"softmax": 0.5, "sigmoid": 0.25, "squared": 1.0}[prepared.loss.kind]
    step = 20.0 / (bound * prepared.n_features)
    momentum = 1.0
    weight, bias = state.weight, state.bias
    ahead = state
    for sweep in range(max_passes):
        objective = ahead.objective(penalty)
        if sweep % 5 == 0:
            here = State(prepared, weight, bias) if ahead.weight is not weight else ahead
            objective = here.objective(penalty)
            gap = here.gap(prepared, penalty) / max(abs(objective), 1e-12)
            if gap <= tolerance:
                return here, gap, True
        while True:
            new: Float32 = proximal(ahead.weight - np.float32(step) * ahead.gradient, step, penalty)
            new_bias = (ahead.bias - step * ahead.bias_gradient).astype(np.float32)
            trial = State(prepared, new, new_bias)
            moved, moved_bias = new - ahead.weight, new_bias - ahead.bias
            model = dot(ahead.gradient, moved) + dot(ahead.bias_gradient.astype(np.float32), moved_bias)
            square = dot(moved, moved) + dot(moved_bias, moved_bias)
            if trial.data_loss <= ahead.data_loss + model + square / (2 * step) + 1e-7 * abs(ahead.data_loss):
                break
            step *= 0.5
        restart = dot(ahead.weight - new, new - weight) + dot(ahead.bias - new_bias, new_bias - bias) > 0
        following = 1.0 if restart else 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * momentum**2))
        factor = np.float32(0.0 if restart else (momentum - 1.0) / following)
        forward, forward_bias = new + factor * (new - weight), new_bias + factor * (new_bias - bias)
        ahead = trial if factor == 0 else State(prepared, forward, forward_bias)
        weight, bias, momentum = new, new_bias, following
        if ahead is trial:
            weight = ahead.weight
    here = State(prepared, weight, bias)
    return here, here.gap(prepared, penalty) / max(abs(here.objective(penalty)), 1e-12), False
