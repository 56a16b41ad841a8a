"""Small problems for the tests of the solvers, and what optimality is, written out without the solvers' own words."""

from __future__ import annotations

import itertools

import numpy as np

from featcache.heads.solvers import Problem


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


def ill_conditioned(n=400, d=300, k=5):
    """Return features as of an untrained network: alike, off centre by more than they spread, of steep spectrum."""
    generator = np.random.default_rng(2)
    labels = np.arange(n) % k
    latent = generator.normal(size=(n, d)) + generator.normal(size=(k, d))[labels]
    mixing = np.linalg.qr(generator.normal(size=(d, d)))[0] * (1.0 / (1.0 + np.arange(d)))[:, None]
    return (latent @ mixing + 5.0).astype(np.float32), labels
