"""The problem on the leading components: its solutions are heads on all features, and near the best in objective."""

from __future__ import annotations

import numpy as np
import pytest
from solver_problems import draw

from featcache.heads.solvers import Components, Problem, prepare, solve


def steep(n=900, d=320, k=5):
    """Return features of which a quarter of the directions hold nearly all variance, and labels."""
    generator = np.random.default_rng(3)
    features, labels = draw(n=n, d=d, k=k, informative=0.2)
    turn = np.linalg.qr(generator.normal(size=(d, d)))[0]
    return ((features @ turn) * np.exp(-np.arange(d) / 20.0) @ turn.T).astype(np.float32), labels


def test_a_lifted_solution_has_the_logits_objective_and_penalty_of_the_one_on_the_components():
    features, labels = steep()
    prepared = prepare(Problem(features=features, targets=labels))
    components = Components(prepared)
    assert components.share > 0.95 and components.scores.shape == (900, 64)
    narrow = components.problem()
    found = solve(narrow.problem, l2=0.05, prepared=narrow)
    lifted = components.lift(found)
    assert found.converged and found.weight.shape == (5, 64) and lifted.weight.shape == (5, 320)
    logits = features @ lifted.raw_weight().T + lifted.raw_bias()
    assert np.allclose(logits, components.scores @ found.weight.T + found.bias, atol=1e-4)
    # what is true on the components is true of the head on all features
    z = (features - lifted.mean) / lifted.std
    wide = z @ lifted.weight.astype(np.float64).T + lifted.bias
    loss = np.log(np.exp(wide).sum(axis=1)) - wide[np.arange(900), labels]
    objective = loss.mean() + 0.025 * (lifted.weight.astype(np.float64) ** 2).sum()
    assert objective == pytest.approx(lifted.objective, rel=1e-5)
    best = solve(prepared.problem, l2=0.05, prepared=prepared)
    assert best.objective <= lifted.objective * (1 + 1e-6) and lifted.objective < 1.05 * best.objective


def test_a_fit_that_begins_at_a_lifted_solution_ends_at_the_minimum_of_all_features():
    features, labels = steep()
    prepared = prepare(Problem(features=features, targets=labels))
    components = Components(prepared)
    narrow = components.problem()
    start = components.lift(solve(narrow.problem, l2=0.05, prepared=narrow, tolerance=1e-3))
    warm = solve(prepared.problem, l2=0.05, prepared=prepared, start=start)
    cold = solve(prepared.problem, l2=0.05, prepared=prepared)
    assert warm.gap <= 1e-6 and warm.objective == pytest.approx(cold.objective, rel=2e-6)
