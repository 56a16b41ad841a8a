"""Active sets with signs find what proximal steps find."""

from __future__ import annotations

import numpy as np
from solver_problems import draw

from featcache.heads.solvers import Problem, prepare, solve
from featcache.heads.solvers.interface import Start
from featcache.heads.solvers.penalty import Penalty
from featcache.heads.solvers.proximal import Proximal


def test_active_sets_equal_proximal_steps():
    features, labels = draw(n=200, d=90, k=2, informative=0.3)
    problem = Problem(features=features, targets=labels[:, None].astype(np.float32), loss="sigmoid")
    for l1, l2 in ((0.05, 0.0), (0.01, 0.0), (0.01, 0.05), (0.001, 0.0)):
        prepared = prepare(problem)
        one = solve(problem, l1=l1, l2=l2, tolerance=1e-5, prepared=prepared)
        start = Start(np.zeros((1, 90), dtype=np.float32), prepared.null_point()[1])
        other = Proximal(prepared).minimise(start, penalty=Penalty(l1, l2), tolerance=1e-6, max_passes=5000)
        assert one.converged
        assert one.objective <= other.state.objective(Penalty(l1, l2)) * (1 + 1.1e-5)
        assert one.objective >= other.state.objective(Penalty(l1, l2)) * (1 - max(other.gap, 2e-6))
