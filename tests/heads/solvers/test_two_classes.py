"""Two classes are one output: the difference."""

from __future__ import annotations

import numpy as np
import pytest
from solver_problems import check_optimality, draw

from featcache.heads.solvers import Problem, prepare, solve
from featcache.heads.solvers.choice import choices
from featcache.heads.solvers.interface import Start
from featcache.heads.solvers.penalty import Penalty
from featcache.heads.solvers.proximal import Proximal
from featcache.heads.solvers.two_classes import TwoClasses


@pytest.mark.parametrize("penalties", [{"l1": 0.02}, {"l1": 0.02, "l2": 0.1}, {"group_l1": 0.03}], ids=str)
def test_two_classes_are_solved_by_their_difference(penalties):
    features, labels = draw(n=150, d=60, k=2, informative=0.4)
    weights = np.random.default_rng(0).uniform(0.5, 2.0, len(labels))
    problem = Problem(features=features, targets=labels, sample_weight=weights)
    prepared = prepare(problem)
    solution = solve(problem, **penalties, tolerance=1e-6, prepared=prepared)
    assert choices(prepared, Penalty(**penalties), 1e-6)[0].solver is TwoClasses
    assert solution.converged
    check_optimality(problem, solution, 1e-3)
    start = Start(np.zeros((2, 60), dtype=np.float32), prepared.null_point()[1])
    penalty = Penalty(**penalties)
    other = Proximal(prepared).minimise(start, penalty=penalty, tolerance=1e-6, max_passes=5000)
    assert solution.objective <= other.state.objective(penalty) * (1 + 2e-6)
    assert solution.objective >= other.state.objective(penalty) * (1 - max(other.gap, 2e-6))
