"""Fit a linear head: hand rows and targets to the exact solvers, follow a path, choose on held-out rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.errors import InputError
from featcache.heads.linear import LinearHead
from featcache.heads.solvers import Distillation, Prepared, Problem, Solution, prepare, solve, solve_path
from featcache.train.data import TrainingData
from featcache.train.fitted import Certificate, Fitted, Teacher
from featcache.train.folds import stratified_folds
from featcache.train.result import PathPoint
from featcache.train.score import Score, score_logits
from featcache.train.settings import PENALTIES, PenaltyName, TrainSettings
from featcache.train.targets import LOSSES, Supervision, mix, supervise


def fit_linear(data: TrainingData, settings: TrainSettings, teacher: Teacher | None) -> Fitted:
    """Return the linear head of `settings` on the train rows of `data`, with its certificate and its path."""
    rows = supervise(data, settings, teacher)
    penalties = {name: getattr(settings, name) for name in PENALTIES}
    free = settings.auto
    problem = _problem(rows, data, settings)
    fold_of_row = None if data.val is not None or free is None else _folds(rows, data, settings)
    prepared = _prepare(problem, data, settings)
    if free is None:
        return _fitted(solve(problem, **penalties, prepared=prepared), data)
    fixed = {str(name): value for name, value in penalties.items() if name != free}
    solutions = solve_path(problem, penalty=free, prepared=prepared, **fixed)
    if fold_of_row is not None:
        values = [getattr(solution, free) for solution in solutions]
        scores = _cross_validate(rows, data, settings, fold_of_row, free=free, values=values, fixed=fixed)
        selection = f"{int(fold_of_row.max()) + 1} folds"
    else:
        assert data.val is not None
        scores = [_score(solution, data.val.features, data.val.targets, data.task) for solution in solutions]
        selection = "val"
    chosen = choose(scores, one_standard_error=settings.standard_error_rule)
    path = tuple(_point(s, score, i == chosen) for i, (s, score) in enumerate(zip(solutions, scores, strict=True)))
    # Solved again from zero and to a finer gap, so that naming the chosen value gives this very head, bit for bit.
    solution = solve(problem, **fixed, **{free: getattr(solutions[chosen], free)}, prepared=prepared)
    return _fitted(solution, data, free=free, selection=selection, path=path)


def choose(scores: Sequence[Score], *, one_standard_error: bool) -> int:
    """Return the position of the best score; among equals the one of the least loss, then the strongest penalty.

    `scores` go from the strongest penalty to the weakest. With `one_standard_error` it is the strongest penalty whose
    score is within one standard error of the best (Breiman et al., CART, 1984).
    """
    best = max(range(len(scores)), key=lambda i: (scores[i].value, -scores[i].loss, -i))
    if not one_standard_error:
        return best
    least = scores[best].value - scores[best].standard_error
    return next(i for i, score in enumerate(scores) if score.value >= least)


def _problem(
    rows: Supervision, data: TrainingData, settings: TrainSettings, kept: npt.NDArray[np.bool_] | None = None
) -> Problem:
    """Return the solver's problem of the rows `kept` (all for None)."""
    if kept is not None:
        rows = rows.subset(kept)
    if settings.mixup > 0:
        rows = mix(
            rows, n_classes=len(data.classes), amount=settings.mixup, copies=settings.mixup_copies, seed=settings.seed
        )
    distillation = None
    if rows.teacher is not None and settings.alpha > 0:
        distillation = Distillation(rows.teacher, settings.alpha, settings.temperature)
    elif rows.teacher is not None:
        rows = rows.subset(rows.targets >= 0)  # with alpha = 0 unlabelled rows have no term
    return Problem(
        features=rows.features,
        targets=rows.targets,
        loss=LOSSES[data.task],
        n_classes=len(data.classes),
        sample_weight=rows.weights,
        distillation=distillation,
    )


