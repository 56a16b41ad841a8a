"""The head of the moment: what it learns from, what it begins with, what it is worth, which labels it doubts."""

from __future__ import annotations

import time

import numpy as np
import pytest

from featcache.serve.studio.fitting import Fitted, fit, interval, likely_errors, out_of_fold
from featcache.serve.studio.likeness import Likeness, descending, duplicates
from featcache.serve.studio.penalty import choose_penalty
from featcache.serve.studio.progress import read_bar


def clusters(n: int, d: int = 64, k: int = 3, *, spread: float = 0.4, seed: int = 0):
    """Return features in k clusters, and which one each is of."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((k, d), dtype=np.float32)
    labels = rng.integers(0, k, n)
    return centres[labels] + np.float32(spread) * rng.standard_normal((n, d), dtype=np.float32), labels.astype(np.int32)


def test_fit_of_one_class_is_no_head() -> None:
    features, labels = clusters(50)
    everything = np.ones(50, bool)
    assert fit(features, np.where(labels == 0, 0, -1).astype(np.int32), train=everything, val=everything) is None


def test_fit_labels_of_val_and_test_change_nothing_that_is_trained() -> None:
    """Wrong labels in val: the weights are the same bits, and only the measured accuracy falls."""
    features, labels = clusters(200)
    train = np.arange(200) < 120
    one = fit(features, labels, train=train, val=~train)
    spoiled = np.where(train, labels, (labels + 1) % 3).astype(np.int32)
    other = fit(features, spoiled, train=train, val=~train)
    assert one is not None and other is not None
    assert (one.solution.weight == other.solution.weight).all()
    assert (one.correct, one.total, other.correct) == (80, 80, 0)


def test_fit_warm_start_ends_where_a_cold_one_does_and_sooner() -> None:
    features, labels = clusters(2000, 256, 5, spread=3.0)
    train, none = np.arange(2000) < 1500, np.zeros(2000, bool)
    before = fit(features, np.where(np.arange(2000) < 1499, labels, -1).astype(np.int32), train=train, val=none)
    warm = fit(features, labels, train=train, val=none, before=before)
    cold = fit(features, labels, train=train, val=none)
    assert warm is not None and cold is not None
    assert np.abs(warm.probabilities - cold.probabilities).max() < 0.02
    assert warm.solution.passes <= cold.solution.passes / 2


def test_fit_knows_a_class_that_came_after_the_last_head() -> None:
    features, labels = clusters(300)
    train, none = np.ones(300, bool), np.zeros(300, bool)
    before = fit(features, np.where(labels < 2, labels, -1).astype(np.int32), train=train, val=none)
    after = fit(features, labels, train=train, val=none, before=before)
    assert after is not None and after.classes.tolist() == [0, 1, 2]
    assert (after.predicted == labels).mean() > 0.98


def test_fit_again_after_one_more_label_is_within_the_bound() -> None:
    """One label more among 10,000 x 1280 x 10: a quarter of a second on one core; the bound is for a busy machine."""
    features, labels = clusters(10_000, 1280, 10, spread=4.0)
    train, none = np.ones(10_000, bool), np.zeros(10_000, bool)
    before = fit(features, np.where(np.arange(10_000) < 9_999, labels, -1).astype(np.int32), train=train, val=none)
    times = []
    for _ in range(3):
        began = time.process_time()
        fit(features, labels, train=train, val=none, before=before)
        times.append(time.process_time() - began)
    assert min(times) < 1.0


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(9, 10, 0.5958, 0.9821), (0, 5, 0.0, 0.4345), (5, 5, 0.5655, 1.0), (0, 0, 0, 1)],
)
def test_interval_is_wilsons(correct: int, total: int, low: float, high: float) -> None:
    """As R's prop.test(correct=FALSE) gives it."""
    assert interval(correct, total) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_likely_errors_finds_the_labels_that_were_changed() -> None:
    """Ten labels of 400 are wrong: nine or more of them are found, among at most two others."""
    features, right = clusters(400, spread=0.8)
    wrong = np.random.default_rng(1).choice(400, 10, replace=False)
    labels = right.copy()
    labels[wrong] = (labels[wrong] + 1) % 3
    train = np.ones(400, bool)
    fitted = fit(features, labels, train=train, val=~train)
    assert fitted is not None
    found = likely_errors(
        out_of_fold(features, labels, np.arange(len(labels)), train=train, fitted=fitted), labels, fitted.classes
    )
    assert len(set(found) & set(wrong)) >= 9
    assert len(set(found) - set(wrong)) <= 2


def test_out_of_fold_answers_do_not_come_from_the_images_own_label() -> None:
    """Random labels are learned by heart by a head that saw them; those that did not see them are at chance."""
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(100, 200)).astype(np.float32), rng.integers(0, 2, 100).astype(np.int32)
    train = np.ones(100, bool)
    fitted = fit(features, labels, train=train, val=~train)
    assert fitted is not None
    assert (fitted.predicted == labels).mean() == 1.0
    assert (
        out_of_fold(features, labels, np.arange(len(labels)), train=train, fitted=fitted).argmax(axis=1) == labels
    ).mean() < 0.7


