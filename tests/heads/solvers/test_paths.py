"""The two verbs: optimality proved without the solvers' own words, on problems with every kind of degeneracy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge
from solver_problems import (
    PENALTIES,
    Blocks,
    check_optimality,
    data_term,
    draw,
    ill_conditioned,
    objective,
    one_hot,
    problem_of,
    standardise,
)

from featcache.errors import InputError
from featcache.heads.solvers import Distillation, Problem, prepare, solve, solve_path
from featcache.heads.solvers.choice import choices
from featcache.heads.solvers.penalty import Penalty
from featcache.heads.solvers.two_level import TwoLevel


@pytest.mark.parametrize("penalties", PENALTIES.values(), ids=PENALTIES.keys())
@pytest.mark.parametrize("loss", ["softmax", "sigmoid", "squared"])
def test_solution_is_optimal_and_its_certificate_holds(loss, penalties):
    problem = problem_of(loss)
    solution = solve(problem, **penalties, tolerance=1e-6)
    assert solution.converged
    check_optimality(problem, solution, 2e-3)
    z = standardise(problem.features, solution)
    assert solution.objective == pytest.approx(objective(problem, z, solution), rel=1e-6)
    better = solve(problem, **penalties, tolerance=1e-8, start=solution)
    assert (solution.objective - better.objective) / solution.objective <= max(solution.gap, 1e-6)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid", "squared"])
def test_gap_bounds_the_distance_to_the_optimum_far_from_it_too(loss):
    problem = problem_of(loss)
    for penalties in PENALTIES.values():
        best = solve(problem, **penalties, tolerance=1e-7)
        for passes in (1, 3, 6):
            rough = solve(problem, **penalties, tolerance=1e-12, max_passes=passes)
            distance = (rough.objective - best.objective) / rough.objective
            assert distance <= rough.gap + 1e-6


@pytest.mark.parametrize("k", [2, 5])
def test_l2_equals_scikit_learn(k):
    features, labels = draw(n=150, k=k)
    solution = solve(Problem(features=features, targets=labels), l2=0.02, tolerance=1e-9)
    z = standardise(features, solution)
    # of two classes scikit-learn fits one row w, whose penalty is twice that of the two rows +-w/2
    strength = 1 / (150 * 0.02) * (2 if k == 2 else 1)
    peer = LogisticRegression(C=strength, tol=1e-10, max_iter=5000).fit(z, labels)
    weight = solution.weight[1:] - solution.weight[:1] if k == 2 else solution.weight
    np.testing.assert_allclose(weight, peer.coef_, atol=2e-4)
    raw = features @ solution.raw_weight().T + solution.raw_bias()
    np.testing.assert_allclose(
        np.exp(raw - raw.max(1, keepdims=True)) / np.exp(raw - raw.max(1, keepdims=True)).sum(1, keepdims=True),
        peer.predict_proba(z),
        atol=2e-4,
    )


def test_squared_loss_equals_ridge():
    problem = problem_of("squared")
    solution = solve(problem, l2=0.1, tolerance=1e-9)
    peer = Ridge(alpha=0.1 * 80).fit(standardise(problem.features, solution), problem.targets)
    np.testing.assert_allclose(solution.weight, peer.coef_, atol=2e-4)


def test_weights_count_as_repeated_rows():
    # an odd number of classes: adding a constant to a column changes no probability, and its L1 optimum is a median
    features, labels = draw(k=5)
    weight = np.random.default_rng(2).integers(0, 3, len(labels))
    weight[:5] = 1
    repeated = np.repeat(np.arange(len(labels)), weight)
    for penalties in ({"l2": 0.05}, {"l1": 0.03}):
        a = solve(Problem(features=features, targets=labels, sample_weight=weight), **penalties, tolerance=1e-8)
        b = solve(Problem(features=features[repeated], targets=labels[repeated]), **penalties, tolerance=1e-8)
        np.testing.assert_allclose(a.mean, b.mean, rtol=1e-5)
        np.testing.assert_allclose(a.weight, b.weight, atol=1e-3)
        assert a.objective == pytest.approx(b.objective, rel=1e-6)


def test_soft_targets_that_are_one_hot_equal_labels():
    features, labels = draw()
    hard = solve(Problem(features=features, targets=labels), l2=0.05)
    soft = solve(Problem(features=features, targets=one_hot(labels, 4).astype(np.float32)), l2=0.05)
    assert soft.objective == pytest.approx(hard.objective, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_is_the_stated_objective_and_minimal(temperature):
    features, labels = draw()
    labels = labels.copy()
    labels[10:30] = -1
    logits = np.random.default_rng(5).normal(size=(80, 4)) * 2
    teacher = np.exp(logits / temperature)
    teacher = (teacher / teacher.sum(axis=1, keepdims=True)).astype(np.float32)
    distillation = Distillation(teacher=teacher, alpha=0.6, temperature=temperature)
    problem = Problem(features=features, targets=labels, n_classes=4, distillation=distillation)
    solution = solve(problem, l2=0.05, tolerance=1e-7)
    assert solution.converged
    z = standardise(features, solution)

    def value(weight, bias):
        u = z @ weight.T + bias
        cross = np.log(np.exp(u).sum(axis=1)) - u[np.arange(80), labels]
        soft = u / temperature - np.log(np.exp(u / temperature).sum(axis=1, keepdims=True))
        divergence = (teacher * (np.log(teacher) - soft)).sum(axis=1)
        rows = 0.4 * np.where(labels >= 0, cross, 0.0) + 0.6 * temperature**2 * divergence
        return rows.mean() + 0.025 * (weight**2).sum()

    weight, bias = solution.weight.astype(float), solution.bias.astype(float)
    assert solution.objective == pytest.approx(value(weight, bias), rel=1e-6)
    generator = np.random.default_rng(6)
    for _ in range(20):
        other = value(weight + 0.01 * generator.normal(size=weight.shape), bias + 0.01 * generator.normal(size=4))
        assert other > solution.objective * (1 - solution.gap)


@pytest.mark.long
@pytest.mark.parametrize("penalties", [{"l2": 0.05}, {"l1": 0.03}, {"group_l1": 0.05}], ids=str)
def test_streamed_rows_give_the_same_answer(penalties):
    features, labels = draw(n=300, d=20, k=5)
    memory = solve(Problem(features=features, targets=labels), **penalties, tolerance=1e-7)
    source = Blocks(features.astype(np.float16), (7, 64, 31))
    streamed = solve(Problem(features=source, targets=labels), **penalties, tolerance=1e-7)
    rounded = solve(Problem(features=features.astype(np.float16), targets=labels), **penalties, tolerance=1e-7)
    assert streamed.objective == pytest.approx(rounded.objective, rel=1e-6)
    assert streamed.objective == pytest.approx(memory.objective, rel=1e-2)
    np.testing.assert_allclose(streamed.weight, rounded.weight, atol=1e-3)


@pytest.mark.parametrize("penalty", ["l2", "l1", "group_l1"])
def test_path_equals_cold_solves(penalty):
    problem = problem_of("softmax")
    path = solve_path(problem, penalty=penalty, n_values=8, tolerance=1e-7)
    assert [getattr(s, penalty) for s in path] == sorted((getattr(s, penalty) for s in path), reverse=True)
    for solution in path[::3]:
        cold = solve(problem, **{penalty: getattr(solution, penalty)}, tolerance=1e-7)
        assert solution.objective == pytest.approx(cold.objective, rel=2e-6)
    if penalty != "l2":
        assert path[0].features_used == 0
        assert 0 < path[2].nonzero_fraction < 1
        assert path[-1].features_used >= path[2].features_used


@pytest.mark.parametrize("case", ["softmax", "sigmoid", "squared", "elastic"])
def test_every_penalty_of_a_path_meets_its_conditions_with_exact_zeros(case):
    """On all columns, 50 penalties: |g| <= l1 where a weight is zero, g = -l1 sign(w) - l2 w elsewhere (KKT)."""
    features, labels = draw(n=300, d=120, k=3, informative=0.2)
    l2 = 0.02 if case == "elastic" else 0.0
    one = (labels == 0).astype(np.float32)[:, None]
    targets = {"softmax": labels, "squared": one + features[:, :1] * np.float32(0.3)}.get(case, one)
    loss = case if case in ("softmax", "squared") else "sigmoid"
    problem = Problem(features=features, targets=targets, loss=loss)
    path = solve_path(problem, penalty="l1", l2=l2, tolerance=2e-5)
    assert len(path) == 50
    for solution in path:
        assert solution.converged
        z = standardise(problem.features, solution)
        gradient, slope = data_term(problem, z, solution.weight.astype(np.float64), solution.bias)[1:]
        weight = solution.weight.astype(np.float64)
        gradient = gradient + l2 * weight
        room = 1e-2 * path[0].l1
        assert np.abs(slope).max() < 1e-4
        assert (np.abs(gradient[weight == 0]) <= solution.l1 + room).all()
        assert np.abs(gradient + solution.l1 * np.sign(weight))[weight != 0].max(initial=0.0) <= room
    assert path[0].features_used == 0
    assert 0.0 < path[20].nonzero_fraction < path[-1].nonzero_fraction < 1.0


@pytest.mark.long
def test_a_softmax_path_ends_at_the_limit_of_float32_not_before():
    """Asked for more than float32 holds, no fit stalls: a proximal step too small for objectives goes by gradients."""
    features, labels = draw(n=300, d=120, k=3, informative=0.2)
    path = solve_path(Problem(features=features, targets=labels), penalty="l1", tolerance=3e-6)
    assert max(solution.gap for solution in path) < 2e-5


@pytest.mark.parametrize("decades", [2, 4])
def test_features_of_a_steep_spectrum_are_solved_in_few_passes(decades):
    """Untrained networks give such: nearly all variance in one direction, little and ever less in the others."""
    generator = np.random.default_rng(0)
    n, d, k = 900, 600, 10
    labels = generator.integers(0, k, n)
    scale = np.logspace(0, -decades, d)
    latent = (generator.normal(size=(n, d)) + 0.5 * generator.normal(size=(k, d))[labels]) * scale
    features = latent @ np.linalg.qr(generator.normal(size=(d, d)))[0] + 3 * generator.normal(size=(n, 1))
    problem = Problem(features=features.astype(np.float32), targets=labels)
    path = solve_path(problem, values=np.logspace(0, -6, 25), tolerance=1e-5)
    assert all(solution.converged for solution in path)
    assert sum(solution.passes for solution in path) < 1500


def test_badly_conditioned_features_take_few_passes():
    features, labels = ill_conditioned()
    problem = Problem(features=features, targets=labels)
    solution = solve(problem, l2=1.7e-4)
    assert solution.converged and solution.gap <= 1e-6
    assert solution.passes < 300
    check_optimality(problem, solution, 1e-4)


def _first_solver(prepared):
    return choices(prepared, Penalty(l2=0.01), 1e-6)[0].solver


@pytest.mark.long
def test_weak_penalties_converge_where_two_levels_begin():
    generator = np.random.default_rng(1)
    labels = np.arange(1200) % 900
    features = generator.normal(size=(900, 256))[labels] + 0.5 * generator.normal(size=(1200, 256))
    prepared = prepare(Problem(features=features.astype(np.float32), targets=labels))
    assert _first_solver(prepared) is TwoLevel  # and its spectrum is flat: not what two levels are for
    solution = solve(prepared.problem, l2=1e-4, prepared=prepared)
    assert solution.converged and solution.gap <= 1e-6
    assert solution.passes < 400


def test_features_of_low_rank_have_a_coarse_space_too():
    """As an untrained network's: fewer directions than the coarse space has places."""
    generator = np.random.default_rng(2)
    labels = np.arange(1200) % 900
    hidden = generator.normal(size=(900, 3))[labels] + 0.1 * generator.normal(size=(1200, 3))
    features = 5 + hidden @ generator.normal(size=(3, 256)) / 100
    prepared = prepare(Problem(features=features.astype(np.float32), targets=labels))
    assert _first_solver(prepared) is TwoLevel
    solution = solve(prepared.problem, l2=0.01, prepared=prepared)
    assert solution.converged and solution.gap <= 1e-6


