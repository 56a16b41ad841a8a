"""`solve` one penalty, `solve_path` many: the two verbs of the solvers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from featcache.errors import InputError
from featcache.heads.solvers.certificate import Penalty, column_norms
from featcache.heads.solvers.prepared import Prepared, prepare
from featcache.heads.solvers.problem import Problem, Solution
from featcache.heads.solvers.smooth import State, minimise_l2
from featcache.heads.solvers.sparse import minimise_sparse

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

    The objective is ``(1 / sum w) sum w_i loss_i + l1 |W|_1 + (l2 / 2) |W|_F^2 + group_l1 sum_j |W_:,j|_2`` on standardised
    features, the bias free; scikit-learn's C is ``1 / (n * l2)``. `start` is a solution of a near penalty. `prepared`
    (of the same problem) shares the standardised rows between calls. With `exact_objective` the objective is evaluated
    once more with float64 logits; without, its products are float32 and its sums float64 (relative error below 1e-7).

    Raises `InputError` for a negative penalty or features with NaN or Inf.
    """
    penalty = Penalty(_check_penalty("l1", l1), _check_penalty("l2", l2), _check_penalty("group_l1", group_l1))
    prepared = prepare(problem) if prepared is None else prepared
    before = prepared.passes
    if start is None:
        weight = np.zeros((prepared.n_outputs, prepared.n_features), dtype=np.float32)
        bias = prepared.null_point()[1]
    else:
        weight, bias = start.weight.copy(), start.bias.copy()
        if weight.shape != (prepared.n_outputs, prepared.n_features):
            raise InputError(f"start must have weights {(prepared.n_outputs, prepared.n_features)}, got {weight.shape}")
    state = State(prepared, weight, bias)
    if penalty.l1 or penalty.group_l1:
        state, gap, converged = minimise_sparse(
            prepared, state, penalty=penalty, tolerance=tolerance, max_passes=max_passes
        )
    else:
        state, gap, converged = minimise_l2(
            prepared, state, l2=penalty.l2, tolerance=tolerance, max_passes=max_passes
        )
    if exact_objective:
        state = State.certified(prepared, state.weight, state.bias, exact=True)
        gap = state.gap(prepared, penalty) / max(abs(state.objective(penalty)), 1e-12)
    objective = state.objective(penalty)
    return Solution(
        weight=state.weight,
        bias=state.bias,
        mean=prepared.rows.mean,
        std=prepared.rows.std,
        l1=penalty.l1,
        l2=penalty.l2,
        group_l1=penalty.group_l1,
        objective=objective,
        gap=gap,
        gap_kind="duality" if penalty != Penalty() else "gradient",
        passes=prepared.passes - before,
        converged=converged,
    )


def penalty_grid(prepared: Prepared, *, penalty: PenaltyName = "l2", n_values: int | None = None) -> NDArray[np.float64]:
    """Return penalties from the strongest that matters to the weakest, evenly spaced in their logarithm.

    For L1 and group L1 the first is the least at which every weight is zero, and the last 0.01 of it (50 values); for L2
    45 values from 10 to 1e-4 times the mean curvature of the loss.
    """
    if penalty == "l2":
        return np.logspace(1.0, -4.0, 45 if n_values is None else n_values)
    gradient = prepared.null_point()[0]
    largest = float(np.abs(gradient).max()) if penalty == "l1" else float(column_norms(gradient).max())
    return largest * np.logspace(0.0, -2.0, 50 if n_values is None else n_values)


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

    `values` are sorted from the strongest; None means `penalty_grid`. The other penalties stay fixed at the values given.
    """
    if penalty not in ("l1", "l2", "group_l1"):
        raise InputError(f"penalty must be 'l1', 'l2' or 'group_l1', got {penalty!r}")
    prepared = prepare(problem) if prepared is None else prepared
    grid = penalty_grid(prepared, penalty=penalty, n_values=n_values) if values is None else np.asarray(values)
    solutions: list[Solution] = []
    for value in sorted((float(v) for v in grid), reverse=True):
        strengths = {"l1": l1, "l2": l2, "group_l1": group_l1, penalty: value}
        solutions.append(
            solve(
                problem,
                **strengths,
                start=solutions[-1] if solutions else None,
                tolerance=tolerance,
                max_passes=max_passes,
                prepared=prepared,
                exact_objective=exact_objective,
            )
        )
    return solutions
