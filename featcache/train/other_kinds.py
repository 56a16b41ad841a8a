"""Fit the heads that are not solved exactly: prototype, k nearest neighbours, multi-layer perceptron."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.errors import InputError
from featcache.heads.base import Floats
from featcache.heads.calibration import fit_temperature
from featcache.heads.knn import NeighborsHead, unit_rows
from featcache.heads.prototype import METRICS, PrototypeHead, fit_prototypes
from featcache.train.blocks import in_memory
from featcache.train.data import TrainingData
from featcache.train.folds import stratified_folds
from featcache.train.head_fit import HeadFit
from featcache.train.options import KnnOptions, MlpOptions, PrototypeOptions, TrainOptions
from featcache.train.score import Score, score_logits
from featcache.train.targets import one_hot, supervise
from featcache.train.teacher import SoftTargets

NEIGHBORS = (1, 3, 5, 10, 20, 50, 100, 200)
SHARPNESSES = (5.0, 10.0, 14.0, 20.0, 40.0)
DEFAULT_SHARPNESS = 10.0

Mask = npt.NDArray[np.bool_]


def fit_prototype(data: TrainingData, head: PrototypeOptions, options: TrainOptions) -> HeadFit:
    """Return the prototype head; its metric is chosen on held-out rows where the options name none.

    The sharpness is the one under which held-out probabilities are likeliest; it never changes a decision.
    """
    _only_classification("prototype", data)
    metrics = METRICS if head.metric is None else (head.metric,)
    kept, features, labels, selection = _held_out(data, head.kind, options)
    heads = [_prototype_head(data, metric, 1.0, kept) for metric in metrics]
    scores = [score_logits(one.predict_logits(features), labels, task=data.task) for one in heads]
    best = _best(scores)
    sharpness = head.sharpness
    if sharpness is None:
        sharpness = 1.0 / fit_temperature(heads[best].predict_logits(features), labels)
    return HeadFit(
        head=_prototype_head(data, metrics[best], sharpness, None),
        chosen={"metric": metrics[best], "sharpness": sharpness},
        selection=selection,
        details={"metric": metrics[best], "sharpness": sharpness},
    )


def _prototype_head(data: TrainingData, metric: str, sharpness: float, kept: Mask | None) -> PrototypeHead:
    features, labels = in_memory(data.train.features, "kind 'prototype'"), data.train.targets
    if kept is not None:
        features, labels = features[kept], labels[kept]
    arrays = fit_prototypes(features, labels, n_classes=len(data.classes), metric=metric)
    return PrototypeHead(classes=data.classes, task=data.task, sharpness=sharpness, **arrays)


def fit_neighbors(data: TrainingData, head: KnnOptions, options: TrainOptions) -> HeadFit:
    """Return the k-nearest-neighbours head; k and the sharpness of the votes are chosen on held-out rows."""
    _only_classification("knn", data)
    if head.neighbors is not None and head.sharpness is not None:
        return HeadFit(head=_neighbors_head(data, head.neighbors, head.sharpness, None))
    kept, features, labels, selection = _held_out(data, head.kind, options)
    most = len(data.train) if kept is None else int(kept.sum())
    counts = [k for k in NEIGHBORS if k <= most] if head.neighbors is None else [head.neighbors]
    sharpnesses = SHARPNESSES if head.sharpness is None else (head.sharpness,)
    tried = [(k, sharpness) for k in counts for sharpness in sharpnesses]
    base = _neighbors_head(data, counts[0], sharpnesses[0], kept)
    scores = []
    for k, sharpness in tried:
        candidate = dataclasses.replace(base, n_neighbors=k, sharpness=sharpness)
        scores.append(score_logits(candidate.predict_logits(features), labels, task=data.task))
    k, sharpness = tried[_best(scores)]
    chosen = {"neighbors": k, "sharpness": sharpness}
    return HeadFit(
        head=_neighbors_head(data, k, sharpness, None), chosen=chosen, selection=selection, details=dict(chosen)
    )


def _neighbors_head(data: TrainingData, neighbors: int, sharpness: float, kept: Mask | None) -> NeighborsHead:
    features, labels = in_memory(data.train.features, "kind 'knn'"), data.train.targets
    if kept is not None:
        features, labels = features[kept], labels[kept]
    center = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    return NeighborsHead(
        classes=data.classes,
        task=data.task,
        rows=unit_rows(features, center).astype(np.float16),
        labels=labels.astype(np.int64),
        center=center,
        n_neighbors=neighbors,
        sharpness=sharpness,
    )


def fit_perceptron(data: TrainingData, head: MlpOptions, options: TrainOptions, soft: SoftTargets | None) -> HeadFit:
    """Return the MLP head of the epoch that did best on val.

    Without a val split the number of epochs is found on held-out training rows, and the head is then trained on all of
    them for as many.
    """
    from featcache.heads.mlp import MlpHead
    from featcache.heads.mlp_fit import MlpTargets, MlpTraining, fit_mlp

    rows = supervise(data, head, soft)
    k = len(data.classes)
    targets = one_hot(rows.targets, k) if rows.targets.ndim == 1 else rows.targets.astype(np.float32)
    weights = np.ones(len(targets)) if rows.weights is None else rows.weights
    training = MlpTraining(
        hidden=tuple(head.hidden),
        dropout=head.dropout,
        learning_rate=head.learning_rate,
        weight_decay=head.weight_decay,
        epochs=head.epochs,
        mixup=head.mixup,
        seed=options.seed,
    )

    features_of_train = in_memory(rows.features, "kind 'mlp'")

    def train(kept: Mask, evaluate: Any, epochs: int | None) -> tuple[MlpHead, int]:
        supervision = MlpTargets(
            targets=targets[kept],
            weights=weights[kept].astype(np.float32),
            teacher=None if rows.teacher is None else rows.teacher[kept],
            alpha=0.0 if soft is None else soft.alpha,
            temperature=1.0 if soft is None else soft.temperature,
        )
        layers, epoch = fit_mlp(
            features_of_train[kept], supervision, task=data.task, training=training, evaluate=evaluate, epochs=epochs
        )
        return MlpHead(classes=data.classes, task=data.task, weights=layers[0], biases=layers[1]), epoch

    kept, features, held_out_targets, selection = _held_out(data, head.kind, options)

    def evaluate(predict: Callable[[npt.NDArray[Any]], Floats]) -> tuple[float, float]:
        score = score_logits(predict(features), held_out_targets, task=data.task)
        return score.value, score.loss

    everything = np.ones(len(targets), dtype=bool)
    labelled = everything.copy()
    if kept is not None:
        labelled[: len(kept)] = kept
    perceptron, epoch = train(labelled, evaluate, None)
    if kept is not None:
        perceptron, epoch = train(everything, None, epoch)
    return HeadFit(head=perceptron, selection=selection, details={"epochs_trained": epoch})


def _held_out(
    data: TrainingData, kind: str, options: TrainOptions
) -> tuple[Mask | None, Floats, npt.NDArray[Any], str]:
    """Return (kept, features, targets, by): the held-out rows to choose on, and which train rows may be fitted on.

    They are val's, with kept None; without a val split one stratified fold of the images, in their first view.
    """
    if data.val is not None:
        return None, in_memory(data.val.features, f"kind {kind!r}"), data.val.targets, "val"
    train = data.train
    fold = stratified_folds(
        train.indices, train.targets, task=data.task, classes=data.classes, folds=options.folds, seed=options.seed
    )
    held_out = data.first_view().subset(fold[: data.n_images] == 0)
    features = in_memory(held_out.features, f"kind {kind!r}")
    return fold != 0, features, held_out.targets, f"1 of {options.folds} folds"


def _best(scores: list[Score]) -> int:
    return max(range(len(scores)), key=lambda i: (scores[i].value, -scores[i].loss, -i))


def _only_classification(kind: str, data: TrainingData) -> None:
    if data.task != "classification":
        raise InputError(f"kind {kind!r} needs task 'classification', got {data.task!r}: use 'linear' or 'mlp'")
