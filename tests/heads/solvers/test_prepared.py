"""What is shared by all solvers: the data term and its gradient."""

from __future__ import annotations

import numpy as np
import pytest
from solver_problems import data_term, problem_of

from featcache.heads.solvers import prepare


@pytest.mark.parametrize("loss", ["softmax", "sigmoid", "squared"])
def test_gradient_matches_finite_differences(loss):
    prepared = prepare(problem_of(loss))
    generator = np.random.default_rng(3)
    weight = generator.normal(size=(prepared.n_outputs, 12)).astype(np.float32) * np.float32(0.3)
    bias = generator.normal(size=prepared.n_outputs).astype(np.float32)
    _, gradient, bias_gradient = prepared.evaluate(weight, bias)
    z = prepared.rows.matrix
    for _ in range(5):
        step = generator.normal(size=weight.shape)
        plus = data_term(prepared.problem, z, weight + 1e-4 * step, bias)[0]
        minus = data_term(prepared.problem, z, weight - 1e-4 * step, bias)[0]
        assert (plus - minus) / 2e-4 == pytest.approx(float((gradient * step).sum()), rel=1e-3, abs=1e-5)
    moved = generator.normal(size=bias.shape)
    plus = data_term(prepared.problem, z, weight, bias + 1e-4 * moved)[0]
    minus = data_term(prepared.problem, z, weight, bias - 1e-4 * moved)[0]
    assert (plus - minus) / 2e-4 == pytest.approx(float(bias_gradient @ moved), rel=1e-3, abs=1e-5)
