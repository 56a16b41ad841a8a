"""`LabelledRows`: what is kept from head to head is what would be computed anew."""

from __future__ import annotations

import numpy as np
import pytest

from featcache.errors import InputError
from featcache.heads.solvers import Problem, prepare
from featcache.serve.studio.fitting import TOLERANCE, fit
from featcache.serve.studio.labelled_rows import LabelledRows

N, D, K = 2000, 40, 3


def clusters() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, K, N).astype(np.int32)
    return (rng.normal(size=(K, D))[labels] + 2 * rng.normal(size=(N, D))).astype(np.float32), labels


def test_rows_are_those_that_are_labelled_standardised_as_the_first_were() -> None:
    """Labels come, change and go at random: each row is its image's, with its label; few times all is read again."""
    features, _ = clusters()
    rng = np.random.default_rng(1)
    labels = np.where(np.arange(N) < 1000, rng.integers(0, K, N), -1).astype(np.int32)
    kept, bases = LabelledRows(), []
    for _ in range(60):
        labels[rng.integers(0, N, 3)] = rng.integers(-1, K, 3)
        images = np.flatnonzero(labels >= 0)
        prepared = kept.prepare(features, images, labels, np.arange(K, dtype=np.int32))
        matrix, targets = prepared.rows.matrix, np.asarray(prepared.problem.targets)
        assert len(matrix) == len(images) == prepared.rows.n_rows
        given = matrix * prepared.rows.std + prepared.rows.mean
        # which image each row is of: features are all different
        nearest = {row.round(3).tobytes(): image for image, row in zip(images.tolist(), features[images], strict=True)}
        found = [nearest[row.astype(np.float32).round(3).tobytes()] for row in given[:50]]
        assert targets[:50].tolist() == labels[found].tolist()
        assert np.sort(given[:, 0]) == pytest.approx(np.sort(features[images, 0]), abs=1e-4)
        bases.append(tuple(prepared.rows.mean[:2]))
    assert 2 <= len(set(bases)) < 15


def test_heads_that_share_rows_are_as_good_as_heads_of_their_own() -> None:
    """After forty labels the objective, on rows standardised for it, is the optimum's but for the tolerance."""
    features, right = clusters()
    train = np.ones(N, bool)
    labels = np.where(np.arange(N) < 1500, right, -1).astype(np.int32)
    kept, fitted = LabelledRows(), None
    for image in range(1500, 1540):
        labels[image], labels[image - 900] = right[image], (right[image - 900] + 1) % K
        fitted = fit(features, labels, train=train, val=~train, before=fitted, kept=kept)
    best = fit(features, labels, train=train, val=~train)
    assert fitted is not None and best is not None
    rows = np.flatnonzero(labels >= 0)
    prepared = prepare(Problem(features=features[rows], targets=labels[rows].astype(np.int64), n_classes=K))

    def objective(weight: np.ndarray, bias: np.ndarray) -> float:
        """Of weights on the features as they are."""
        z_weight = (weight * prepared.rows.std).astype(np.float32)
        z_bias = (bias + weight @ prepared.rows.mean).astype(np.float32)
        return prepared.evaluate(z_weight, z_bias)[0] + 0.5 * fitted.solution.l2 * float((z_weight**2).sum())

    ours, theirs = (objective(one.solution.raw_weight(), one.solution.raw_bias()) for one in (fitted, best))
    assert ours <= theirs * (1 + 2 * TOLERANCE)
    assert np.abs(fitted.probabilities - best.probabilities).max() < 0.02


def test_other_features_or_many_other_labels_begin_anew() -> None:
    features, labels = clusters()
    kept, classes = LabelledRows(), np.arange(K, dtype=np.int32)
    first = kept.prepare(features, np.arange(100), labels, classes)
    spectrum = first.spectrum
    more = kept.prepare(features, np.arange(150), labels, classes)
    assert more.known_spectrum is spectrum and more.rows.mean[0] != first.rows.mean[0]
    assert kept.prepare(features, np.arange(200), labels, classes).known_spectrum is None
    assert kept.prepare(features + 1, np.arange(200), labels, classes).rows.mean[0] == pytest.approx(
        1 + features[:200, 0].mean(dtype=np.float64)
    )


def test_a_row_without_numbers_is_refused_whenever_it_comes() -> None:
    features, labels = clusters()
    features[1500] = np.nan
    kept, classes = LabelledRows(), np.arange(K, dtype=np.int32)
    kept.prepare(features, np.arange(1000), labels, classes)
    for _ in range(2):
        with pytest.raises(InputError, match="features must be finite"):
            kept.prepare(features, np.array([*range(1000), 1500]), labels, classes)
    assert len(kept.prepare(features, np.arange(1001), labels, classes).rows.matrix) == 1001
