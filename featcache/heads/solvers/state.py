"""`State`: one point with the data term evaluated there, which is everything a step or a certificate needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.heads.solvers.bias import optimize_bias, pseudo_inverse
from featcache.heads.solvers.penalty import Penalty
from featcache.heads.solvers.prepared import Prepared
from featcache.heads.solvers.rows import Float32, Float64, pull_back

KEEP_BYTES = 1 << 29  # logits kept between the Newton steps of a bias
ROUNDING = 1e-6  # relative; below it float32 objectives do not compare, slopes do (Hager and Zhang 2005)


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """`weight` ``(k, d)`` and `bias` ``(k,)``, with the data term's loss, gradient ``(k, d)`` and bias gradient.

    `exact`: whether logits and loss were float64.
    """

    weight: Float32
    bias: Float32
    data_loss: float
    gradient: Float32
    bias_gradient: Float64
    exact: bool = False

    @classmethod
    def at(cls, prepared: Prepared, weight: Float32, bias: Float32) -> State:
        """Return the state at ``(weight, bias)``: one pass."""
        return cls(weight, bias, *prepared.evaluate(weight, bias))

    @classmethod
    def certified(cls, prepared: Prepared, weight: Float32, bias: NDArray[Any], *, exact: bool) -> State:
        """Return the state at `weight` with its best bias: what a tight certificate needs.

        The logits come from one forward product and are kept (recomputed where they would take over half a GiB). With
        `exact` logits and loss are float64.
        """
        kind = np.dtype(np.float64 if exact else np.float32)
        rows, loss, k = prepared.rows, prepared.loss, prepared.n_outputs
        keep = rows.in_memory and rows.n_rows * k * kind.itemsize <= KEEP_BYTES
        kept: list[tuple[int, Float32, NDArray[Any]]] = []
        wide = weight.astype(kind, copy=False).T

        def forward() -> Iterator[tuple[int, Float32, NDArray[Any]]]:
            if kept and kept[-1][0] + len(kept[-1][1]) == rows.n_rows:
                yield from kept
                return
            prepared.passes += 0.5
            for start, block in rows.blocks():
                logits = block.astype(kind, copy=False) @ wide
                if keep:
                    kept.append((start, block, logits))
                yield start, block, logits

        inverse: Float64 | None = None

        def evaluate(at: Float64) -> tuple[Float64, Float64]:
            nonlocal inverse
            slope = np.zeros(k)
            curvature = np.zeros((k, k)) if inverse is None else None
            for start, _block, logits in forward():
                shifted = logits + at.astype(kind)
                if curvature is not None:
                    curvature += loss.bias_curvature(shifted.copy(), start)
                loss.residual(shifted, start)
                slope += shifted.sum(axis=0, dtype=np.float64)
            if inverse is None:
                assert curvature is not None
                inverse = pseudo_inverse(curvature)
            return slope, inverse

        best = optimize_bias(
            evaluate,
            np.asarray(bias, dtype=np.float64),
            mean_target=loss.mean_target,
            tolerance=1e-9 if exact else 1e-7,
            max_steps=6,
            least_step=0.0 if exact else 1e-7,
        )
        gradient: Float32 = np.zeros_like(weight)
        total, slope = 0.0, np.zeros(k)
        for start, block, logits in forward():
            shifted = logits + best.astype(kind)
            total += loss.residual(shifted, start)
            slope += shifted.sum(axis=0, dtype=np.float64)
            gradient += pull_back(shifted.astype(np.float32, copy=False), block)
        prepared.passes += 0.5
        return cls(weight, best.astype(np.float32), total, gradient, slope, exact)

    def objective(self, penalty: Penalty) -> float:
        """Return the penalised objective."""
        return self.data_loss + penalty.value(self.weight)
