"""L1, elastic-net and group-L1 heads: working sets of columns, proximal steps, quasi-Newton steps on what is not zero.

A proximal gradient step finds which weights are zero; on the others the penalty is smooth, so limited-memory BFGS steps
follow on them alone (Andrew and Gao 2007 for L1; Bareilles, Iutzeler and Malick 2022 for the general scheme). A weight
that would change its sign stops at zero. Zeros are therefore exact: they come out of the proximal operator or of that
projection, never out of a threshold applied afterwards.

Around this, the features: only those of a working set are multiplied at all. It begins with the sequential strong rule
(Tibshirani et al. 2012), and every column it leaves out is checked against the optimality conditions at the end, so the
rule may err without harm. What limits it: near the weak end of a path most columns are used, and a pass costs as
much as one of L2.
"""

from __future__ import annotations

import numpy as np

from featcache.heads.solvers.certificate import relative_gap
from featcache.heads.solvers.history import History
from featcache.heads.solvers.interface import Fit, Solver, Start
from featcache.heads.solvers.penalty import Penalty, column_norms
from featcache.heads.solvers.prepared import Prepared
from featcache.heads.solvers.rows import Float32, dot
from featcache.heads.solvers.state import ROUNDING, State

SMOOTH_STEPS = 10  # quasi-Newton steps between two proximal steps


def _smooth_gradient(state: State, penalty: Penalty) -> Float32:
    """Return the gradient on the non-zero weights (zero elsewhere), where the penalty is differentiable."""
    weight = state.weight
    total = state.gradient + np.float32(penalty.l2) * weight
    if penalty.l1:
        total += np.float32(penalty.l1) * np.sign(weight)
    if penalty.group_l1:
        norms = column_norms(weight)
        total += weight * np.where(norms > 0, penalty.group_l1 / np.maximum(norms, 1e-30), 0.0).astype(np.float32)
    total *= weight != 0 if penalty.l1 else np.any(weight != 0, axis=0)
    return total


def _proximal_step(prepared: Prepared, state: State, penalty: Penalty, step: float) -> tuple[State, float]:
    """Return the state after one proximal gradient step, and the step length that satisfied its quadratic bound."""
    while True:
        weight: Float32 = penalty.proximal(state.weight - np.float32(step) * state.gradient, step)
        bias = (state.bias - step * state.bias_gradient).astype(np.float32)
        trial = State.at(prepared, weight, bias)
        move, bias_move = weight - state.weight, bias - state.bias
        square = dot(move, move) + dot(bias_move, bias_move)
        model = dot(state.gradient, move) + dot(state.bias_gradient.astype(np.float32), bias_move)
        bound = square / (2 * step)
        if trial.data_loss <= state.data_loss + model + bound and bound > ROUNDING * abs(state.data_loss):
            return trial, step
        # a move too small for float32 objectives to compare: by the gradients then, for f' - f - <g, m> <= <g' - g, m>
        bend = dot(trial.gradient - state.gradient, move)
        bend += dot((trial.bias_gradient - state.bias_gradient).astype(np.float32), bias_move)
        if bend <= bound:
            return trial, step
        step *= 0.5


def _smooth_step(
    prepared: Prepared, state: State, penalty: Penalty, history: History, objective: float
) -> tuple[State, float] | None:
    """Return the state and objective after a quasi-Newton step on the non-zero weights, None where none descends."""
    support = (
        state.weight != 0 if penalty.l1 else np.broadcast_to(np.any(state.weight != 0, axis=0), state.weight.shape)
    )
    total, bias_total = _smooth_gradient(state, penalty), state.bias_gradient.astype(np.float32)
    direction, bias_direction = history.direction(total, bias_total)
    direction *= support
    slope = dot(total, direction) + dot(bias_total, bias_direction)
    if slope <= 0:
        return None
    step = np.float32(1.0)
    for _ in range(8):
        weight = state.weight - step * direction
        if penalty.l1:
            weight *= weight * state.weight > 0
        trial = State.at(prepared, weight, state.bias - step * bias_direction)
        value = trial.objective(penalty)
        change = _smooth_gradient(trial, penalty) - total
        if value <= objective - 1e-4 * float(step) * slope:
            break
        ahead = (
            slope + dot(change, direction) + dot(trial.bias_gradient.astype(np.float32) - bias_total, bias_direction)
        )
        if value <= objective + ROUNDING * abs(objective) and ahead >= -0.8 * slope:
            break
        step *= np.float32(0.4)
    else:
        return None
    mask = trial.weight != 0 if penalty.l1 else support
    history.add(
        (trial.weight - state.weight) * mask,
        trial.bias - state.bias,
        change * mask,
        (trial.bias_gradient - state.bias_gradient).astype(np.float32),
    )
    return trial, value