def test_two_fits_are_bit_identical():
    problem = problem_of("softmax")
    for penalties in ({"l2": 0.01}, {"l1": 0.02}):
        a, b = solve(problem, **penalties), solve(problem, **penalties)
        assert a.weight.tobytes() == b.weight.tobytes() and a.bias.tobytes() == b.bias.tobytes()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(4, 40),
    d=st.integers(1, 30),
    k=st.integers(2, 4),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    kind=st.sampled_from(["plain", "constant", "duplicate", "separable"]),
    penalties=st.sampled_from([{"l2": 0.1}, {"l1": 0.05}, {"group_l1": 0.05}, {"l1": 0.02, "l2": 0.1}]),
)
def test_degenerate_problems_are_solved(seed, n, d, k, scale, kind, penalties):
    generator = np.random.default_rng(seed)
    n = max(n, k)
    labels = np.concatenate([np.arange(k), generator.integers(0, k, n - k)])
    features = generator.normal(size=(n, d)) + 2
    if kind == "constant":
        features[:, 0] = 7.3
    elif kind == "duplicate":
        features[:, -1] = features[:, 0]
    elif kind == "separable":
        features[:, 0] = labels * 10
    features = (features * scale).astype(np.float32)
    problem = Problem(features=features, targets=labels)
    solution = solve(problem, **penalties, tolerance=1e-5)
    assert np.isfinite(solution.weight).all() and np.isfinite(solution.bias).all()
    assert solution.gap < 1e-4
    if kind == "constant":
        assert not solution.weight[:, 0].any()
    check_optimality(problem, solution, 1e-2)


def test_bad_input_says_what_must_hold():
    features, labels = draw()
    problem = Problem(features=features, targets=labels)
    for name in ("l1", "l2", "group_l1"):
        for value in (-1.0, float("nan"), float("inf")):
            with pytest.raises(InputError, match=f"{name} must be a finite number"):
                solve(problem, **{name: value})
    for value in (np.nan, np.inf):
        broken = features.copy()
        broken[70, 3] = value
        with pytest.raises(InputError, match="NaN or Inf in column 3"):
            solve(dataclasses.replace(problem, features=broken), l2=0.1)
    with pytest.raises(InputError, match="one entry per row"):
        Problem(features=features, targets=labels[:-1])
    with pytest.raises(InputError, match="two classes"):
        Problem(features=features, targets=np.zeros(80, dtype=np.int64))
    with pytest.raises(InputError, match="sum to 1"):
        Problem(features=features, targets=np.full((80, 3), 0.5, dtype=np.float32))
    with pytest.raises(InputError, match="not negative"):
        Problem(features=features, targets=labels, sample_weight=-np.ones(80))
    with pytest.raises(InputError, match="class 4 has none"):
        solve(Problem(features=features, targets=labels, n_classes=5), l2=0.1)
