"""Rows in parts: the same answer as in memory, each row read once, whatever the parts are and whichever is lost."""

from __future__ import annotations

import numpy as np
import pytest
from solver_problems import PENALTIES, Blocks, draw, problem_of

from featcache.errors import InputError
from featcache.heads.solvers import Problem, prepare, solve, solve_path
from featcache.heads.solvers.partitioned import distribute
from featcache.heads.solvers.parts import LocalWorkers, Part


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


def test_traffic_of_a_path_does_not_grow_with_the_rows():
    moved = []
    for n in (200, 800):
        features, labels = draw(n=n)
        there, _ = in_parts(features, (50, 120))
        prepared = prepare(Problem(features=there, targets=labels))
        traffic = there.workers.traffic
        sent, received, rounds = traffic.sent, traffic.received, traffic.rounds
        path = solve_path(prepared.problem, penalty="group_l1", n_values=5, prepared=prepared)
        assert path[-1].features_used > 0
        assert max(solution.gap for solution in path) <= 1e-5
        moved.append((traffic.sent + traffic.received - sent - received) / (traffic.rounds - rounds))
        weights = 4 * 4 * (12 + 1)  # bytes: of k = 4 times d = 12 and the bias, in float32
        assert moved[-1] < 3 * (2 * weights + 1000)  # both ways, for three parts, with the names of what is asked
    assert moved[1] < 1.1 * moved[0]


def test_part_that_is_lost_midway_reads_again_and_answers_alike():
    class Losing(LocalWorkers):
        def _run(self, *question):
            if self.traffic.rounds == 7:
                self.parts[2] = Part()
            return super()._run(*question)

    features, labels = draw()
    sources = [Counted(part) for part in np.split(features, (11, 50))]
    there = distribute(Losing(3), sources)
    ours = solve(Problem(features=there, targets=labels), l2=0.01)
    steady = solve(Problem(features=in_parts(features, (11, 50))[0], targets=labels), l2=0.01)
    assert there.workers.traffic.rounds > 8
    assert np.array_equal(ours.weight, steady.weight)
    assert [source.reads for source in sources] == [1, 1, 2]


@pytest.mark.parametrize("penalty", ["l2", "group l1"])
def test_rows_beyond_the_memory_allowed_are_held_in_files(penalty):
    features, labels = draw()
    there, sources = in_parts(features, memory_bytes=1500)  # of the parts only the smallest fit
    ours = solve(Problem(features=there, targets=labels), **PENALTIES[penalty])
    kinds = [type(held.matrix) for part in there.workers.parts for held in part._tables.values()]
    assert set(kinds) == {np.ndarray, np.memmap}
    theirs = solve(Problem(features=features, targets=labels), **PENALTIES[penalty])
    assert ours.objective == pytest.approx(theirs.objective, rel=3e-6)
    assert [source.reads for source in sources] == [1, 1, 1, 1]


def test_constant_columns_and_other_rows_of_the_same_parts_are_standardised_as_in_memory():
    """The second problem is of some rows and columns only, while the parts are held by the first one's mean."""
    features, labels = draw()
    features[:, 3] = 7.0
    features[:40, 5] = -1.0  # constant in the second problem alone
    there, _ = in_parts(features)
    solve(Problem(features=there, targets=labels), l2=0.1)
    mask, columns = np.arange(80) < 40, np.array([1, 3, 5, 8])
    ours = solve(Problem(features=there[mask].take_columns(columns), targets=labels[mask]), l2=0.1)
    theirs = solve(Problem(features=features[mask][:, columns], targets=labels[mask]), l2=0.1)
    assert ours.mean == pytest.approx(theirs.mean, rel=1e-5)
    assert ours.std == pytest.approx(theirs.std, rel=1e-5)
    assert ours.objective == pytest.approx(theirs.objective, rel=3e-6)
    assert not ours.weight[:, [1, 2]].any()


def test_parts_that_are_not_finite_name_the_row_of_the_problem():
    features, labels = draw()
    features[60, 4] = np.inf
    with pytest.raises(InputError, match="NaN or Inf in column 4 at or after row 50"):
        solve(Problem(features=in_parts(features)[0], targets=labels), l2=0.1)