def _prepare(problem: Problem, data: TrainingData, settings: TrainSettings) -> Prepared:
    """Return the problem standardised, each output's features then multiplied by its scale of ``block_scales``.

    The penalties so weigh on the features of a block by one over its scale. The scale is folded into ``std``, through
    which a solution is brought back to raw features.
    """
    prepared = prepare(problem)
    if settings.block_scales is None:
        return prepared
    widths = data.block_widths
    scales = [(max(widths) / width) ** 0.25 for width in widths]
    if settings.block_scales != "auto":
        scales = [float(scale) for scale in settings.block_scales]
    if len(scales) != len(widths):
        raise InputError(f"block_scales must have one number per output {list(data.columns)!r}, got {scales!r}")
    matrix = prepared.rows.matrix
    assert matrix is not None  # features of a cache are gathered into memory
    of_feature = np.repeat(np.array(scales), widths)
    matrix *= of_feature.astype(np.float32)
    prepared.rows.std = prepared.rows.std / of_feature
    return prepared


def _cross_validate(
    rows: Supervision,
    data: TrainingData,
    settings: TrainSettings,
    fold_of_row: npt.NDArray[np.int64],
    *,
    free: PenaltyName,
    values: Sequence[float],
    fixed: Mapping[str, Any],
) -> list[Score]:
    """Return each penalty's mean score over stratified folds; the standard error is that of the mean over folds."""
    train = data.train
    plain = _plain(data)
    held_out_scores: list[list[Score]] = []
    for number in range(int(fold_of_row.max()) + 1):
        problem = _problem(rows, data, settings, fold_of_row != number)
        prepared = _prepare(problem, data, settings)
        held_out = np.flatnonzero(fold_of_row[:plain] == number)
        held_out_scores.append(
            [
                _score(solution, train.features[held_out], train.targets[held_out], data.task)
                for solution in solve_path(problem, penalty=free, values=values, prepared=prepared, **fixed)
            ]
        )
    return [_mean_score([scores[i] for scores in held_out_scores]) for i in range(len(values))]


def _folds(rows: Supervision, data: TrainingData, settings: TrainSettings) -> npt.NDArray[np.int64]:
    """Return the fold of each row, -1 for the unlabelled ones, which every fold trains on."""
    train = data.train
    fold = stratified_folds(train.indices, train.targets, task=data.task, folds=settings.folds, seed=settings.seed)
    fold_of_row = np.full(len(rows.features), -1)
    fold_of_row[: len(fold)] = fold
    return fold_of_row


def _mean_score(scores: Sequence[Score]) -> Score:
    values = np.array([score.value for score in scores])
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    loss = float(np.mean([score.loss for score in scores]))
    return Score(float(values.mean()), error, None, loss, sum(score.n for score in scores))


def _plain(data: TrainingData) -> int:
    """Return how many train rows are of the first view."""
    return len(np.unique(data.train.indices))


def _score(solution: Solution, features: npt.NDArray[Any], targets: npt.NDArray[Any], task: str) -> Score:
    logits = features @ solution.raw_weight().T + solution.raw_bias()
    return score_logits(logits, targets, task=task)


def _point(solution: Solution, score: Score, chosen: bool) -> PathPoint:
    return PathPoint(
        l1=solution.l1,
        l2=solution.l2,
        group_l1=solution.group_l1,
        objective=solution.objective,
        gap=solution.gap,
        passes=solution.passes,
        nonzero_fraction=solution.nonzero_fraction,
        features_used=solution.features_used,
        value=score.value,
        standard_error=score.standard_error,
        loss=score.loss,
        chosen=chosen,
    )


def _fitted(
    solution: Solution,
    data: TrainingData,
    *,
    free: str | None = None,
    selection: str | None = None,
    path: tuple[PathPoint, ...] = (),
) -> Fitted:
    weight, bias = solution.raw_weight(), solution.raw_bias()
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise InputError(
            "the solution must be finite, got NaN or infinity: the features' scale is beyond float32, or the penalty "
            "is too weak"
        )
    return Fitted(
        head=LinearHead(classes=data.classes, task=data.task, weight=weight, bias=bias),
        chosen={} if free is None else {free: getattr(solution, free)},
        selection=selection,
        certificate=Certificate(
            l1=solution.l1,
            l2=solution.l2,
            group_l1=solution.group_l1,
            objective=solution.objective,
            gap=solution.gap,
            gap_kind=solution.gap_kind,
            passes=solution.passes,
            nonzero_fraction=solution.nonzero_fraction,
            features_used=solution.features_used,
        ),
        path=path,
        details={"converged": solution.converged},
    )
