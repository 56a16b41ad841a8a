"""What follows the fit: the temperature and the rule for images of no known class."""

from __future__ import annotations

import numpy as np
import pytest
from memory_cache import blobs
from train_caches import refuse

from featcache.train.fit import train_head
from featcache.train.options import (
    LinearOptions,
    TrainOptions,
)


def test_calibration_makes_probabilities_more_honest_and_changes_no_decision():
    cache = blobs(n=1200, spread=3.0)
    plain, calibrated = (
        train_head(cache, head=LinearOptions(l2=1e-6)),
        train_head(cache, head=LinearOptions(l2=1e-6), options=TrainOptions(calibrate=True)),
    )
    figures = calibrated.head.calibration
    assert figures.temperature > 1
    assert figures.ece_after < figures.ece_before
    x = cache.gather(np.arange(100))
    assert np.array_equal(plain.head.predict(x), calibrated.head.predict(x))
    assert np.allclose(plain.head.predict_logits(x) / figures.temperature, calibrated.head.predict_logits(x), atol=1e-3)


def test_the_unknown_rule_is_measured_on_classes_left_out():
    result = train_head(
        blobs(n=600, k=6, d=24, spread=0.8),
        head=LinearOptions(l2=0.03),
        options=TrainOptions(unknown="auto", unknown_accept=0.9),
    )
    rule = result.head.unknown
    assert len(rule.held_out) == 5
    assert rule.auroc > 0.8
    assert rule.accepted == pytest.approx(0.9, abs=0.02)


def test_unknown_with_two_classes_has_a_threshold_and_no_area():
    rule = train_head(
        blobs(k=2), head=LinearOptions(l2=0.03), options=TrainOptions(unknown="max_probability")
    ).head.unknown
    assert rule.auroc is None
    assert rule.held_out == ()


def test_calibration_needs_a_val_split():
    refuse(blobs(val=False), "no val split", head=LinearOptions(l2=1.0), options=TrainOptions(calibrate=True))
    refuse(blobs(val=False), "no val split", head=LinearOptions(l2=1.0), options=TrainOptions(unknown="auto"))
