"""How good logits are: the figure a setting is chosen by, its standard error, and the loss that breaks ties."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

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


def score_logits(logits: npt.NDArray[Any], targets: npt.NDArray[Any], *, task: str) -> Score:
    """Return the score of logits (n, k) against class indices (n,) or targets (n, k)."""
    n = len(logits)
    if task == "regression":
        squared = ((logits.astype(np.float64) - targets) ** 2).mean(axis=1)
        spread = ((targets - targets.mean(axis=0, dtype=np.float64)) ** 2).mean()
        unit = max(float(spread), np.finfo(np.float64).tiny)
        error = float(squared.std() / np.sqrt(n) / unit)
        return Score(1.0 - float(squared.mean()) / unit, error, None, float(squared.mean()), n)
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
    return Score(accuracy, float(np.sqrt(accuracy * (1 - accuracy) / n)), accuracy, float(losses.mean()), n)


def average_precisions(logits: npt.NDArray[Any], targets: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return each class's average precision (k,): the mean precision at its positives; NaN for a class without one."""
    order = np.argsort(-logits, axis=0, kind="stable")
    positive = np.take_along_axis(np.asarray(targets > 0.5), order, axis=0)
    hits = positive.cumsum(axis=0)
    precision = hits / np.arange(1, len(logits) + 1)[:, None]
    counts = positive.sum(axis=0)
    total = (precision * positive).sum(axis=0)
    return np.asarray(np.divide(total, counts, out=np.full(counts.shape, np.nan), where=counts > 0))
