"""Products of rows in memory with all weights at once, for the solvers that keep the logits of every row."""

from __future__ import annotations

import numpy as np

from featcache.heads.solvers.bias import optimize_bias
from featcache.heads.solvers.prepared import Prepared
from featcache.heads.solvers.rows import BLOCK_ROWS, Float32, Float64, pull_back
from featcache.heads.solvers.state import State


def forward(prepared: Prepared, weight: Float32, bias: Float32) -> Float32:
    """Return the logits ``(n, k)``: half a pass."""
    prepared.passes += 0.5
    logits: Float32 = prepared.rows.matrix @ weight.T
    logits += bias
    return logits


def backward(prepared: Prepared, residual: Float32) -> Float32:
    """Return the weight gradient ``(k, d)`` of weighted residuals ``(n, k)``: half a pass."""
    prepared.passes += 0.5
    return pull_back(residual, prepared.rows.matrix)


def bias_curvature(prepared: Prepared, logits: Float32) -> Float64:
    """Return the Hessian ``(k, k)`` of the loss in the bias at `logits` ``(n, k)``, which stay."""
    k = logits.shape[1]
    curvature: Float64 = np.zeros((k, k))
    for start in range(0, len(logits), BLOCK_ROWS):
        curvature += prepared.loss.bias_curvature(logits[start : start + BLOCK_ROWS].copy(), start)
    return curvature


def certified(
    prepared: Prepared, logits: Float32, weight: Float32, bias: Float32, inverse: Float64
) -> tuple[State, Float32]:
    """Return the state at `weight` with the bias at its best, and by how much that moved ``(k,)``: half a pass.

    In float64 on float32 `logits` ``(n, k)``, those of `weight` and `bias`, which stay: what a tight certificate lacks
    is a bias gradient of zero, and that takes shifts below the rounding of the logits. `inverse`: of the curvature in
    the bias ``(k, k)``.
    """
    at: Float64 | None = None
    loss, slope, residual = np.nan, np.zeros(0), np.zeros(0)

    def evaluate(shift: Float64) -> tuple[Float64, Float64]:
        nonlocal at, loss, slope, residual
        residual = logits.astype(np.float64)
        residual += shift
        loss = prepared.loss.residual(residual, 0)
        slope = residual.sum(axis=0)
        at = shift
        return slope, inverse

    shift = optimize_bias(
        evaluate, np.zeros(logits.shape[1]), mean_target=prepared.loss.mean_target, tolerance=1e-8, max_steps=3
    )
    if at is not shift:
        evaluate(shift)
    gradient = backward(prepared, residual.astype(np.float32))
    return State(weight, (bias + shift).astype(np.float32), loss, gradient, slope), shift.astype(np.float32)
