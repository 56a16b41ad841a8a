"""Fit a linear head: hand rows and targets to the exact solvers, follow a path, choose on held-out rows."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.errors import InputError
from featcache.heads.linear import LinearHead
from featcache.heads.solvers import Distillation, Prepared, Problem, Solution, penalty_grid, prepare, solve
from featcache.train.blocks import take_columns
from featcache.train.data import Rows, TrainingData
from featcache.train.folds import stratified_folds
from featcache.train.head_fit import Certificate, HeadFit
from featcache.train.options import PENALTIES, LinearOptions, TrainOptions
from featcache.train.result import PathPoint
from featcache.train.score import Score
from featcache.train.search import TOLERANCE, WALK_TOLERANCE, Trial, looks_shown, mean_score, most_looks, search
from featcache.train.targets import LOSSES, Supervision, mix, supervise
from featcache.train.teacher import SoftTargets

WORTH_A_NOTE = 1e-4  # relative gap of a final fit; most end below 1e-6
SELECTION_STEP = 0.66  # each penalty of group L1 over the one before, where features are chosen
SELECTION_WEAKEST = 1e-4  # the last of them, over the first
SELECTION_HALVINGS = 2  # of the step in which the share is passed
SELECTION_PASSES = 100  # for each: which features are kept is settled long before their weights are


def fit_linear(data: TrainingData, head: LinearOptions, options: TrainOptions, soft: SoftTargets | None) -> HeadFit:
    """Return the linear head on the train rows of `data`, with its certificate and its path."""
    if head.keep_features < 1.0:
        return fit_selected(data, head, options, soft)
    rows = supervise(data, head, soft)

    def prepare_rows(kept: Supervision) -> Prepared:
        return _prepare(kept, data, head, soft, seed=options.seed)

    penalties: dict[str, Any] = {**head.penalties}
    free = head.chosen_penalty
    if free is None:
        prepared = prepare_rows(rows)
        return _head_fit(solve(prepared.problem, **penalties, prepared=prepared), data)
    fold_of_row = _folds(rows, data, options) if data.val is None else None  # refused before the long work
    fixed = {name: value for name, value in penalties.items() if name != free}
    prepared = prepare_rows(rows)
    whole = Trial(prepared, free=free, fixed=fixed, held_out=data.val, task=data.task)
    score, selection = whole.score, "val"
    if fold_of_row is not None:
        trials = [
            Trial(
                prepare_rows(rows.subset(fold_of_row != number)),
                free=free,
                fixed=fixed,
                held_out=data.first_view().subset(fold_of_row[: data.n_images] == number),
                task=data.task,
            )
            for number in range(int(fold_of_row.max()) + 1)
        ]
        score, selection = partial(mean_score, trials), f"{len(trials)} folds"
    grid = penalty_grid(prepared, penalty=free).tolist()
    with looks_shown(score, at_most=most_looks(len(grid)), penalty=free) as shown:
        scores, chosen = search(
            grid, shown, one_standard_error=head.standard_error_rule,
            walk_tolerance=WALK_TOLERANCE if whole.is_long else TOLERANCE,
        )  # fmt: skip
    path = tuple(_point(whole.solution(value), scores[value], value == chosen) for value in scores)
    start: Solution | None = whole.solution(chosen)
    if not whole.is_long:  # solved again from nothing: naming the chosen value then gives this very head, bit for bit
        prepared, start = prepare_rows(rows), None
    solution = solve(prepared.problem, **{**penalties, free: chosen}, start=start, prepared=prepared)
    fit = _head_fit(solution, data, free=free, selection=selection, path=path)
    if whole.components is None:
        return fit
    return dataclasses.replace(fit, details={**fit.details, "components": whole.components})


def fit_selected(data: TrainingData, head: LinearOptions, options: TrainOptions, soft: SoftTargets | None) -> HeadFit:
    """Return the L2 head on the features that group L1 keeps, at most the share ``keep_features`` of all.

    Group L1 shrinks what it keeps; fitting those features again without it undoes that (the relaxed lasso, Meinshausen
    2007). The path is followed on the train rows from the strongest penalty until it uses more than the share; the
    step in which it does is halved, so that what is kept comes near to it. The L2 penalty that is best with all
    features stays beside it: alone, group L1 keeps one feature of several that say the same (Zou and Hastie 2005), and
    never more than the rows can tell apart. Raises `InputError` where the share leaves room for no feature.
    """
    every = dataclasses.replace(head, keep_features=1.0)
    whole = fit_linear(data, every, options, soft).certificate
    assert whole is not None
    d = data.train.features.shape[1]
    most = int(head.keep_features * d)
    prepared = _prepare(supervise(data, head, soft), data, head, soft, seed=options.seed)
    largest = float(penalty_grid(prepared, penalty="group_l1")[0])
    chosen: Solution | None = None
    strength, step, halvings = largest * SELECTION_STEP, SELECTION_STEP, 0
    while strength >= SELECTION_WEAKEST * largest:
        solution = solve(
            prepared.problem,
            group_l1=strength,
            l2=whole.l2,
            start=chosen,
            tolerance=TOLERANCE,
            max_passes=SELECTION_PASSES,
            prepared=prepared,
            exact_objective=False,
        )
        if solution.features_used <= most:
            chosen = solution
        elif halvings < SELECTION_HALVINGS:
            strength, step, halvings = strength / step, step**0.5, halvings + 1
        else:
            break
        strength *= step
    if chosen is None or not chosen.features_used:
        raise InputError(
            "keep_features must leave room for the features that group L1 keeps first, got "
            f"{head.keep_features!r} of {d} features"
        )
    kept = np.flatnonzero(np.any(chosen.weight != 0, axis=0))
    fit = fit_linear(_of_features(data, kept), every, options, soft)
    narrow, certificate = fit.head, fit.certificate
    assert isinstance(narrow, LinearHead) and certificate is not None
    weight = np.zeros((len(narrow.weight), d), dtype=np.float32)
    weight[:, kept] = narrow.weight
    share = len(kept) / d
    return dataclasses.replace(
        fit,
        head=dataclasses.replace(narrow, weight=weight),
        certificate=dataclasses.replace(certificate, nonzero_fraction=certificate.nonzero_fraction * share),
        path=tuple(dataclasses.replace(p, nonzero_fraction=p.nonzero_fraction * share) for p in fit.path),
        details={**fit.details, "kept": {"group_l1": chosen.group_l1, "l2": chosen.l2, "features": kept.tolist()}},
    )


def _of_features(data: TrainingData, kept: npt.NDArray[np.int64]) -> TrainingData:
    """Return `data` with only the features `kept` ``(m,)``."""

    def cut(rows: Rows | None) -> Rows | None:
        if rows is None:
            return None
        return Rows(take_columns(rows.features, kept), rows.targets, rows.indices)

    train = cut(data.train)
    assert train is not None
    ends = np.cumsum(data.block_widths)
    widths = np.bincount(np.searchsorted(ends, kept, side="right"), minlength=len(ends))
    return dataclasses.replace(
        data,
        train=train,
        val=cut(data.val),
        test=cut(data.test),
        unlabelled=cut(data.unlabelled),
        block_widths=tuple(int(width) for width in widths),
    )


def _prepare(
    rows: Supervision, data: TrainingData, head: LinearOptions, soft: SoftTargets | None, *, seed: int
) -> Prepared:
    """Return the problem of `rows`, standardised, each output's features then multiplied by its ``block_scales``.

    The penalties so weigh on the features of a block by one over its scale. The scale is folded into ``std``, through
    which a solution is brought back to raw features.
    """
    prepared = prepare(_problem(rows, data, head, soft, seed=seed))
    if head.block_scales is None:
        return prepared
    widths = data.block_widths
    scales = [(max(widths) / width) ** 0.25 for width in widths]
    if head.block_scales != "auto":
        scales = [float(scale) for scale in head.block_scales]
    if len(scales) != len(widths):
        raise InputError(f"block_scales must have one number per output {list(data.columns)!r}, got {scales!r}")
    prepared.rows.scale_columns(np.repeat(np.array(scales), widths))
    return prepared


def _problem(
    rows: Supervision, data: TrainingData, head: LinearOptions, soft: SoftTargets | None, *, seed: int
) -> Problem:
    if head.mixup > 0:
        rows = mix(rows, n_classes=len(data.classes), amount=head.mixup, copies=head.mixup_copies, seed=seed)
    distillation = None
    if soft is not None and rows.teacher is not None and soft.alpha > 0:
        distillation = Distillation(rows.teacher, soft.alpha, soft.temperature)
    elif rows.teacher is not None:
        rows = rows.subset(rows.targets >= 0)  # with alpha = 0 unlabelled rows have no term
    if data.task == "multilabel" and rows.teacher is None:
        constant = np.flatnonzero(rows.targets.min(axis=0) == rows.targets.max(axis=0))
        if len(constant):
            raise InputError(
                "every label needs training images with it and without it, "
                f"{data.classes[constant[0]]!r} has only one kind: remove it or add images"
            )
    return Problem(
        features=rows.features,
        targets=rows.targets,
        loss=LOSSES[data.task],
        n_classes=len(data.classes),
        sample_weight=rows.weights,
        distillation=distillation,
    )


def _folds(rows: Supervision, data: TrainingData, options: TrainOptions) -> npt.NDArray[np.int64]:
    """Return the fold of each row, -1 for the unlabelled ones, which every fold trains on."""
    train = data.train
    fold = stratified_folds(
        train.indices, train.targets, task=data.task, classes=data.classes, folds=options.folds, seed=options.seed
    )
    fold_of_row = np.full(len(rows.features), -1)
    fold_of_row[: len(fold)] = fold
    return fold_of_row


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


def _head_fit(
    solution: Solution,
    data: TrainingData,
    *,
    free: str | None = None,
    selection: str | None = None,
    path: tuple[PathPoint, ...] = (),
) -> HeadFit:
    weight, bias = solution.raw_weight(), solution.raw_bias()
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise InputError(
            "the solution must be finite, got NaN or infinity: the features' scale is beyond float32, or the penalty "
            "is too weak"
        )
    return HeadFit(
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
        notes=_notes_on(solution),
    )


def _notes_on(solution: Solution) -> tuple[str, ...]:
    """Return a line where the solution is so far from the optimum that figures could change."""
    if solution.gap <= WORTH_A_NOTE:
        return ()
    strengths = ", ".join(f"{name} {getattr(solution, name):.3g}" for name in PENALTIES if getattr(solution, name) > 0)
    return (
        f"the fit is proved to a relative gap of {solution.gap:.2g} only, after {solution.passes:.0f} passes: "
        f"{strengths} is too weak to be solved in float32; use a stronger penalty",
    )
