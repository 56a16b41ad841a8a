"""Newton steps find what quasi-Newton steps find."""

from __future__ import annotations

import numpy as np
import pytest
from solver_problems import problem_of

from featcache.heads.solvers import prepare
from featcache.heads.solvers.interface import Start
from featcache.heads.solvers.newton import Newton
from featcache.heads.solvers.penalty import Penalty
from featcache.heads.solvers.quasi_newton import QuasiNewton


@pytest.mark.parametrize("l2", [0.05, 1e-3])
@pytest.mark.parametrize("loss", ["softmax", "sigmoid", "squared"])
def test_newton_equals_quasi_newton(loss, l2):
    prepared = prepare(problem_of(loss))
    weight, bias = np.zeros((prepared.n_outputs, 12), dtype=np.float32), prepared.null_point()[1]
    start, penalty = Start(weight, bias), Penalty(l2=l2)
    fit = Newton(prepared).minimise(start, penalty=penalty, tolerance=1e-7, max_passes=2000)
    other = QuasiNewton(prepared).minimise(start, penalty=penalty, tolerance=1e-7, max_passes=2000)
    assert fit.converged and fit.gap <= 1e-7
    assert fit.state.objective(penalty) == pytest.approx(other.state.objective(penalty), rel=1e-6)
