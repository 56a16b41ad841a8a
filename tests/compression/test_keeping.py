from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from featcache.compression.keeping import reason_to_drop
from featcache.heads import LinearHead
from featcache.train.score import sign_test

Rows = tuple[np.ndarray, np.ndarray]  # features and targets


def head_of(weight: np.ndarray, *, task: str = "classification") -> LinearHead:
    classes = tuple("abcdefgh"[: len(weight)])
    return LinearHead(
        classes=classes, weight=weight.astype(np.float32), bias=np.zeros(len(weight), np.float32), task=task
    )


def reader(right: int, wrong: int) -> tuple[LinearHead, LinearHead, Rows]:
    """Two heads that read one of two features of images of class 0: right on all of them, and on `right`."""
    features = np.ones((right + wrong, 2), np.float32)
    features[right:, 1] = -1
    weight = np.array([[1.0, 0.0], [-1.0, 0.0]])
    return (
        head_of(weight),
        head_of(weight[:, ::-1]),
        (features, np.zeros(right + wrong, np.int64)),
    )


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (3, 3), (2, 12), (0, 5), (44, 59), (133, 150), (400, 500)])
def test_the_sign_test_is_the_exact_binomial_one(gained: int, lost: int) -> None:
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert sign_test(gained, lost) == pytest.approx(expected, rel=1e-9)
    assert sign_test(gained, lost) == sign_test(lost, gained)


def test_a_head_that_loses_many_images_is_dropped() -> None:
    old, new, rows = reader(right=90, wrong=10)
    reason = reason_to_drop(old, new, *rows)
    assert reason is not None
    assert reason == (
        "val says that it is worse, beyond chance: accuracy 1 before, 0.9 after, 0 images won and 10 lost of 100 "
        "(p = 0.002)"
    )


def test_a_head_that_is_as_good_or_better_stays() -> None:
    old, new, rows = reader(right=90, wrong=10)
    assert reason_to_drop(new, old, *rows) is None
    assert reason_to_drop(old, old, *rows) is None


def test_within_chance_the_loss_of_every_image_decides() -> None:
    """Three images of 100 could be chance. A larger loss says that they are not all, a smaller one that they are."""
    old, new, rows = reader(right=97, wrong=3)
    reason = reason_to_drop(old, new, *rows)
    assert reason is not None and "its loss larger" in reason
    old = head_of(0.1 * old.arrays()["weight"])  # right, and hardly surer than by chance
    assert reason_to_drop(old, new, *rows) is None


def test_regression_counts_images_whose_error_grew() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(60, 3)).astype(np.float32)
    weight = generator.normal(size=(1, 3))
    rows = (features, (features @ weight.T).astype(np.float32))
    good, bad = head_of(weight, task="regression"), head_of(weight + 0.5, task="regression")
    reason = reason_to_drop(good, bad, *rows)
    assert reason is not None and reason.startswith("val says that it is worse, beyond chance: r2 1 before")
    assert reason_to_drop(bad, good, *rows) is None
