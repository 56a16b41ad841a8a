"""`solve` one penalty, `solve_path` many: the two verbs of the solvers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from featcache.errors import InputError
from featcache.heads.solvers.certificate import Penalty, column_norms
from featcache.heads.solvers.coarse import LOOSE
from featcache.heads.solvers.prepared import Prepared, prepare
from featcache.heads.solvers.problem import Problem, Solution
from featcache.heads.solvers.rows import Float32
from featcache.heads.solvers.smooth import ROUNDING, State, minimise_l2, relative_gap
from featcache.heads.solvers.sparse import minimise_sparse, violation

COARSE_PASSES = 60.0  # several times what two levels need where they suit; a flat spectrum is left to Newton's method

PenaltyName = Literal["l1", "l2", "group_l1"]


def _check_penalty(name: str, value: float) -> float:
    if not (np.isfinite(value) and value >= 0.0):
        raise InputError(f"{name} must be a finite number of at least 0, got {value!r}")
    return float(value)


def solve(
    problem: Problem,
    *,
    l1: float = 0.0,
    l2: float = 0.0,
    group_l1: float = 0.0,
    start: Solution | None = None,
    tolerance: float = 1e-6,
    max_passes: int = 3000,
    prepared: Prepared | None = None,
    exact_objective: bool = True,
) -> Solution:
    """Return the head that minimises the penalised mean loss of `problem`, to a relative gap of `tolerance`.

    The objective is ``(1 / sum w) sum w_i loss_i + l1 |W|_1 + (l2 / 2) |W|_F^2 + group_l1 sum_j |W_:,j|_2`` on
    standardised features, the bias free; scikit-learn's C is ``1 / (n * l2)``. `start` is a solution of a near penalty.
    `prepared` (of the same problem) shares the standardised rows between calls. With `exact_objective` the objective is
    evaluated once more with float64 logits; without, its products are float32 and its sums float64 (relative error
    below 1e-7).

    Raises `InputError` for a negative penalty or features with NaN or Inf.
    """
    penalty = Penalty(_check_penalty("l1", l1), _check_penalty("l2", l2), _check_penalty("group_l1", group_l1))
    prepared = prepare(problem) if prepared is None else prepared
    weight, bias = _starting_point(prepared, start)
    return _fit(
        prepared,
        penalty,
        weight,
        bias,
        tolerance=tolerance,
        max_passes=max_passes,
        screen=None,
        exact=exact_objective,
    )[0]


def _starting_point(prepared: Prepared, start: Solution | None) -> tuple[Float32, Float32]:
    shape = (prepared.n_outputs, prepared.n_features)
    if start is None:
        return np.zeros(shape, dtype=np.float32), prepared.null_point()[1]
    if start.weight.shape != shape:
        raise InputError(f"start must have weights of shape {shape}, got {start.weight.shape}")
    return start.weight.copy(), start.bias.copy()


def _fit(
    prepared: Prepared,
    penalty: Penalty,
    weight: Float32,
    bias: Float32,
    *,
    tolerance: float,
    max_passes: int,
    screen: NDArray[np.bool_] | None,
    exact: bool,
) -> tuple[Solution, State]:
    """Return the solution and the state it was certified at (over all columns)."""
    before = prepared.passes
    state, gap, converged = _descend(
        prepared, penalty, weight, bias, tolerance=tolerance, max_passes=max_passes, screen=screen
    )
    if exact:
        state = State.certified(prepared, state.weight, state.bias, exact=True)
        gap = relative_gap(prepared, state, penalty)
        # what ended the iterations was an estimate in float32; weights of float32 may leave as much as its rounding
        converged = gap <= tolerance + ROUNDING
    solution = Solution(
        weight=state.weight,
        bias=state.bias,
        mean=prepared.rows.mean,
        std=prepared.rows.std,
        l1=penalty.l1,
        l2=penalty.l2,
        group_l1=penalty.group_l1,
        objective=state.objective(penalty),
        gap=gap,
        gap_kind="duality" if penalty != Penalty() else "gradient",
        passes=prepared.passes - before,
        converged=converged,
    )
    return solution, state


def _descend(
    prepared: Prepared,
    penalty: Penalty,
    weight: Float32,
    bias: Float32,
    *,
    tolerance: float,
    max_passes: float,
    screen: NDArray[np.bool_] | None,
) -> tuple[State, float, bool]:
    """Return ``(state, relative gap, converged)`` by the solvers that suit penalty and problem, one after another."""
    before = prepared.passes
    left = max_passes
    converged = False
    if penalty.l1 or penalty.group_l1:
        quick = _fit_one_output(
            prepared, weight, bias, penalty=penalty, tolerance=tolerance, max_passes=left, screen=screen
        )
        if quick is not None:
            state, gap, converged = quick
            weight, bias, left = state.weight, state.bias, left - (prepared.passes - before)
        if not converged:
            state, gap, converged = minimise_sparse(
                prepared, weight, bias, penalty=penalty, tolerance=tolerance, max_passes=left, screen=screen
            )
        return state, gap, converged
    if not penalty.l2 or prepared.newton is None:
        return minimise_l2(
            prepared, State(prepared, weight, bias), l2=penalty.l2, tolerance=tolerance, max_passes=int(left)
        )
    if tolerance >= LOOSE and prepared.spectral is not None:
        state, gap, converged = prepared.spectral.minimise(
            weight, bias, l2=penalty.l2, tolerance=tolerance, max_passes=left
        )
        weight, bias, left = state.weight, state.bias, left - (prepared.passes - before)
    coarse = None if converged else prepared.two_level
    if coarse is not None:
        state, gap, converged = coarse.minimise(
            weight, bias, l2=penalty.l2, tolerance=tolerance, max_passes=min(left, COARSE_PASSES)
        )
        weight, bias, left = state.weight, state.bias, max_passes - (prepared.passes - before)
    if not converged and (coarse is None or left > 0):
        state, gap, converged = prepared.newton.minimise(
            weight, bias, l2=penalty.l2, tolerance=tolerance, max_passes=left
        )
    return state, gap, converged


def _fit_one_output(
    prepared: Prepared,
    weight: Float32,
    bias: Float32,
    *,
    penalty: Penalty,
    tolerance: float,
    max_passes: float,
    screen: NDArray[np.bool_] | None,
) -> tuple[State, float, bool] | None:
    """Return what `ActiveSet.minimise` does for one output, or two classes by their difference; None for others."""
    if prepared.active is not None:  # a column of one weight is its own group
        merged = Penalty(l1=penalty.l1 + penalty.group_l1, l2=penalty.l2)
        return prepared.active.minimise(
            weight, bias, penalty=merged, tolerance=tolerance, max_passes=max_passes, screen=screen
        )
    part = prepared.difference
    if part is None or part.active is None:
        return None
    halves = np.array([[-0.5], [0.5]], dtype=np.float32)
    before = part.passes
    inner = part.active.minimise(
        weight[1:] - weight[:1],
        bias[1:] - bias[:1],
        penalty=Penalty(l1=penalty.l1 + penalty.group_l1 / np.sqrt(2.0), l2=0.5 * penalty.l2),
        tolerance=0.5 * tolerance,
        max_passes=max_passes,
        screen=screen,
    )[0]
    prepared.passes += part.passes - before
    state = State(prepared, halves * inner.weight, halves[:, 0] * inner.bias)
    gap = relative_gap(prepared, state, penalty)
    return state, gap, gap <= tolerance


def penalty_grid(
    prepared: Prepared, *, penalty: PenaltyName = "l2", n_values: int | None = None
) -> NDArray[np.float64]:
    """Return penalties from the strongest that matters to the weakest, evenly spaced in their logarithm.

    For L1 and group L1 the first is the least at which every weight is zero, and the last 0.01 of it (50 values); for
    L2 45 values from 10 to 1e-4.
    """
    if penalty == "l2":
        return np.logspace(1.0, -4.0, 45 if n_values is None else n_values)
    gradient = prepared.null_point()[0]
    largest = float(np.abs(gradient).max()) if penalty == "l1" else float(column_norms(gradient).max())
    return largest * (1.0 + 1e-6) * np.logspace(0.0, -2.0, 50 if n_values is None else n_values)


def solve_path(
    problem: Problem,
    *,
    penalty: PenaltyName = "l2",
    values: Sequence[float] | NDArray[np.float64] | None = None,
    n_values: int | None = None,
    l1: float = 0.0,
    l2: float = 0.0,
    group_l1: float = 0.0,
    tolerance: float = 1e-5,
    max_passes: int = 1000,
    prepared: Prepared | None = None,
    exact_objective: bool = False,
) -> list[Solution]:
    """Return one solution for each value of `penalty`, strongest first, each started from the one before.

    `values` are sorted from the strongest; None means `penalty_grid`. The other penalties stay fixed.
    """
    if penalty not in ("l1", "l2", "group_l1"):
        raise InputError(f"penalty must be 'l1', 'l2' or 'group_l1', got {penalty!r}")
    fixed = {name: _check_penalty(name, value) for name, value in (("l1", l1), ("l2", l2), ("group_l1", group_l1))}
    prepared = prepare(problem) if prepared is None else prepared
    grid = penalty_grid(prepared, penalty=penalty, n_values=n_values) if values is None else np.asarray(values)
    solutions: list[Solution] = []
    weight, bias = _starting_point(prepared, None)
    gradient: Float32 | None = prepared.null_point()[0] if penalty != "l2" else None
    previous: Penalty | None = None
    ordered = sorted((_check_penalty(penalty, float(v)) for v in grid), reverse=True)
    for position, value in enumerate(ordered):
        strengths = Penalty(**{**fixed, penalty: value})
        screen = None
        if gradient is not None and penalty != "l2":
            screen = violation(gradient, _strong_rule(strengths, previous)) > 0
        solution, state = _fit(
            prepared,
            strengths,
            weight,
            bias,
            tolerance=tolerance,
            max_passes=max_passes,
            screen=screen,
            exact=exact_objective,
        )
        weight, bias, gradient, previous = state.weight, state.bias, state.gradient, strengths
        straight = penalty == "l2" and not (tolerance >= LOOSE and prepared.spectral is not None)  # it does so itself
        if straight and len(solutions) and position + 1 < len(ordered) and ordered[position + 1] > 0:
            # weights move smoothly with the logarithm of the penalty: begin the next fit where the line points
            last, ahead = ordered[position - 1] / value, value / ordered[position + 1]
            if last > 1.0:
                factor = np.float32(min(np.log(ahead) / np.log(last), 2.0))
                weight = weight + factor * (weight - solutions[-1].weight)
                bias = bias + factor * (bias - solutions[-1].bias)
        solutions.append(solution)
    return solutions


def _strong_rule(strengths: Penalty, previous: Penalty | None) -> Penalty:
    """Return the threshold of the sequential strong rule, ``2 new - previous`` (Tibshirani et al. 2012)."""
    if previous is None:
        return strengths
    return Penalty(
        l1=max(2.0 * strengths.l1 - previous.l1, 0.0),
        group_l1=max(2.0 * strengths.group_l1 - previous.group_l1, 0.0),
    )
