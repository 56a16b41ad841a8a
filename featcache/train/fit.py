"""`train_head`: a cache becomes a head. The meeting of the cache and the heads, where every choice is made."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

from featcache.errors import InputError
from featcache.heads.base import Head
from featcache.heads.io import load_head
from featcache.system.machine import memory_bytes_of_machine
from featcache.train.data import Rows, TrainingData, load_training_data
from featcache.train.finish import add_unknown_rule, calibrate_head, require_val
from featcache.train.fitted import Fitted, Teacher
from featcache.train.result import FitResult
from featcache.train.score import SCORE_NAMES, Score, score_rows
from featcache.train.settings import Penalty, TrainSettings
from featcache.train.teacher import has_matching_logits, teacher_probabilities

if TYPE_CHECKING:
    from featcache.cache import FeatureCache


def train_head(
    cache: FeatureCache | str | os.PathLike[str],
    *,
    dataset: str | None = None,
    kind: str = "linear",
    l1: Penalty | None = None,
    l2: Penalty | None = None,
    group_l1: Penalty | None = None,
    keep_features: float = 1.0,
    outputs: str | Sequence[str] | None = None,
    block_scales: Sequence[float] | Literal["auto"] | None = None,
    views: int | Sequence[int] = 0,
    class_weight: str | None = None,
    drop_duplicates: bool = False,
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    mixup_copies: int = 1,
    standard_error_rule: bool = False,
    folds: int = 5,
    calibrate: bool = False,
    unknown: str | None = None,
    unknown_accept: float = 0.95,
    teacher: FeatureCache | str | os.PathLike[str] | None = None,
    teacher_head: Head | str | os.PathLike[str] | Mapping[str, Any] | None = None,
    alpha: float = 0.5,
    temperature: float = 2.0,
    unlabelled: str | None = None,
    metric: str | None = None,
    neighbors: int | None = None,
    sharpness: float | None = None,
    hidden: Sequence[int] = (512,),
    dropout: float = 0.2,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-2,
    epochs: int = 100,
    seed: int = 0,
    memory_bytes: int | None = None,
) -> FitResult:
    """Return a head trained on the train split of `cache`, chosen on val, with test only reported.

    A linear head minimises (1/Σwᵢ) Σ wᵢ·loss(yᵢ, W·zᵢ + b) + l1·‖W‖₁ + (l2/2)·‖W‖²_F + group_l1·Σ_j ‖W_:,j‖₂, where z
    are the features standardised by the train rows and b is not penalised; scikit-learn's C is 1/(n·l2) (for two
    classes, of which it fits the difference, 2/(n·l2)). The loss is softmax cross-entropy, for a multi-label set the
    sum of sigmoid cross-entropies, for regression half the squared error.

    Data. `cache`: an open cache or its path. `dataset`: needed where the cache holds several. `outputs`: stored outputs
    laid side by side (default: the first); `block_scales` multiplies each one's standardised features (larger: less
    penalised), ``"auto"`` by (widest / width)^¼, half way between all features and all outputs counting alike. `views`:
    the stored views that become training rows; val and test see the plain view only. `drop_duplicates`: leave out
    training images that also stand in val or test or under another label. `class_weight`: ``balanced`` weighs rows by
    n / (n_classes · n_of_the_class).

    Penalties. Each of `l1`, `l2`, `group_l1` is a number ≥ 0 or ``"auto"``: a warm-started path, the value with the
    best val score (accuracy; mean average precision for multi-label; R² for regression) being taken, or, without a val
    split, the best mean over `folds` stratified folds of the train images. None given: l2 is chosen. Any given: the
    others are 0. `standard_error_rule`: the strongest penalty within one standard error of the best.
    `keep_features` below 1: group L1 chooses at most this share of the features (those of the weakest penalty of its
    path that uses no more), then l2 alone weighs them: the objective is that of l2 over heads that are zero elsewhere,
    and ``details["kept"]`` names the features and the ``group_l1`` that chose them.

    Targets. `label_smoothing` in [0, 1); `mixup`: the Beta parameter of feature-space mixup, `mixup_copies` mixes per
    row. `teacher`: another cache of the same images, joined by digest; `teacher_head`: the head trained on it, its
    path, or the ``train_head`` settings with which to train it. Without one the teacher's stored ``logits`` serve where
    they fit the classes, else a linear head is trained on the teacher first. The loss is then
    (1 − alpha)·CE(y, p) + alpha·T²·KL(teacher_T ‖ student_T) with T = `temperature` (Hinton et al. 2015); unlabelled
    images of the train split, or all of data set `unlabelled`, take part through the second term.

    Kinds. ``linear``; ``prototype`` (`metric` ``cosine`` or ``euclidean``, `sharpness`); ``knn`` (`neighbors`,
    `sharpness`); ``mlp`` (`hidden` widths, `dropout`, `learning_rate`, `weight_decay`, at most `epochs`). None: chosen
    on val.

    After the fit. `calibrate`: divide the val temperature into the logits. `unknown`: ``max_probability``,
    ``max_logit``, ``energy``, ``margin`` or ``auto``: attach a rule that accepts the share `unknown_accept` of val.

    `seed` draws folds, mixes and the MLP; the same seed gives the same bits on one machine.

    `memory_bytes`: where the features, and the standardised copies that are fitted on, would take more, the rows are
    streamed from the cache block by block at every pass: the same head to the gap of the fit, later. Default: half of
    the machine's memory. Only linear heads without mixup can be streamed. L1 and group L1 keep in memory the columns
    that are in use.

    Raises `InputError` for one class, a class without a training image, non-finite features, negative penalties, a
    teacher with other classes or images, and settings that do not go together.
    """
    began = time.perf_counter()
    if memory_bytes is not None and not memory_bytes > 0:
        raise InputError(f"memory_bytes must be above 0, got {memory_bytes!r}")
    settings = TrainSettings(
        dataset=dataset,
        kind=kind,
        l1=l1,
        l2=l2,
        group_l1=group_l1,
        keep_features=keep_features,
        outputs=None if outputs is None else (outputs,) if isinstance(outputs, str) else tuple(outputs),
        block_scales=block_scales if block_scales is None or isinstance(block_scales, str) else tuple(block_scales),
        views=(views,) if isinstance(views, int) else tuple(views),
        class_weight=class_weight,
        drop_duplicates=drop_duplicates,
        label_smoothing=label_smoothing,
        mixup=mixup,
        mixup_copies=mixup_copies,
        standard_error_rule=standard_error_rule,
        folds=folds,
        calibrate=calibrate,
        unknown=unknown,
        unknown_accept=unknown_accept,
        teacher=None if teacher is None else _path_of(teacher),
        teacher_head=_reference_to(teacher_head),
        alpha=alpha,
        temperature=temperature,
        unlabelled=unlabelled,
        metric=metric,
        neighbors=neighbors,
        sharpness=sharpness,
        hidden=tuple(hidden),
        dropout=dropout,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        epochs=epochs,
        seed=seed,
    )
    with ExitStack() as stack:
        opened = _open(cache, stack)
        data = load_training_data(
            opened,
            dataset=dataset,
            outputs=settings.outputs,
            views=settings.views,
            drop_duplicates=drop_duplicates,
            with_unlabelled=teacher is not None,
            unlabelled=unlabelled,
            memory_bytes=_half_of_memory() if memory_bytes is None else memory_bytes,
            folds=0 if settings.auto is None else settings.folds,
        )
        if teacher is None:
            return _train(opened, data, settings, None, {}, began)
        opinion, details = _ask_teacher(_open(teacher, stack), teacher_head, data, settings)
        return _train(opened, data, settings, opinion, details, began)


def _train(
    cache: FeatureCache,
    data: TrainingData,
    settings: TrainSettings,
    teacher: Teacher | None,
    teacher_details: dict[str, Any],
    began: float,
) -> FitResult:
    if settings.calibrate:
        require_val(data, "a temperature")
    if settings.unknown is not None:
        require_val(data, "an unknown rule")
    fitted = _fit(data, settings, teacher)
    rule = settings.standard_error_rule and settings.auto not in fitted.chosen  # used up where a value was chosen
    resolved = dataclasses.replace(settings, standard_error_rule=rule, **fitted.chosen)
    refit_settings = resolved.to_json()
    head = dataclasses.replace(
        fitted.head, columns=data.columns, fingerprint=cache.fingerprint, settings=refit_settings
    )
    if settings.calibrate and data.val is not None:
        head = calibrate_head(head, data.val)
    if settings.unknown is not None:
        plain = dataclasses.replace(resolved, calibrate=False, unknown=None)
        head = add_unknown_rule(head, data, settings, lambda part: _fit(part, plain, None).head)
    scores = [_score(head, rows, data.task) for rows in (data.first_view(), data.val, data.test)]
    accuracies = [None if score is None else score.accuracy for score in scores]
    values = [None if score is None else score.value for score in scores]
    certificate = fitted.certificate
    assert values[0] is not None  # there is always a training row
    return FitResult(
        head=head,
        kind=settings.kind,
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
        selection=fitted.selection,
        path=fitted.path,
        details={**fitted.details, **teacher_details},
        settings=refit_settings,
        seed=settings.seed,
        fingerprint=cache.fingerprint,
        notes=(*data.notes, *fitted.notes),
        wall_seconds=time.perf_counter() - began,
    )


def _fit(data: TrainingData, settings: TrainSettings, teacher: Teacher | None) -> Fitted:
    if settings.kind == "linear":
        from featcache.train.linear import fit_linear

        return fit_linear(data, settings, teacher)
    from featcache.train import other_kinds

    if settings.kind == "mlp":
        return other_kinds.fit_perceptron(data, settings, teacher)
    return (
        other_kinds.fit_prototype(data, settings)
        if settings.kind == "prototype"
        else other_kinds.fit_neighbors(data, settings)
    )


def _score(head: Head, rows: Rows | None, task: str) -> Score | None:
    return None if rows is None else score_rows(head.predict_logits, rows.features, rows.targets, task=task)


def _ask_teacher(
    teacher: FeatureCache, given: Any, data: TrainingData, settings: TrainSettings
) -> tuple[Teacher, dict[str, Any]]:
    """Return the teacher's probabilities, and what is told about the teacher."""
    if data.task != "classification":
        raise InputError(f"a teacher needs task 'classification', got {data.task!r}")
    details: dict[str, Any] = {"teacher": {"fingerprint": teacher.fingerprint, "model": teacher.recipe.model}}
    head: Head | None
    if isinstance(given, Head):
        head, source = given, "given"
    elif isinstance(given, str | os.PathLike):
        head, source = load_head(given), "given"
    elif given is None and has_matching_logits(teacher, len(data.classes)):
        head, source = None, "logits"
    else:
        own = {"dataset": data.dataset} if data.dataset in teacher.datasets else {}
        trained = train_head(teacher, **{**own, **(given or {})})
        head, source = trained.head, "trained"
        details["teacher"] |= {"val_accuracy": trained.val_accuracy, "test_accuracy": trained.test_accuracy}
    details["teacher"]["head"] = source
    train, free = teacher_probabilities(teacher, head=head, data=data, temperature=settings.temperature)
    return Teacher(train, free), details


def _open(cache: FeatureCache | str | os.PathLike[str], stack: ExitStack) -> FeatureCache:
    if not isinstance(cache, str | os.PathLike):
        return cache
    from featcache.cache import open_cache

    return stack.enter_context(open_cache(os.fspath(cache)))


def _half_of_memory() -> int | None:
    total = memory_bytes_of_machine()
    return None if total is None else total // 2


def _path_of(cache: FeatureCache | str | os.PathLike[str]) -> str:
    return os.path.abspath(cache if isinstance(cache, str | os.PathLike) else cache.path)


def _reference_to(head: Any) -> str | dict[str, Any] | None:
    """Return what a later fit can find the teacher's head by: a path, or the settings it was trained with."""
    if head is None:
        return None
    if isinstance(head, str | os.PathLike):
        return os.path.abspath(head)
    return dict(head.settings if isinstance(head, Head) else head)
