"""When to answer "none of these": a score made of the logits alone, and a threshold from held-out images.

The score needs nothing but the logits, so it ships with any exported form of the model.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.errors import InputError

SCORES = ("max_probability", "max_logit", "energy", "margin")


@dataclass(frozen=True, slots=True)
class UnknownRule:
    """An image is called unknown where its score is below `threshold`.

    `score`: ``max_probability`` (Hendrycks & Gimpel 2017), ``max_logit`` (Hendrycks et al. 2022), ``energy``, the log
    of Σ exp of the logits (Liu et al. 2020), or ``margin``, between the two largest logits. `accepted`: share of the
    `n` known held-out images at or above the threshold. `auroc`: how well the score told the images of a class left out
    of the training from those of the known ones, mean over the classes in `held_out`; None where it was not measured.
    """

    score: str
    threshold: float
    accepted: float
    n: int
    auroc: float | None = None
    held_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise InputError(f"score must be one of {SCORES!r}, got {self.score!r:.60}")
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, (int, float)):
            raise InputError(f"threshold must be a number, got {self.threshold!r:.60}")

    def is_unknown(self, logits: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Return (n,) whether each row of logits (n, n_classes) is of no known class."""
        return np.asarray(known_score(logits, score=self.score) < self.threshold)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**dataclasses.asdict(self), "held_out": list(self.held_out)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> UnknownRule:
        """Return the rule that `to_json` wrote."""
        return cls(**{**values, "held_out": tuple(values["held_out"])})


def known_score(logits: npt.NDArray[Any], *, score: str) -> npt.NDArray[np.float64]:
    """Return (n,) float64, larger for images that look more like a known class.

    Raises `InputError` for an unknown score.
    """
    values = np.asarray(logits, dtype=np.float64)
    top = values.max(axis=1)
    if score == "max_logit":
        return np.asarray(top)
    if score == "margin":
        first_two = np.partition(values, -2, axis=1)[:, -2:]
        return np.asarray(first_two[:, 1] - first_two[:, 0])
    log_sum = np.log(np.exp(values - top[:, None]).sum(axis=1))
    if score == "energy":
        return np.asarray(top + log_sum)
    if score == "max_probability":
        return np.asarray(np.exp(-log_sum))
    raise InputError(f"score must be one of {SCORES!r}, got {score!r}")


def area_under_roc(known: npt.NDArray[Any], unknown: npt.NDArray[Any]) -> float:
    """Return the probability that a known image scores above an unknown one, ties half (Mann and Whitney 1947).

    Raises `InputError` where one of the two is empty.
    """
    if len(known) == 0 or len(unknown) == 0:
        raise InputError(f"both kinds of images must be there, got {len(known)} known and {len(unknown)} unknown")
    ordered = np.sort(unknown)
    below = np.searchsorted(ordered, known, side="left") + np.searchsorted(ordered, known, side="right")
    return float(below.mean() / (2 * len(unknown)))


def fit_unknown_rule(
    logits: npt.NDArray[Any], *, score: str, accept: float, auroc: float | None = None, held_out: tuple[str, ...] = ()
) -> UnknownRule:
    """Return the rule that accepts the share `accept` (0 < accept ≤ 1) of held-out known images' logits (n, k).

    Raises `InputError` for another share, or no images.
    """
    if not 0 < accept <= 1:
        raise InputError(f"accept must be above 0 and at most 1, got {accept!r}")
    if len(logits) == 0:
        raise InputError("a threshold must be fitted on held-out images, got none: give the data set a val split")
    scores = np.sort(known_score(logits, score=score))
    rejected = int(np.floor((1 - accept) * len(scores)))
    threshold = float(scores[rejected])
    return UnknownRule(score, threshold, float((scores >= threshold).mean()), len(scores), auroc, held_out)
