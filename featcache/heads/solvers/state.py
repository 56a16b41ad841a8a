"""`State`: one point with the data term evaluated there, which is everything a step or a certificate needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.heads.solvers.bias import optimize_bias, pseudo_inverse
from featcache.heads.solvers.penalty import Penalty
from featcache.heads.solvers.prepared import Prepared
from featcache.heads.solvers.rows import Float32, Float64

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

        With `exact` logits and loss are float64.
        """
        term = prepared.sums.fixed(weight, exact=exact)
        inverse: Float64 | None = None

        def evaluate(at: Float64) -> tuple[Float64, Float64]:
            nonlocal inverse
            slope, curvature = term.slope(at, curvature=inverse is None)
            if inverse is None:
                assert curvature is not None
                inverse = pseudo_inverse(curvature)
            return slope, inverse

        best = optimize_bias(
            evaluate,
            np.asarray(bias, dtype=np.float64),
            mean_target=prepared.loss.mean_target,
            tolerance=1e-9 if exact else 1e-7,
            max_steps=6,
            least_step=0.0 if exact else 1e-7,
        )
        total, gradient, slope = term.evaluate(best)
        prepared.passes += 0.5 * term.forwards + 0.5
        return cls(weight, best.astype(np.float32), total, gradient, slope, exact)

    def objective(self, penalty: Penalty) -> float:
        """Return the penalised objective."""
        return self.data_loss + penalty.value(self.weight)
