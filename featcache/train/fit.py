"""`train_head`: a cache becomes a head. The meeting of the cache and the heads, where every choice is made."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from featcache.errors import InputError
from featcache.heads.base import Head
from featcache.heads.io import load_head
from featcache.heads.solvers.parts import Workers
from featcache.system.cluster import ClusterSettings, cluster
from featcache.system.machine import memory_bytes_of_machine
from featcache.train.blocks import WITHOUT_CLUSTER
from featcache.train.data import Rows, TrainingData, load_training_data
from featcache.train.finish import add_unknown_rule, calibrate_head, require_val
from featcache.train.head_fit import HeadFit
from featcache.train.options import (
    CacheOrPath,
    DistillationOptions,
    HeadOptions,
    KnnOptions,
    LinearOptions,
    MlpOptions,
    PrototypeOptions,
    TrainOptions,
)
from featcache.train.result import FitResult
from featcache.train.score import SCORE_NAMES, Score, score_rows
from featcache.train.settings import TrainSettings
from featcache.train.teacher import SoftTargets, has_matching_logits, teacher_probabilities

if TYPE_CHECKING:
    from featcache.cache import FeatureCache


def train_head(
    cache: CacheOrPath,
    *,
    head: HeadOptions | None = None,
    options: TrainOptions | None = None,
    distillation: DistillationOptions | None = None,
    dataset: str | None = None,
    memory_bytes: int | None = None,
    ray: str | None = None,
    actors: int | None = None,
) -> FitResult:
    """Return a head trained on the train split of `cache`, chosen on val, with test only reported.

    Parameters
    ----------
    cache : FeatureCache or path
        The features, and the samples that say which image has which label and split.
    head : LinearOptions, MlpOptions, PrototypeOptions or KnnOptions, optional
        The kind of head and its settings. Default: ``LinearOptions()``, whose L2 penalty is chosen on val.
    options : TrainOptions, optional
        What goes for every kind: outputs, views, folds, calibration, the rule for unknown images, the seed.
    distillation : DistillationOptions, optional
        A teacher, for a linear head or an MLP.
    dataset : str, optional
        The data set to train on; needed where the cache holds several.
    memory_bytes : int, optional
        Where the features, and the standardised copies that are fitted on, would take more, the rows are streamed from
        the cache block by block at every pass: the same head to the gap of the fit, later. Default: half of the
        machine's memory. Only linear heads without mixup can be streamed. L1 and group L1 keep in memory the columns
        that are in use. With `ray`: what the actors of one machine hold in memory; the rest lies in files there.
    ray : str, optional
        A Ray cluster, ``HOST:PORT``, ``auto`` or ``local``. Each of its actors reads a part of the rows once, holds it
        and gives sums of it away: the same head to the gap of the fit. For linear heads without mixup.
    actors : int, optional
        How many; without it one on each machine.

    Returns
    -------
    FitResult
        The head, its certificate where it is linear, its accuracies and, in ``settings``, what `refit_head` needs.

    Raises
    ------
    InputError
        For one class, a class without a training image, features that are not finite, a teacher with other classes or
        images, and settings that do not go together.
    ClusterError
        Where an actor is lost again and again; lost once, it is started again and reads its rows again.

    Examples
    --------
    >>> import featcache
    >>> result = featcache.train_head("cache", head=featcache.LinearOptions(l1=0.1))
    >>> result.kind, result.classes, result.gap < 1e-4
    ('linear', ('cat', 'dog'), True)

    Without a kind it is a linear head whose L2 penalty is chosen; here it also learns from a second cache:

    >>> teacher = featcache.DistillationOptions(teacher="cache", alpha=0.3)
    >>> result = featcache.train_head("cache", options=featcache.TrainOptions(seed=1), distillation=teacher)
    >>> result.details["teacher"]["head"]
    'trained'
    """
    settings = TrainSettings(
        head=LinearOptions() if head is None else head,
        options=TrainOptions() if options is None else options,
        distillation=distillation,
    )
    place = ClusterSettings.of(ray, actors, 0.0)
    if place is None:
        return train_on(cache, settings, dataset=dataset, memory_bytes=memory_bytes)
    check_parts_suffice(settings.head)  # before a cluster is started
    with _actors_of(place, memory_bytes) as workers:
        return train_on(cache, settings, dataset=dataset, memory_bytes=memory_bytes, workers=workers)


def refit_head(
    cache: CacheOrPath,
    settings: Mapping[str, Any],
    *,
    dataset: str | None = None,
    memory_bytes: int | None = None,
) -> FitResult:
    """Return the head that the `settings` of another one make from `cache`: every choice is made already.

    `settings`: those of a `FitResult` or a `Head`. From the same rows they give the same head, bit for bit. Raises
    `InputError` as `train_head` does, and for a setting that the kind of head does not have.

    >>> result = train_head("cache", head=LinearOptions(l2="auto"))
    >>> bool((refit_head("cache", result.settings).head.weight == result.head.weight).all())
    True
    """
    return train_on(cache, TrainSettings.from_json(settings), dataset=dataset, memory_bytes=memory_bytes)


def check_parts_suffice(head: HeadOptions) -> None:
    """Raise `InputError` for a head that is not made of sums over rows alone, which is all that parts give."""
    if not isinstance(head, LinearOptions) or head.mixup > 0:
        what = "mixup" if isinstance(head, LinearOptions) else f"kind {head.kind!r}"
        raise InputError(f"{what} needs the rows in memory, in a cluster they are in parts: {WITHOUT_CLUSTER}")


def train_on(
    cache: CacheOrPath,
    settings: TrainSettings,
    *,
    dataset: str | None = None,
    memory_bytes: int | None = None,
    workers: Workers | None = None,
) -> FitResult:
    """Return the head that `settings` make of `cache`; `workers`: who hold its rows, as `train_head` says of actors."""
    from featcache.cache import borrow_cache  # here, as --help reads the options without it

    began = time.perf_counter()
    if memory_bytes is not None and not memory_bytes > 0:
        raise InputError(f"memory_bytes must be above 0, got {memory_bytes!r}")
    head, options, distillation = settings.head, settings.options, settings.distillation
    chooses = isinstance(head, LinearOptions) and head.chosen_penalty is not None
    if workers is not None:
        check_parts_suffice(head)
    with ExitStack() as stack:
        opened = stack.enter_context(borrow_cache(cache))
        data = load_training_data(
            opened,
            dataset=dataset,
            outputs=options.outputs,
            views=options.views,
            drop_duplicates=options.drop_duplicates,
            with_unlabelled=distillation is not None,
            unlabelled=None if distillation is None else distillation.unlabelled,
            memory_bytes=_half_of_memory() if memory_bytes is None else memory_bytes,
            folds=options.folds if chooses else 0,
            workers=workers,
        )
        if distillation is None:
            return _train(opened, data, settings, None, {}, began)
        soft, details = _ask_teacher(stack.enter_context(borrow_cache(distillation.teacher)), data, distillation)
        return _train(opened, data, settings, soft, details, began)


@contextmanager
def _actors_of(settings: ClusterSettings, memory_bytes: int | None) -> Iterator[Workers]:
    """Yield the actors of a cluster, which end with the block."""
    from featcache.train.cluster_workers import ClusterWorkers

    with cluster(settings.address) as ray:
        workers = ClusterWorkers(ray, settings, memory_bytes=memory_bytes)
        try:
            yield workers
        finally:
            workers.close()


def _train(
    cache: FeatureCache,
    data: TrainingData,
    settings: TrainSettings,
    soft: SoftTargets | None,
    teacher_details: dict[str, Any],
    began: float,
) -> FitResult:
    options = settings.options
    if options.calibrate:
        require_val(data, "a temperature")
    if options.unknown is not None:
        require_val(data, "an unknown rule")
    fit = _fit(data, settings.head, options, soft)
    chosen = _with_choices(settings.head, fit.chosen)
    refit_settings = dataclasses.replace(settings, head=chosen).to_json()
    head = dataclasses.replace(fit.head, columns=data.columns, fingerprint=cache.fingerprint, settings=refit_settings)
    if options.calibrate and data.val is not None:
        head = calibrate_head(head, data.val)
    if options.unknown is not None:
        head = add_unknown_rule(head, data, options, lambda part: _fit(part, chosen, options, None).head)
    scores = [_score(head, rows, data.task) for rows in (data.first_view(), data.val, data.test)]
    accuracies = [None if score is None else score.accuracy for score in scores]
    values = [None if score is None else score.value for score in scores]
    certificate = fit.certificate
    assert values[0] is not None  # there is always a training row
    return FitResult(
        head=head,
        kind=head.kind,
        task=data.task,
        dataset=data.dataset,
        classes=data.classes,
        columns=data.columns,
        l1=None if certificate is None else certificate.l1,
        l2=None if certificate is None else certificate.l2,
        group_l1=None if certificate is None else certificate.group_l1,
        objective=None if certificate is None else certificate.objective,
        gap=None if certificate is None else certificate.gap,
        gap_kind=None if certificate is None else certificate.gap_kind,
        passes=None if certificate is None else certificate.passes,
        nonzero_fraction=None if certificate is None else certificate.nonzero_fraction,
        features_used=None if certificate is None else certificate.features_used,
        n_train=len(data.train),
        n_unlabelled=0 if data.unlabelled is None else len(data.unlabelled),
        n_val=0 if data.val is None else len(data.val),
        n_test=0 if data.test is None else len(data.test),
        n_classes=len(data.classes),
        num_features=data.train.features.shape[1],
        train_accuracy=accuracies[0],
        val_accuracy=accuracies[1],
        test_accuracy=accuracies[2],
        score=SCORE_NAMES[data.task],
        train_score=values[0],
        val_score=values[1],
        test_score=values[2],
        selection=fit.selection,
        path=fit.path,
        details={**fit.details, **teacher_details},
        settings=refit_settings,
        seed=options.seed,
        fingerprint=cache.fingerprint,
        notes=(*data.notes, *fit.notes),
        wall_seconds=time.perf_counter() - began,
    )


def _fit(data: TrainingData, head: HeadOptions, options: TrainOptions, soft: SoftTargets | None) -> HeadFit:
    """Return the fit of one kind of head; its file is read when it is asked for."""
    if isinstance(head, LinearOptions):
        from featcache.train.linear import fit_linear

        return fit_linear(data, head, options, soft)
    from featcache.train import other_kinds

    match head:
        case MlpOptions():
            return other_kinds.fit_perceptron(data, head, options, soft)
        case PrototypeOptions():
            return other_kinds.fit_prototype(data, head, options)
        case KnnOptions():
            return other_kinds.fit_neighbors(data, head, options)


def _with_choices(head: HeadOptions, choices: Mapping[str, Any]) -> HeadOptions:
    """Return the options that make this head again without choosing: every penalty a number, no rule left to apply."""
    if not isinstance(head, LinearOptions):
        return dataclasses.replace(head, **choices)
    rule = head.standard_error_rule and head.chosen_penalty not in choices
    penalties: dict[str, Any] = {**head.penalties, **choices}
    return dataclasses.replace(head, standard_error_rule=rule, **penalties)


def _score(head: Head, rows: Rows | None, task: str) -> Score | None:
    return None if rows is None else score_rows(head.predict_logits, rows.features, rows.targets, task=task)


def _ask_teacher(
    teacher: FeatureCache, data: TrainingData, distillation: DistillationOptions
) -> tuple[SoftTargets, dict[str, Any]]:
    """Return the teacher's probabilities, and what the result says about the teacher."""
    if data.task != "classification":
        raise InputError(f"a teacher needs task 'classification', got {data.task!r}")
    details: dict[str, Any] = {"teacher": {"fingerprint": teacher.fingerprint, "model": teacher.recipe.model}}
    reference = distillation.teacher_head
    head: Head | None
    if isinstance(reference, Head):
        head, source = reference, "given"
    elif isinstance(reference, str | os.PathLike):
        head, source = load_head(reference), "given"
    elif reference is None and has_matching_logits(teacher, len(data.classes)):
        head, source = None, "logits"
    else:
        same = data.dataset if data.dataset in teacher.datasets else None
        trained = refit_head(teacher, reference or {}, dataset=same)
        head, source = trained.head, "trained"
        details["teacher"] |= {"val_accuracy": trained.val_accuracy, "test_accuracy": trained.test_accuracy}
    details["teacher"]["head"] = source
    return teacher_probabilities(teacher, head=head, data=data, distillation=distillation), details


def _half_of_memory() -> int | None:
    total = memory_bytes_of_machine()
    return None if total is None else total // 2