def _minimise_columns(
    prepared: Prepared, state: State, *, penalty: Penalty, tolerance: float, max_passes: float, step: float
) -> tuple[State, float, float, bool]:
    """Return ``(state, relative gap, step, converged)`` for the columns of `prepared` alone."""
    history = History(scale=step)
    objective = state.objective(penalty)
    limit = prepared.passes + max_passes
    gap, best = np.inf, np.inf
    stalled = 0
    while prepared.passes < limit:
        state, step = _proximal_step(prepared, state, penalty, step)
        step *= 1.3
        for _ in range(SMOOTH_STEPS):
            objective = state.objective(penalty)
            smooth = _smooth_step(prepared, state, penalty, history, objective)
            if smooth is None:
                history = History(scale=step)
                break
            state, value = smooth
            if abs(objective - value) < 1e-3 * tolerance * abs(objective):
                break
        gap = relative_gap(prepared, state, penalty)
        if (gap > tolerance and gap < 20 * tolerance) or stalled:
            state = State.certified(prepared, state.weight, state.bias, exact=False)
            gap = relative_gap(prepared, state, penalty)
        if gap <= tolerance:
            return state, gap, step, True
        stalled = stalled + 1 if gap > 0.98 * best else 0
        best = min(best, gap)
        if stalled > 40:
            break
    return state, gap, step, False


class Proximal(Solver):
    """Working sets of columns of one prepared problem, each solved by proximal and quasi-Newton steps."""

    def __init__(self, prepared: Prepared) -> None:
        """Nothing is kept between fits."""
        self._prepared = prepared

    def minimise(self, start: Start, *, penalty: Penalty, tolerance: float, max_passes: float) -> Fit:
        """Return the penalised minimum over all columns, L1 or group L1 above 0.

        Without a screen the first working set is of the columns that are not zero, or break their optimality condition
        at zero weights.
        """
        prepared, weight, bias = self._prepared, start.weight, start.bias
        step = 8.0 / (prepared.loss.largest_curvature * np.sqrt(prepared.n_features))
        limit = prepared.passes + max_passes
        active = np.any(weight != 0, axis=0)
        if start.screen is not None:
            active |= start.screen
        if not active.any():
            active |= penalty.violation(prepared.null_point()[0]) > 0
        state = State.at(prepared, weight, bias) if not active.any() else None
        gap, converged = np.inf, False
        for _ in range(30):
            columns = np.flatnonzero(active)
            if len(columns):
                whole = len(columns) > 0.9 * prepared.n_features
                part = prepared if whole else prepared.restrict(columns)
                before = part.passes
                inner, gap, step, converged = _minimise_columns(
                    part,
                    State.at(part, weight if whole else np.ascontiguousarray(weight[:, columns]), bias),
                    penalty=penalty,
                    tolerance=0.8 * tolerance,
                    max_passes=max(limit - prepared.passes, 8.0),
                    step=step,
                )
                bias = inner.bias
                if whole:
                    return Fit(inner, gap, gap <= tolerance)
                prepared.passes += (part.passes - before) * len(columns) / prepared.n_features
                weight = np.zeros_like(weight)
                weight[:, columns] = inner.weight
            state = State.certified(prepared, weight, bias, exact=False)
            gap = relative_gap(prepared, state, penalty)
            if gap <= tolerance or (prepared.passes >= limit):
                return Fit(state, gap, gap <= tolerance)
            broken = (penalty.violation(state.gradient) > 0) & ~active
            if not broken.any() and not converged:
                return Fit(state, gap, False)
            active |= broken
            if not broken.any():
                tolerance = max(0.3 * tolerance, 1e-9)
        assert state is not None
        return Fit(state, gap, gap <= tolerance)
