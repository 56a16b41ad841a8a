"""Rows, targets and weights as a solver takes them: class weights, label smoothing, feature-space mixup."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.errors import InputError
from featcache.heads.base import Floats
from featcache.heads.solvers.problem import LossName
from featcache.train.blocks import Features, in_memory, join_rows
from featcache.train.data import TrainingData
from featcache.train.options import SupervisedOptions
from featcache.train.teacher import SoftTargets

LOSSES: dict[str, LossName] = {"classification": "softmax", "multilabel": "sigmoid", "regression": "squared"}


@dataclass(frozen=True, slots=True)
class Supervision:
    """`features` (n, d) float32; `targets` (n,) int64 class indices (-1: unlabelled) or (n, k) float32.

    `weights`: None or (n,) float64. `teacher`: None or (n, k) float32. Unlabelled rows come last.
    """

    features: Features
    targets: npt.NDArray[Any]
    weights: npt.NDArray[np.float64] | None
    teacher: Floats | None

    def subset(self, kept: npt.NDArray[np.bool_]) -> Supervision:
        """Return the rows where `kept` (n,) is true."""
        return Supervision(
            self.features[kept],
            self.targets[kept],
            None if self.weights is None else self.weights[kept],
            None if self.teacher is None else self.teacher[kept],
        )


def supervise(data: TrainingData, options: SupervisedOptions, soft: SoftTargets | None) -> Supervision:
    """Return the training rows of `data` with everything `options` and a teacher say about their targets.

    Raises `InputError` for label smoothing of numbers, and for class weights where there are no classes.
    """
    train = data.train
    k = len(data.classes)
    weights = _class_weights(data, options)
    if soft is not None:
        return _with_teacher(data, soft, weights)
    targets: npt.NDArray[Any] = train.targets
    if options.label_smoothing > 0:
        if data.task == "regression":
            raise InputError("label_smoothing needs classes, got task 'regression': leave it out")
        targets = smooth(targets, n_classes=k, amount=options.label_smoothing, task=data.task)
    return Supervision(train.features, targets, weights, None)


def smooth(targets: npt.NDArray[Any], *, n_classes: int, amount: float, task: str) -> Floats:
    """Return targets (n, k) moved by `amount` towards the uniform ones (Szegedy et al. 2016); for sigmoids to 1/2."""
    hard = one_hot(targets, n_classes) if targets.ndim == 1 else targets
    rest = 1.0 / n_classes if task == "classification" else 0.5
    return np.asarray((1 - amount) * hard + amount * rest, dtype=np.float32)


def one_hot(labels: npt.NDArray[np.int64], n_classes: int) -> Floats:
    """Return (n, n_classes) float32, a row of zeros for label -1."""
    hard = np.zeros((len(labels), n_classes), dtype=np.float32)
    known = np.flatnonzero(labels >= 0)
    hard[known, labels[known]] = 1.0
    return hard


def mix(rows: Supervision, *, n_classes: int, amount: float, copies: int, seed: int) -> Supervision:
    """Return the rows and `copies` times as many convex mixes of pairs of them (Zhang et al., mixup, 2018).

    A mix is λ·(row, target) + (1 − λ)·(another row, its target), λ drawn from Beta(amount, amount). The mixes are drawn
    once, so the problem stays convex and its solution is the same every time.
    """
    generator = np.random.default_rng(seed)
    rows_to_mix = in_memory(rows.features, "mixup")
    n = len(rows_to_mix)
    targets = one_hot(rows.targets, n_classes) if rows.targets.ndim == 1 else rows.targets.astype(np.float32)
    features, soft, weights = [rows_to_mix], [targets], [_weights_of(rows)]
    for _ in range(copies):
        share = generator.beta(amount, amount, size=(n, 1)).astype(np.float32)
        other = generator.permutation(n)
        features.append(share * rows_to_mix + (1 - share) * rows_to_mix[other])
        soft.append(share * targets + (1 - share) * targets[other])
        weights.append(share[:, 0] * weights[0] + (1 - share[:, 0]) * weights[0][other])
    mixed = None if rows.weights is None else np.concatenate(weights)
    return Supervision(np.concatenate(features), np.concatenate(soft), mixed, None)


def _weights_of(rows: Supervision) -> npt.NDArray[np.float64]:
    return np.ones(len(rows.features)) if rows.weights is None else rows.weights


def _class_weights(data: TrainingData, options: SupervisedOptions) -> npt.NDArray[np.float64] | None:
    """Return n / (n_classes · n_of_the_row's_class) for each train row, or None."""
    if options.class_weight is None:
        return None
    if data.task != "classification":
        raise InputError(f"class_weight needs task 'classification', got {data.task!r}")
    labels = data.train.targets
    counts = np.bincount(labels, minlength=len(data.classes))
    return np.asarray((len(labels) / (len(data.classes) * counts))[labels])


def _with_teacher(data: TrainingData, soft: SoftTargets, weights: npt.NDArray[np.float64] | None) -> Supervision:
    train, free = data.train, data.unlabelled
    if free is None or soft.unlabelled is None:
        return Supervision(train.features, train.targets, weights, soft.train)
    if weights is not None:
        weights = np.concatenate([weights, np.ones(len(free))])
    return Supervision(
        join_rows(train.features, free.features),
        np.concatenate([train.targets, free.targets]),
        weights,
        np.concatenate([soft.train, soft.unlabelled]),
    )
