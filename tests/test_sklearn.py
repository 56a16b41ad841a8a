"""The scikit-learn estimators keep scikit-learn's contract, and solve the same problem."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from featcache.sklearn import LinearClassifier, LinearClassifierCV, LinearRegressor, PrototypeClassifier


@parametrize_with_checks(
    [LinearClassifier(), LinearClassifierCV(l2s=[1.0, 0.1, 0.01], cv=3), PrototypeClassifier(), LinearRegressor()]
)
def test_scikit_learn_finds_nothing_to_object_to(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X, y


def test_probabilities_are_those_of_scikit_learn_at_the_same_penalty(digits):
    X, y = digits
    ours = LinearClassifier(l2=1e-2, tol=1e-8).fit(X, y)
    theirs = LogisticRegression(C=1 / (len(X) * 1e-2), tol=1e-8, max_iter=5000)
    theirs.fit(StandardScaler().fit_transform(X), y)
    expected = theirs.predict_proba(StandardScaler().fit_transform(X))
    assert np.abs(ours.predict_proba(X) - expected).max() < 2e-3


def test_two_classes_are_those_of_scikit_learn_at_half_the_penalty(digits):
    X, y = digits
    X, y = X[y < 2], y[y < 2]
    ours = LinearClassifier(l2=1e-2, tol=1e-8).fit(X, y)
    theirs = LogisticRegression(C=2 / (len(X) * 1e-2), tol=1e-8, max_iter=5000)
    theirs.fit(StandardScaler().fit_transform(X), y)
    expected = theirs.predict_proba(StandardScaler().fit_transform(X))
    assert np.abs(ours.predict_proba(X) - expected).max() < 2e-3


def test_regression_is_ridge(digits):
    X, y = digits
    ours = LinearRegressor(l2=0.1, tol=1e-9).fit(X, y)
    scaled = StandardScaler().fit_transform(X)
    expected = Ridge(alpha=0.1 * len(X)).fit(scaled, y).predict(scaled)
    assert np.abs(ours.predict(X) - expected).max() < 1e-2


def test_labels_may_be_strings_and_folds_choose_the_penalty(digits):
    X, y = digits
    names = np.array([f"digit {i}" for i in range(10)])[y]
    fitted = LinearClassifierCV(l2s=[10.0, 1e-2, 1e-3]).fit(X[::2], names[::2])
    assert fitted.l2_ < 10.0
    assert fitted.score(X[1::2], names[1::2]) > 0.93
