"""Two levels find what one finds."""

from __future__ import annotations

import numpy as np
import pytest
from solver_problems import draw

from featcache.heads.solvers import Problem, prepare
from featcache.heads.solvers.interface import Start
from featcache.heads.solvers.penalty import Penalty
from featcache.heads.solvers.quasi_newton import QuasiNewton
from featcache.heads.solvers.two_level import TwoLevel


@pytest.mark.parametrize("l2", [0.3, 0.01])
def test_two_levels_equal_one(l2):
    features, labels = draw(n=700, d=300, k=6, informative=0.4)
    mixing = np.random.default_rng(1).normal(size=(300, 300)) * np.linspace(3, 0.1, 300)
    problem = Problem(features=(features @ mixing).astype(np.float32), targets=labels)
    prepared = prepare(problem)
    start = Start(np.zeros((6, 300), dtype=np.float32), prepared.null_point()[1])
    solver, one_level = TwoLevel(prepared), QuasiNewton(prepared)
    for strength in (l2, l2 / 2):  # the second fit starts from what the first learnt of the curvature
        penalty = Penalty(l2=strength)
        fit = solver.minimise(start, penalty=penalty, tolerance=1e-6, max_passes=200)
        one = one_level.minimise(start, penalty=penalty, tolerance=1e-7, max_passes=500)
        assert fit.converged and fit.gap <= 1e-6
        assert fit.state.objective(penalty) == pytest.approx(one.state.objective(penalty), rel=2e-6)
        start = Start(fit.state.weight, fit.state.bias)
