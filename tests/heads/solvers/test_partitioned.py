"""Rows in parts: the same answer as in memory, each row read once, whatever the parts are and whichever is lost."""

from __future__ import annotations

import numpy as np
import pytest
from solver_problems import PENALTIES, Blocks, problem_of

from featcache.heads.solvers import Problem, solve
from featcache.heads.solvers.partitioned import distribute
from featcache.heads.solvers.parts import LocalWorkers


class Counted(Blocks):
    """Blocks that count how often they were read."""

    def __init__(self, features, sizes=(7, 30)):
        super().__init__(features, sizes)
        self.reads = 0

    def __iter__(self):
        self.reads += 1
        return super().__iter__()


def in_parts(features, bounds=(11, 11, 50), **settings):
    """Return features in parts that end at `bounds`, and what each is read from: one is empty."""
    sources = [Counted(part) for part in np.split(features, bounds)]
    return distribute(LocalWorkers(len(sources), **settings), sources), sources


def partitioned(problem, **settings):
    features, sources = in_parts(problem.features, **settings)
    return Problem(
        features=features,
        targets=problem.targets,
        loss=problem.loss,
        n_classes=problem.n_classes,
        sample_weight=problem.sample_weight,
        distillation=problem.distillation,
    ), sources


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("loss", ["softmax", "sigmoid", "squared"])
def test_parts_give_the_solution_of_rows_in_memory(loss, penalty):
    weight = np.random.default_rng(4).uniform(0, 2, size=80)
    whole = problem_of(loss, sample_weight=weight)
    problem, sources = partitioned(whole)
    ours, theirs = solve(problem, **PENALTIES[penalty]), solve(whole, **PENALTIES[penalty])
    assert ours.gap <= 4e-6  # in memory too float32's rounding leaves a little above the tolerance of 1e-6
    assert ours.objective == pytest.approx(theirs.objective, rel=4e-6)
    assert np.abs(ours.weight - theirs.weight).max() < 0.01 * np.abs(theirs.weight).max()
    assert [source.reads for source in sources] == [1, 1, 1, 1]
