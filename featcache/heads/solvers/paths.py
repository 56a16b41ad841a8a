"""`solve` one penalty, `solve_path` many: the two verbs of the solvers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from featcache.errors import InputError
from featcache.heads.solvers.certificate import relative_gap
from featcache.heads.solvers.choice import choices
from featcache.heads.solvers.interface import Fit, Start
from featcache.heads.solvers.penalty import Penalty, column_norms
from featcache.heads.solvers.prepared import Prepared, prepare
from featcache.heads.solvers.problem import Problem, Solution
from featcache.heads.solvers.rows import Float32
from featcache.heads.solvers.spectral import Spectral
from featcache.heads.solvers.state import ROUNDING, State

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
    standardised features, the bias free; scikit-learn's C is ``1 / (n * l2)``.

    Parameters
    ----------
    problem : Problem
        Rows, targets and loss.
    l1, l2, group_l1 : float
        Strengths of the penalty, at least 0.
    start : Solution, optional
        A solution of a near penalty to begin at.
    tolerance : float
        The gap to be reached: of the objective to the optimum, relative to the objective.
    max_passes : int
        Sweeps over all rows after which the solvers give up; `Solution.converged` says whether they did.
    prepared : Prepared, optional
        Of the same problem: shares the standardised rows, and what the solvers learn of it, between calls.
    exact_objective : bool
        Whether the objective is evaluated once more with float64 logits; without, its products are float32 and its
        sums float64 (relative error below 1e-7).

    Returns
    -------
    Solution
        Weights and bias with their certificate: `objective`, and `gap`, which no solution can be better than it by.

    Raises
    ------
    InputError
        For a negative penalty, a start of another shape, or features with NaN or Inf.

    Examples
    --------
    >>> import numpy as np
    >>> from featcache.heads.solvers import Problem, solve
    >>> labels = np.arange(60) % 3
    >>> features = np.eye(3)[labels] + np.random.default_rng(0).normal(size=(60, 3))
    >>> problem = Problem(features=features, targets=labels)
    >>> solution = solve(problem, l2=0.1)
    >>> solution.converged, solution.gap_kind, solution.gap <= 1e-6
    (True, 'duality', True)

    The certificate bounds how much lower any other solution's objective can be, even of a fit that was cut short:

    >>> rough = solve(problem, l2=0.1, max_passes=1, tolerance=0.0)
    >>> rough.objective - solution.objective <= rough.gap * rough.objective
    True
    """
    penalty = Penalty(_check_penalty("l1", l1), _check_penalty("l2", l2), _check_penalty("group_l1", group_l1))
    prepared = prepare(problem) if prepared is None else prepared
    begin = Start(*_starting_point(prepared, start))
    return _solve(
        prepared, penalty, begin, tolerance=tolerance, max_passes=max_passes, exact_objective=exact_objective
    )[0]


def _starting_point(prepared: Prepared, start: Solution | None) -> tuple[Float32, Float32]:
    shape = (prepared.n_outputs, prepared.n_features)
    if start is None:
        return np.zeros(shape, dtype=np.float32), prepared.null_point()[1]
    if start.weight.shape != shape:
        raise InputError(f"start must have weights of shape {shape}, got {start.weight.shape}")
    return start.weight.copy(), start.bias.astype(np.float32)


def _solve(
    prepared: Prepared, penalty: Penalty, start: Start, *, tolerance: float, max_passes: float, exact_objective: bool
) -> tuple[Solution, State]:
    """Return the solution and the state it was certified at (over all columns)."""
    before = prepared.passes
    fit = _descend(prepared, penalty, start, tolerance=tolerance, max_passes=max_passes)
    state, gap, converged = fit.state, fit.gap, fit.converged
    if exact_objective:
        if not state.exact:
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


def _descend(prepared: Prepared, penalty: Penalty, start: Start, *, tolerance: float, max_passes: float) -> Fit:
    """Return the fit of the solvers that suit problem and penalty, one after another until one has converged."""
    before = prepared.passes
    fit: Fit | None = None
    for choice in choices(prepared, penalty, tolerance):
        left = max_passes - (prepared.passes - before)
        if fit is not None and (fit.converged or (choice.needs_passes and left <= 0)):
            break
        fit = prepared.derive(choice.solver).minimise(
            start, penalty=penalty, tolerance=tolerance, max_passes=min(left, choice.most_passes)
        )
        start = Start(fit.state.weight, fit.state.bias, start.screen)
    assert fit is not None
    return fit


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

    Parameters
    ----------
    problem : Problem
        Rows, targets and loss.
    penalty : {"l1", "l2", "group_l1"}
        The penalty that varies.
    values : sequence of float, optional
        Its values, in any order; without them, those of `penalty_grid`.
    n_values : int, optional
        How many values `penalty_grid` is to give.
    l1, l2, group_l1 : float
        The other penalties, which stay fixed.
    tolerance, max_passes, prepared, exact_objective
        As for `solve`, each fit on its own.

    Returns
    -------
    list of Solution
        From the strongest value to the weakest, each with its certificate.

    Raises
    ------
    InputError
        For another penalty's name, a negative value, or features with NaN or Inf.

    Examples
    --------
    >>> import numpy as np
    >>> from featcache.heads.solvers import Problem, solve_path
    >>> labels = np.arange(60) % 3
    >>> features = np.hstack([np.eye(3)[labels], np.zeros((60, 2))]) + np.random.default_rng(0).normal(size=(60, 5))
    >>> path = solve_path(Problem(features=features, targets=labels), penalty="l1", n_values=5)
    >>> [solution.features_used for solution in path][0]
    0
    >>> max(solution.gap for solution in path) <= 1e-5
    True
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
    # where it is chosen, the solver of whole paths goes straight ahead by itself
    follows = any(choice.solver is Spectral for choice in choices(prepared, Penalty(l2=1.0), tolerance))
    straight = penalty == "l2" and not follows
    for position, value in enumerate(ordered):
        strengths = Penalty(**{**fixed, penalty: value})
        screen = None
        if gradient is not None and penalty != "l2":
            screen = _strong_rule(strengths, previous).violation(gradient) > 0
        start = Start(weight, bias, screen)
        solution, state = _solve(
            prepared, strengths, start, tolerance=tolerance, max_passes=max_passes, exact_objective=exact_objective
        )
        weight, bias, gradient, previous = state.weight, state.bias, state.gradient, strengths
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
