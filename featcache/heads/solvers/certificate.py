r"""Duality gaps: how far, at most, an objective is from the optimum.

The primal problem is ``P(W, b) = sum_i w_i l_i(W z_i + b) + Omega(W)``, its Fenchel dual
``max_theta -sum_i w_i l_i*(theta_i) - Omega*(-G(theta))`` with ``G(theta) = sum_i w_i theta_i z_i'`` under
``sum_i w_i theta_i = 0``, because the bias is not penalised (Rockafellar 1970; Ndiaye et al. 2017 for its use as a
stopping rule). The residual ``r_i = l_i'(u_i)`` is almost a dual point: its weighted sum g is the bias gradient. For
softmax and sigmoid it is made feasible by mixing in a little of a constant prediction q, ``(1 - t) r_i + t (q - y_i)``,
with q chosen so that the constraint holds; l* is convex, so the mixture of the two conjugate values bounds its own.
For L1 and group L1 the point is then scaled into the dual ball; shrinking keeps feasibility.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.heads.solvers.penalty import Penalty, column_norms
from featcache.heads.solvers.prepared import Prepared
from featcache.heads.solvers.state import State


def dual_scale_and_conjugate(gradient: NDArray[Any], penalty: Penalty) -> tuple[float, float]:
    """Return a scale s in (0, 1] and ``Omega*(-s G)``, finite, for the gradient G ``(n_outputs, n_features)``.

    With ``l2 > 0`` no scaling is needed. L1 and group L1 together have no closed conjugate; the part of G above the L1
    threshold is then held against the group threshold, which is the exact conjugate of the sum (Simon et al. 2013).
    """
    excess: NDArray[Any] = gradient
    if penalty.l1:
        excess = np.maximum(np.abs(gradient) - np.asarray(penalty.l1, dtype=gradient.dtype), 0)
    if penalty.l2:
        if penalty.group_l1:
            over = np.maximum(column_norms(excess) - penalty.group_l1, 0.0)
            return 1.0, float(over @ over) / (2.0 * penalty.l2)
        flat = excess.ravel()
        return 1.0, float(np.einsum("i,i->", flat, flat, dtype=np.float64)) / (2.0 * penalty.l2)
    if penalty.group_l1 and penalty.l1:
        return _sparse_group_scale(gradient, penalty), 0.0
    largest = float(column_norms(gradient).max()) if penalty.group_l1 else float(np.abs(gradient).max())
    limit = penalty.group_l1 or penalty.l1
    return (1.0 if largest <= limit else limit / largest), 0.0


def _sparse_group_scale(gradient: NDArray[Any], penalty: Penalty) -> float:
    """Return the largest scale (to 50 halvings) at which every column is inside the sparse-group dual ball."""
    size = np.abs(gradient).astype(np.float64)

    def inside(scale: float) -> bool:
        norms = column_norms(np.maximum(scale * size - penalty.l1, 0.0))
        return bool((norms <= penalty.group_l1).all())

    if inside(1.0):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if inside(middle) else (low, middle)
    return low


def duality_gap(prepared: Prepared, state: State, penalty: Penalty) -> float:
    """Return an upper bound on ``P(W, b) - optimum`` at `state`, from the one evaluation of the data term there.

    A bound up to the rounding of the state's arrays. Needs some penalty above zero.
    """
    g, gradient, loss = state.bias_gradient, state.gradient, state.data_loss
    inner = float(np.einsum("ij,ij->", gradient, state.weight, dtype=np.float64))
    inner += float(g @ np.asarray(state.bias, np.float64))
    conjugate = inner - loss  # sum_i w_i l*(r_i), by Fenchel's equality at r_i
    mixed, conjugate = prepared.make_feasible(gradient, g, conjugate)
    scale, penalty_conjugate = dual_scale_and_conjugate(mixed, penalty)
    if scale < 1.0:  # l* is convex and l*(0) is known: the conjugate of the shrunk point is at most the mixture
        conjugate = scale * conjugate + (1.0 - scale) * prepared.loss.conjugate_at_zero
    return max(0.0, loss + penalty.value(state.weight) + conjugate + penalty_conjugate)


def relative_gap(prepared: Prepared, state: State, penalty: Penalty) -> float:
    """Return the duality gap over the objective; without any penalty, the largest entry of the gradient instead."""
    if penalty == Penalty():
        return float(max(np.abs(state.gradient).max(), np.abs(state.bias_gradient).max()))
    return duality_gap(prepared, state, penalty) / max(abs(state.objective(penalty)), 1e-12)
