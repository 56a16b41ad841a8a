"""How good logits are: the figure a setting is chosen by, its standard error, the loss for ties; a test of two."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.heads.base import Floats
from featcache.heads.solvers.partitioned import PartitionedFeatures
from featcache.heads.solvers.parts import Chosen, Columns, Part, Table
from featcache.train.blocks import Features, blocks_of, map_rows

SCORE_NAMES = {"classification": "accuracy", "multilabel": "mean_average_precision", "regression": "r2"}


@dataclass(frozen=True, slots=True)
class Score:
    """`value`: larger is better (accuracy, mean average precision or R²). `standard_error` of it over the rows.

    `accuracy`: share of right answers (for multi-label of right yes/no decisions; None for regression). `loss`: mean
    negative log likelihood, or mean squared error. `n`: rows.
    """

    value: float
    standard_error: float
    accuracy: float | None
    loss: float
    n: int


def score_rows(
    predict: Callable[[Floats], Floats], features: Features, targets: npt.NDArray[Any], *, task: str
) -> Score:
    """Return the score of what `predict` makes of features (n, d) → logits (n, k); class scores block by block."""
    if task != "classification":  # mean average precision and R² need all rows at once, of few outputs as a rule
        return score_logits(map_rows(predict, features), targets, task=task)
    if isinstance(features, PartitionedFeatures):
        own_targets = [targets[rows] for rows in features.slices()]
        parts = [score for scores in features.ask(_score_part, predict, each=own_targets) for score in scores]
    else:
        parts = [
            score_logits(predict(block), targets[start : start + len(block)], task=task)
            for start, block in blocks_of(features)
        ]
    if len(parts) == 1:
        return parts[0]
    n = len(features)
    right = sum(round(part.value * part.n) for part in parts)
    return _accuracy_score(right / n, sum(part.loss * part.n for part in parts) / n, n)


def _score_part(
    part: Part,
    table: Table,
    chosen: Chosen,
    columns: Columns,
    targets: npt.NDArray[Any],
    predict: Callable[[Floats], Floats],
) -> list[Score]:
    return [
        score_logits(predict(block), targets[start : start + len(block)], task="classification")
        for start, block in part.raw_blocks(table, chosen, columns)
        if len(block)
    ]


def score_logits(logits: npt.NDArray[Any], targets: npt.NDArray[Any], *, task: str) -> Score:
    """Return the score of logits (n, k) against class indices (n,) or targets (n, k)."""
    n = len(logits)
    if task == "regression":
        squared = ((logits.astype(np.float64) - targets) ** 2).mean(axis=1)
        loss = float(squared.mean())
        spread = float(((targets - targets.mean(axis=0, dtype=np.float64)) ** 2).mean())
        if spread == 0.0:  # one row, or equal targets: R² is 0/0 or -∞; as in scikit-learn, 1 where all are met, else 0
            return Score(1.0 if loss == 0.0 else 0.0, 0.0, None, loss, n)
        return Score(1.0 - loss / spread, float(squared.std() / np.sqrt(n)) / spread, None, loss, n)
    wide = logits.astype(np.float64)
    if task == "multilabel":
        right = float(((wide > 0) == (targets > 0.5)).mean())
        loss = float((np.logaddexp(0.0, wide) - targets * wide).sum(axis=1).mean())
        precisions = average_precisions(wide, targets)
        mean = float(np.nanmean(precisions)) if np.isfinite(precisions).any() else right
        return Score(mean, float(np.sqrt(max(mean * (1 - mean), 0.0) / n)), right, loss, n)
    wide = wide - wide.max(axis=1, keepdims=True)
    losses = np.log(np.exp(wide).sum(axis=1)) - wide[np.arange(n), targets]
    accuracy = float((logits.argmax(axis=1) == targets).mean())
    return _accuracy_score(accuracy, float(losses.mean()), n)


def _accuracy_score(accuracy: float, loss: float, n: int) -> Score:
    return Score(accuracy, float(np.sqrt(max(accuracy * (1 - accuracy), 0.0) / n)), accuracy, loss, n)


def average_precisions(logits: npt.NDArray[Any], targets: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return each class's average precision (k,): the mean precision at its positives; NaN for a class without one."""
    order = np.argsort(-logits, axis=0, kind="stable")
    positive = np.take_along_axis(np.asarray(targets > 0.5), order, axis=0)
    hits = positive.cumsum(axis=0)
    precision = hits / np.arange(1, len(logits) + 1)[:, None]
    counts = positive.sum(axis=0)
    total = (precision * positive).sum(axis=0)
    return np.asarray(np.divide(total, counts, out=np.full(counts.shape, np.nan), where=counts > 0))


def sign_test(gained: int, lost: int) -> float:
    """Return how probable flips at least this uneven are where both ways are equally likely (exact, two-sided).

    Of right and wrong answers before and after a step this is McNemar's exact test.

    >>> sign_test(3, 3), round(sign_test(2, 12), 4)
    (1.0, 0.0129)
    """
    n, fewer = gained + lost, min(gained, lost)
    tail: int = sum(math.comb(n, k) for k in range(fewer + 1))
    return min(1.0, tail / 2 ** (n - 1)) if n else 1.0