def test_probability_of_a_label_unknown_to_the_head_is_zero_and_of_none_is_nan() -> None:
    features, labels = clusters(60)
    train = np.ones(60, bool)
    fitted = fit(features, np.where(labels < 2, labels, -1).astype(np.int32), train=train, val=~train)
    assert isinstance(fitted, Fitted)
    own = fitted.probability_of(np.where(labels == 2, 2, -1).astype(np.int32))
    assert (own[labels == 2] == 0).all() and np.isnan(own[labels != 2]).all()


def nearly_equal(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return three features: the small difference of two tells the class, the third half of it: no strong penalty."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, n).astype(np.int32)
    sign, common = 2.0 * labels - 1, rng.normal(scale=40, size=n)
    difference = sign + rng.normal(scale=0.4, size=n)
    features = np.stack([common + difference, common, 0.5 * sign + rng.normal(size=n)], axis=1)
    return features.astype(np.float32), labels


@pytest.mark.parametrize(("held_out", "by"), [(200, "val"), (10, "folds")])
def test_choose_penalty_answers_held_out_images_better_than_the_first_penalty(held_out: int, by: str) -> None:
    """By val where it is large enough, else by folds; on 1,000 other images the head gains two points or more."""
    features, labels = nearly_equal(1300)
    train = np.arange(1300) < 100
    val = (np.arange(1300) >= 100) & (np.arange(1300) < 100 + held_out)
    choice = choose_penalty(features, labels, np.arange(1300), train=train, val=val)
    assert choice is not None and (choice.by, choice.labels) == (by, 100)
    others = np.arange(1300) >= 300
    first, chosen = (fit(features, labels, train=train, val=others, l2=l2) for l2 in (0.01, choice.l2))
    assert first is not None and chosen is not None
    assert chosen.correct > first.correct + 20


def test_choose_penalty_without_two_classes_of_two_images_is_none() -> None:
    features, labels = clusters(4, k=3)
    everything = np.ones(4, bool)
    for labels in ([0, 0, 1, -1], [0, 1, 2, -1], [-1] * 4):
        given = np.array(labels, dtype=np.int32)
        assert choose_penalty(features, given, np.arange(4), train=everything, val=~everything) is None


def test_out_of_fold_equal_images_are_held_out_together() -> None:
    """Random labels of images that are there twice: were the other one trained on, it would tell the label."""
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(60, 200)).astype(np.float32), rng.integers(0, 2, 60).astype(np.int32)
    features, labels, groups = (np.concatenate([array, array]) for array in (features, labels, np.arange(60)))
    train = np.ones(120, bool)
    fitted = fit(features, labels, train=train, val=~train)
    assert fitted is not None
    assert (out_of_fold(features, labels, groups, train=train, fitted=fitted).argmax(axis=1) == labels).mean() < 0.7


def test_a_head_cut_short_is_gone_on_from_until_it_is_settled() -> None:
    """One label more among many is answered by few passes; going on ends where a head without a bound does."""
    features, labels = clusters(4000, k=5)
    train = np.arange(4000) % 5 > 0
    first = fit(features, labels, train=train, val=~train, l2=1e-5)
    assert first is not None and first.settled
    labels[1] = (labels[1] + 1) % 5
    short = fit(features, labels, train=train, val=~train, l2=1e-5, before=first, passes=1)
    assert short is not None and not short.settled
    end = fit(features, labels, train=train, val=~train, l2=1e-5, before=short)
    whole = fit(features, labels, train=train, val=~train, l2=1e-5)
    assert end is not None and whole is not None and end.settled
    assert end.solution.objective == pytest.approx(whole.solution.objective, rel=2e-3)


def test_similarity_is_the_cosine() -> None:
    features = np.array([[1, 0], [2, 0], [0, 3], [1, 1], [0, 0]], dtype=np.float32)
    assert Likeness(features).of(0) == pytest.approx([1, 1, 0, 2**-0.5, 0])


def test_descending_is_a_stable_argsort() -> None:
    rng = np.random.default_rng(0)
    values = rng.choice([*rng.normal(size=50), 0.0, -0.0, 1e-40, -1e-40, 1.0, -1.0], 5000).astype(np.float32)
    assert descending(values).tolist() == np.argsort(-values, kind="stable").tolist()
    assert descending(values[:0]).tolist() == []


def test_duplicates_are_equal_bytes_and_near_features() -> None:
    features = np.array([[1, 0], [1, 0.001], [0, 1], [1, 1]], dtype=np.float32)
    digests = np.array([[1], [2], [3], [3]], dtype=np.uint8)
    assert duplicates(features, digests, likeness=0.999) == [[0, 1], [2, 3]]


def test_read_bar_of_thousands_and_of_hours() -> None:
    bar = read_bar("features:   2%|▏         | 12.5k/1.00M [02:10<1:02:03, 96.1image/s]")
    assert bar is not None
    assert (bar.done, bar.total, bar.seconds_left, bar.rate) == (12_500, 1_000_000, 3723, "96.1image/s")
    assert read_bar("note: nothing of that kind") is None
