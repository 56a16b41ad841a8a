"""The table of solvers: which are tried for which problem, in which order, and that nothing falls through it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from solver_problems import Blocks, draw, problem_of

from featcache.heads.solvers import Distillation, Problem, prepare
from featcache.heads.solvers.choice import choices
from featcache.heads.solvers.penalty import Penalty

LARGE = Problem(
    features=np.random.default_rng(0).normal(size=(1200, 256)).astype(np.float32), targets=np.arange(1200) % 900
)


def _problem(name):
    features, labels = draw()
    uniform = np.full((80, 2), 0.5, dtype=np.float32)
    return {
        "large": lambda: LARGE,
        "classes": lambda: problem_of("softmax"),
        "two classes": lambda: Problem(features=features, targets=labels % 2),
        "two classes distilled": lambda: Problem(
            features=features, targets=labels % 2, distillation=Distillation(uniform, alpha=0.5)
        ),
        "one label": lambda: Problem(
            features=features, targets=(labels % 2)[:, None].astype(np.float32), loss="sigmoid"
        ),
        "stream": lambda: Problem(features=Blocks(features, (31,)), targets=labels),
        "stream of two classes": lambda: Problem(features=Blocks(features, (31,)), targets=labels % 2),
        "values": lambda: problem_of("squared"),
    }[name]()


def _names(prepared, penalty, tolerance):
    return [choice.solver.__name__ for choice in choices(prepared, penalty, tolerance)]


@pytest.mark.parametrize(
    ("problem", "penalty", "tolerance", "solvers"),
    [
        ("classes", Penalty(l2=0.1), 1e-6, ["Newton"]),
        ("values", Penalty(l2=0.1), 1e-6, ["Newton"]),
        ("large", Penalty(l2=0.1), 1e-6, ["TwoLevel", "Newton"]),
        ("large", Penalty(l2=0.1), 1e-4, ["Spectral", "TwoLevel", "Newton"]),
        ("large", Penalty(l1=0.1), 1e-4, ["Proximal"]),
        ("stream", Penalty(l2=0.1), 1e-6, ["QuasiNewton"]),
        ("classes", Penalty(), 1e-6, ["QuasiNewton"]),
        ("classes", Penalty(l1=0.1, l2=0.1), 1e-6, ["Proximal"]),
        ("classes", Penalty(group_l1=0.1), 1e-6, ["Proximal"]),
        ("one label", Penalty(l1=0.1), 1e-6, ["ActiveSet", "Proximal"]),
        ("two classes", Penalty(group_l1=0.1), 1e-6, ["TwoClasses", "Proximal"]),
        ("two classes distilled", Penalty(l1=0.1), 1e-6, ["Proximal"]),
        ("stream of two classes", Penalty(l1=0.1), 1e-6, ["Proximal"]),
    ],
)
def test_choices_of_a_problem_are_the_solvers_of_the_table_in_order(problem, penalty, tolerance, solvers):
    """The quick ones where they suit, and last the one that always reaches the minimum."""
    assert _names(prepare(_problem(problem)), penalty, tolerance) == solvers


@pytest.mark.parametrize("problem", ["large", "classes", "one label", "stream", "values"])
def test_choices_of_any_problem_are_not_empty(problem):
    """Every combination of penalties finds a solver, at any tolerance."""
    prepared = prepare(_problem(problem))
    for l1, l2, group_l1 in itertools.product((0.0, 0.1), repeat=3):
        for tolerance in (1e-9, 1e-3):
            assert _names(prepared, Penalty(l1, l2, group_l1), tolerance)


def test_derive_of_one_maker_is_made_once_and_not_shared_with_parts():
    """What a solver keeps belongs to one problem: a part with fewer columns begins anew."""
    prepared = prepare(problem_of("softmax"))
    made = []

    def make(problem):
        made.append(problem)
        return object()

    first = prepared.derive(make)
    assert prepared.derive(make) is first
    part = prepared.restrict(np.array([0, 3]))
    assert part.derive(make) is not first
    assert made == [prepared, part]
