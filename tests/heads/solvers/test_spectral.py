"""Paths by eigenvectors end where cold fits end."""

from __future__ import annotations

import numpy as np
import pytest
from solver_problems import data_term, draw

from featcache.heads.solvers import Problem, prepare, solve
from featcache.heads.solvers.interface import Start
from featcache.heads.solvers.penalty import Penalty
from featcache.heads.solvers.spectral import Spectral


def test_a_path_by_eigenvectors_equals_cold_fits():
    features, labels = draw(n=900, d=260, k=8, informative=0.4)
    problem = Problem(features=features, targets=labels)
    prepared = prepare(problem)
    solver = Spectral(prepared)  # in use for larger problems
    z = prepared.rows.matrix.astype(np.float64)
    start = Start(np.zeros((8, 260), dtype=np.float32), prepared.null_point()[1])
    for position, l2 in enumerate(np.logspace(0.5, -3.5, 20)):
        penalty = Penalty(l2=float(l2))
        fit = solver.minimise(start, penalty=penalty, tolerance=5e-5, max_passes=1000)
        start = Start(fit.state.weight, fit.state.bias)
        assert fit.converged
        assert fit.gap <= 5e-5
        # the logits were moved along with the weights: what they give is the objective of the weights
        loss = data_term(problem, z, fit.state.weight, fit.state.bias)[0]
        assert fit.state.objective(penalty) == pytest.approx(loss + penalty.value(fit.state.weight), rel=1e-5)
        assert np.abs(fit.state.bias).max() < 100  # nothing runs off along the direction that moves all logits alike
        if position % 6 == 0:
            cold = solve(problem, l2=float(l2), tolerance=1e-7)
            assert fit.state.objective(penalty) == pytest.approx(cold.objective, rel=6e-5)


def test_rows_that_are_continued_end_at_the_optimum_with_the_spectrum_of_those_before():
    """One row in a hundred is new, ten labels are others: the weights are the optimum's on those very rows."""
    features, labels = draw(n=1000, d=60, k=5, informative=0.4)
    before = prepare(Problem(features=features[:990], targets=labels[:990], n_classes=5))
    spectrum = before.spectrum
    labels[:10] = (labels[:10] + 1) % 5
    matrix = np.concatenate([before.rows.matrix, before.rows.standardise(features[990:])])
    problem = Problem(features=matrix, targets=labels, n_classes=5)
    prepared = before.continued(problem, matrix)
    assert prepared.spectrum is spectrum
    np.testing.assert_allclose(matrix * before.rows.std + before.rows.mean, features, atol=1e-4)
    start = Start(np.zeros((5, 60), dtype=np.float32), prepared.null_point()[1])
    penalty = Penalty(l2=0.01)
    fit = Spectral(prepared).minimise(start, penalty=penalty, tolerance=1e-3, max_passes=100)
    assert fit.converged
    exact = Spectral(prepare(problem)).minimise(start, penalty=penalty, tolerance=5e-5, max_passes=1000)
    loss = data_term(problem, matrix.astype(np.float64), fit.state.weight, fit.state.bias)[0]
    # standardised once more, those rows have nearly the same scale: the penalty weighs alike within one in a hundred
    assert loss + penalty.value(fit.state.weight) == pytest.approx(exact.state.objective(penalty), rel=2e-3)
