"""The exact solvers: optimality proved without the solver's own words, on problems with every kind of degeneracy."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge

from featcache.errors import InputError
from featcache.heads.solvers import Distillation, Problem, prepare, solve, solve_path
from featcache.heads.solvers.certificate import Penalty
from featcache.heads.solvers.coarse import TwoLevel
from featcache.heads.solvers.curvature import Curvature
from featcache.heads.solvers.inverse import invert_positive_definite
from featcache.heads.solvers.smooth import State, minimise_l2
from featcache.heads.solvers.sparse import minimise_sparse
from featcache.heads.solvers.spectral import Spectral


def draw(n=80, d=12, k=4, seed=0, informative=1.5):
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(k), generator.integers(0, k, n - k)])
    centres = generator.normal(size=(k, d)) * informative
    features = (centres[labels] + generator.normal(size=(n, d)) * 2 + 3).astype(np.float32)
    return features, labels


def standardise(features, solution):
    return (features.astype(np.float64) - solution.mean) / solution.std


def one_hot(labels, k):
    return np.eye(k)[labels]


def data_term(problem, z, weight, bias):
    """Return value and gradients of the data term in float64, written out independently of the solver."""
    w = np.ones(len(z)) if problem.sample_weight is None else np.asarray(problem.sample_weight, dtype=float)
    w = w / w.sum()
    u = z @ weight.T.astype(float) + bias.astype(float)
    y = problem.targets if np.ndim(problem.targets) == 2 else one_hot(problem.targets, problem.n_classes)
    if problem.loss == "softmax":
        top = u.max(axis=1, keepdims=True)
        lse = top[:, 0] + np.log(np.exp(u - top).sum(axis=1))
        residual = np.exp(u - lse[:, None]) - y
        value = w @ (lse - (u * y).sum(axis=1))
    elif problem.loss == "sigmoid":
        residual = 1 / (1 + np.exp(-u)) - y
        value = w @ (np.logaddexp(0, u) - u * y).sum(axis=1)
    else:
        residual = u - y
        value = w @ (0.5 * residual**2).sum(axis=1)
    weighted = residual * w[:, None]
    return value, weighted.T @ z, weighted.sum(axis=0)


def objective(problem, z, s):
    weight = s.weight.astype(float)
    value = data_term(problem, z, weight, s.bias)[0]
    value += s.l1 * np.abs(weight).sum() + 0.5 * s.l2 * (weight**2).sum()
    return value + s.group_l1 * np.linalg.norm(weight, axis=0).sum()


def check_optimality(problem, s, tolerance):
    """Assert the KKT conditions of every weight, with exact zeros where the penalty says so."""
    z = standardise(problem.features, s)
    _, gradient, bias_gradient = data_term(problem, z, s.weight, s.bias)
    smooth = gradient + s.l2 * s.weight
    assert np.abs(bias_gradient).max() < tolerance
    if s.group_l1:
        norms = np.linalg.norm(s.weight.astype(float), axis=0)
        used = norms > 0
        assert (np.linalg.norm(gradient[:, ~used], axis=0) <= s.group_l1 + tolerance).all()
        assert np.abs(smooth[:, used] + s.group_l1 * s.weight[:, used] / norms[used]).max(initial=0) < tolerance
    else:
        used = s.weight != 0
        assert (np.abs(gradient[~used]) <= s.l1 + tolerance).all()
        assert np.abs(smooth + s.l1 * np.sign(s.weight))[used].max(initial=0) < tolerance


PENALTIES = {
    "l2": {"l2": 0.05},
    "weak l2": {"l2": 1e-3},
    "l1": {"l1": 0.03},
    "elastic net": {"l1": 0.02, "l2": 0.05},
    "group l1": {"group_l1": 0.05},
    "group l1 and l2": {"group_l1": 0.05, "l2": 0.02},
}


def problem_of(loss, **changes):
    features, labels = draw()
    if loss == "softmax":
        return Problem(features=features, targets=labels, **changes)
    if loss == "sigmoid":
        targets = (np.random.default_rng(1).random((80, 3)) < [0.3, 0.5, 0.8]).astype(np.float32)
        return Problem(features=features, targets=targets, loss="sigmoid", **changes)
    targets = (features[:, :3] * 0.5 + np.random.default_rng(1).normal(size=(80, 3))).astype(np.float32)
    return Problem(features=features, targets=targets, loss="squared", **changes)


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


@pytest.mark.parametrize("loss", ["softmax", "sigmoid", "squared"])
def test_gradient_matches_finite_differences(loss):
    prepared = prepare(problem_of(loss))
    generator = np.random.default_rng(3)
    weight = generator.normal(size=(prepared.n_outputs, 12)).astype(np.float32) * np.float32(0.3)
    bias = generator.normal(size=prepared.n_outputs).astype(np.float32)
    gradient = np.empty_like(weight)
    _, bias_gradient = prepared.evaluate(weight, bias, gradient)
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


class Blocks:
    """The rows of an array in uneven blocks, as a source that cannot be indexed."""

    def __init__(self, features, sizes):
        self.features, self.sizes = features, sizes
        self.shape = features.shape

    def __iter__(self):
        start = 0
        for size in itertools.cycle(self.sizes):
            if start >= len(self.features):
                return
            yield start, self.features[start : start + size]
            start += size


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


def test_blocks_that_do_not_cover_the_rows_are_refused():
    features, labels = draw()

    class Short(Blocks):
        def __iter__(self):
            yield 0, self.features[:10]

    with pytest.raises(InputError, match="cover all 80 rows"):
        solve(Problem(features=Short(features, ()), targets=labels), l2=0.1)


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


def test_active_sets_equal_proximal_steps():
    features, labels = draw(n=200, d=90, k=2, informative=0.3)
    problem = Problem(features=features, targets=labels[:, None].astype(np.float32), loss="sigmoid")
    for l1, l2 in ((0.05, 0.0), (0.01, 0.0), (0.01, 0.05), (0.001, 0.0)):
        prepared = prepare(problem)
        one = solve(problem, l1=l1, l2=l2, tolerance=1e-5, prepared=prepared)
        start = (np.zeros((1, 90), dtype=np.float32), prepared.null_point()[1])
        other, gap, _ = minimise_sparse(prepared, *start, penalty=Penalty(l1, l2), tolerance=1e-6, max_passes=5000)
        assert one.converged
        assert one.objective <= other.objective(Penalty(l1, l2)) * (1 + 1.1e-5)
        assert one.objective >= other.objective(Penalty(l1, l2)) * (1 - max(gap, 2e-6))


@pytest.mark.parametrize("penalties", [{"l1": 0.02}, {"l1": 0.02, "l2": 0.1}, {"group_l1": 0.03}], ids=str)
def test_two_classes_are_solved_by_their_difference(penalties):
    features, labels = draw(n=150, d=60, k=2, informative=0.4)
    weights = np.random.default_rng(0).uniform(0.5, 2.0, len(labels))
    problem = Problem(features=features, targets=labels, sample_weight=weights)
    prepared = prepare(problem)
    solution = solve(problem, **penalties, tolerance=1e-6, prepared=prepared)
    assert prepared.difference is not None
    assert solution.converged
    check_optimality(problem, solution, 1e-3)
    start = (np.zeros((2, 60), dtype=np.float32), prepared.null_point()[1])
    penalty = Penalty(**penalties)
    other, gap, _ = minimise_sparse(prepared, *start, penalty=penalty, tolerance=1e-6, max_passes=5000)
    assert solution.objective <= other.objective(penalty) * (1 + 2e-6)
    assert solution.objective >= other.objective(penalty) * (1 - max(gap, 2e-6))


def test_a_path_by_eigenvectors_equals_cold_fits():
    features, labels = draw(n=900, d=260, k=8, informative=0.4)
    problem = Problem(features=features, targets=labels)
    prepared = prepare(problem)
    prepared._spectral = Spectral(prepared)  # in use for larger problems
    path = solve_path(problem, values=np.logspace(0.5, -3.5, 20), tolerance=5e-5, prepared=prepared)
    z = standardise(features, path[0])
    for solution in path:
        assert solution.converged
        assert solution.gap <= 5e-5
        assert solution.objective == pytest.approx(objective(problem, z, solution), rel=1e-5)
        assert np.abs(solution.bias).max() < 100  # nothing runs off along the direction that moves all logits alike
    for solution in path[::6]:
        cold = solve(problem, l2=solution.l2, tolerance=1e-7)
        assert solution.objective == pytest.approx(cold.objective, rel=6e-5)


@pytest.mark.parametrize("l2", [0.3, 0.01])
def test_two_levels_equal_one(l2):
    features, labels = draw(n=700, d=300, k=6, informative=0.4)
    mixing = np.random.default_rng(1).normal(size=(300, 300)) * np.linspace(3, 0.1, 300)
    problem = Problem(features=(features @ mixing).astype(np.float32), targets=labels)
    prepared = prepare(problem)
    weight, bias = np.zeros((6, 300), dtype=np.float32), prepared.null_point()[1]
    solver = TwoLevel(prepared)
    for strength in (l2, l2 / 2):  # the second fit starts from what the first learnt of the curvature
        state, gap, converged = solver.minimise(weight, bias, l2=strength, tolerance=1e-6, max_passes=200)
        one = minimise_l2(prepared, State(prepared, weight, bias), l2=strength, tolerance=1e-7, max_passes=500)[0]
        assert converged and gap <= 1e-6
        penalty = Penalty(l2=strength)
        assert state.objective(penalty) == pytest.approx(one.objective(penalty), rel=2e-6)
        weight, bias = state.weight, state.bias


def ill_conditioned(n=400, d=300, k=5):
    """Return features as of an untrained network: alike, off centre by more than they spread, of steep spectrum."""
    generator = np.random.default_rng(2)
    labels = np.arange(n) % k
    latent = generator.normal(size=(n, d)) + generator.normal(size=(k, d))[labels]
    mixing = np.linalg.qr(generator.normal(size=(d, d)))[0] * (1.0 / (1.0 + np.arange(d)))[:, None]
    return (latent @ mixing + 5.0).astype(np.float32), labels


def test_badly_conditioned_features_take_few_passes():
    features, labels = ill_conditioned()
    problem = Problem(features=features, targets=labels)
    solution = solve(problem, l2=1.7e-4)
    assert solution.converged and solution.gap <= 1e-6
    assert solution.passes < 300
    check_optimality(problem, solution, 1e-4)


@pytest.mark.parametrize("l2", [0.05, 1e-3])
@pytest.mark.parametrize("loss", ["softmax", "sigmoid", "squared"])
def test_newton_equals_quasi_newton(loss, l2):
    prepared = prepare(problem_of(loss))
    weight, bias = np.zeros((prepared.n_outputs, 12), dtype=np.float32), prepared.null_point()[1]
    state, gap, converged = prepared.newton.minimise(weight, bias, l2=l2, tolerance=1e-7, max_passes=2000)
    other = minimise_l2(prepared, State(prepared, weight, bias), l2=l2, tolerance=1e-7, max_passes=2000)[0]
    assert converged and gap <= 1e-7
    assert state.objective(Penalty(l2=l2)) == pytest.approx(other.objective(Penalty(l2=l2)), rel=1e-6)


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


def test_the_inverse_by_halves_is_the_inverse():
    rows = np.random.default_rng(0).normal(size=(600, 401)).astype(np.float32)
    matrix = rows.T @ rows / 600 + 0.1 * np.eye(401, dtype=np.float32)
    np.testing.assert_allclose(invert_positive_definite(matrix) @ matrix, np.eye(401), atol=1e-3)


def test_weak_penalties_converge_where_two_levels_begin():
    generator = np.random.default_rng(1)
    labels = np.arange(1200) % 900
    features = generator.normal(size=(900, 256))[labels] + 0.5 * generator.normal(size=(1200, 256))
    prepared = prepare(Problem(features=features.astype(np.float32), targets=labels))
    assert prepared.two_level is not None  # and its spectrum is flat: not what two levels are for
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
    assert prepared.two_level is not None
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
