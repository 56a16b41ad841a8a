"""Temperature scaling (Guo et al., "On Calibration of Modern Neural Networks", 2017).

One number T > 0 divides all logits so that the probabilities of held-out images are honest; no decision changes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.errors import InputError

BINS = 15


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fitted temperature and what it changed on the images it was fitted on.

    `temperature`: what the logits were divided by. `ece_before`, `ece_after`: expected calibration error in [0, 1] of
    `n` images, 15 equal-width bins of the top probability.
    """

    temperature: float
    ece_before: float
    ece_after: float
    n: int

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)


def expected_calibration_error(
    probabilities: npt.NDArray[Any], labels: npt.NDArray[np.int64], *, bins: int = BINS
) -> float:
    """Return Σ_b (n_b / n)·|accuracy_b − confidence_b| of probabilities (n, k) and labels (n,), in [0, 1]."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    bin_of_row = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gap = np.bincount(bin_of_row, weights=correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))


def negative_log_likelihood(logits: npt.NDArray[Any], labels: npt.NDArray[np.int64], temperature: float = 1.0) -> float:
    """Return the mean of −log softmax(logits / temperature)[label], computed in float64."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    picked = scaled[np.arange(len(labels)), labels]
    return float((np.log(np.exp(scaled).sum(axis=1)) - picked).mean())


def fit_temperature(logits: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> float:
    """Return the T in [1/100, 100] with the least negative log likelihood of held-out logits (n, k) and labels (n,).

    The likelihood is convex in 1/T, so golden-section search over log T, where it has one valley, finds it to 1e-4.
    Raises `InputError` without a labelled row.
    """
    if len(labels) == 0:
        raise InputError("a temperature must be fitted on held-out images, got none: give the data set a val split")
    ratio = (5**0.5 - 1) / 2
    low, high = np.log(0.01), np.log(100.0)
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = (negative_log_likelihood(logits, labels, float(np.exp(x))) for x in (left, right))
    while high - low > 1e-4:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = negative_log_likelihood(logits, labels, float(np.exp(left)))
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = negative_log_likelihood(logits, labels, float(np.exp(right)))
    return float(np.exp((low + high) / 2))
