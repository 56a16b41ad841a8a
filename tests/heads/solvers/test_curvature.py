"""The second derivative of the losses is the change of their residuals."""

from __future__ import annotations

import numpy as np
import pytest
from solver_problems import problem_of

from featcache.heads.solvers import Distillation, Problem, prepare
from featcache.heads.solvers.curvature import Curvature


@pytest.mark.parametrize("loss", ["softmax", "sigmoid", "squared", "distillation"])
def test_curvature_is_the_change_of_the_residuals(loss):
    problem = problem_of("softmax" if loss == "distillation" else loss)
    if loss == "distillation":
        labels = np.where(np.arange(80) % 3 == 0, -1, problem.targets)
        teacher = np.full((80, 4), 0.25, dtype=np.float32)
        problem = Problem(features=problem.features, targets=labels, n_classes=4,
                          distillation=Distillation(teacher=teacher, alpha=0.3, temperature=2.0))  # fmt: skip
    prepared = prepare(problem)
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(80, prepared.n_outputs))
    change = generator.normal(size=logits.shape)
    ahead, behind = logits + 1e-4 * change, logits - 1e-4 * change
    prepared.loss.residual(ahead, 0), prepared.loss.residual(behind, 0)
    product = Curvature(prepared.loss, logits.astype(np.float32)).product(change.astype(np.float32), 0)
    np.testing.assert_allclose(product, (ahead - behind) / 2e-4, atol=1e-6)
