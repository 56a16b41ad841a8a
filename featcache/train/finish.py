"""What is chosen on held-out images after the head itself: the temperature and the "none of these" rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from featcache.errors import InputError
from featcache.heads.base import Head, softmax
from featcache.heads.calibration import Calibration, expected_calibration_error, fit_temperature
from featcache.heads.unknown import SCORES, area_under_roc, fit_unknown_rule, known_score
from featcache.train.blocks import map_rows
from featcache.train.data import Rows, TrainingData
from featcache.train.options import TrainOptions

MOST_HELD_OUT_CLASSES = 5


def calibrate_head(head: Head, val: Rows) -> Head:
    """Return `head` with the temperature of `val` divided into its logits; no decision changes."""
    logits = map_rows(head.predict_logits, val.features)
    temperature = fit_temperature(logits, val.targets)
    calibration = Calibration(
        temperature=temperature,
        ece_before=expected_calibration_error(softmax(logits), val.targets),
        ece_after=expected_calibration_error(softmax(logits / np.float32(temperature)), val.targets),
        n=len(val),
    )
    return dataclasses.replace(head.with_temperature(temperature), calibration=calibration)


def add_unknown_rule(
    head: Head, data: TrainingData, options: TrainOptions, refit: Callable[[TrainingData], Head]
) -> Head:
    """Return `head` with a rule for images of no known class.

    Up to five classes in turn are left out of the training (by `refit`); how well a score then tells their val images
    from the others' is its AUROC. ``auto`` takes the score with the best mean. The threshold keeps the share
    ``unknown_accept`` of the val images of the full head. With two classes nothing can be left out: AUROC is None.
    """
    val = require_val(data, "an unknown rule")
    scores = SCORES if options.unknown == "auto" else (str(options.unknown),)
    held_out = _held_out_classes(data)
    areas: dict[str, list[float]] = {score: [] for score in scores}
    for label in held_out:
        partial = refit(without_class(data, label))
        logits = map_rows(partial.predict_logits, val.features)
        known = val.targets != label
        for score in scores:
            values = known_score(logits, score=score)
            areas[score].append(area_under_roc(values[known], values[~known]))
    best = max(scores, key=lambda score: float(np.mean(areas[score] or [0.0])))
    rule = fit_unknown_rule(
        map_rows(head.predict_logits, val.features),
        score=best,
        accept=options.unknown_accept,
        auroc=float(np.mean(areas[best])) if areas[best] else None,
        held_out=tuple(data.classes[label] for label in held_out),
    )
    return dataclasses.replace(head, unknown=rule)


def require_val(data: TrainingData, what: str) -> Rows:
    """Return the val rows of a classification set, or raise `InputError` saying that `what` needs them."""
    if data.task != "classification":
        raise InputError(f"{what} needs task 'classification', got {data.task!r}")
    if data.val is None:
        raise InputError(f"{what} must be fitted on held-out images, data set {data.dataset!r} has no val split")
    return data.val


def without_class(data: TrainingData, label: int) -> TrainingData:
    """Return `data` as if class `label` had never been seen: no train row, no val row, the classes after it renumbered.

    The test and unlabelled rows are left out: the fit does not look at them.
    """

    def strip(rows: Rows) -> Rows:
        kept = rows.targets != label
        targets = rows.targets[kept]
        return Rows(rows.features[kept], targets - (targets > label), rows.indices[kept])

    val = None if data.val is None else strip(data.val)
    return dataclasses.replace(
        data,
        classes=data.classes[:label] + data.classes[label + 1 :],
        train=strip(data.train),
        val=val if val is not None and len(val) else None,
        test=None,
        unlabelled=None,
        unlabelled_samples=None,
    )


def _held_out_classes(data: TrainingData) -> list[int]:
    """Return up to five classes, evenly spaced, that have val images while others have some too."""
    if len(data.classes) < 3 or data.val is None:
        return []
    present = np.unique(data.val.targets)
    if len(present) < 2:
        return []
    at = np.linspace(0, len(present) - 1, min(MOST_HELD_OUT_CLASSES, len(present))).round().astype(np.int64)
    return [int(label) for label in present[at]]
