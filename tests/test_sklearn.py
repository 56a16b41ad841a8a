"""The scikit-learn estimators keep scikit-learn's contract, and solve the same problem."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from featcache.errors import InputError
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


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (LinearClassifier(l2=-1), "l2 must be a number of at least 0, got -1"),
        (LinearClassifier(l1=float("nan")), "l1 must be"),
        (LinearClassifier(l2="auto"), "l2 must be a number of at least 0, got 'auto'"),
        (LinearClassifier(tol=0), "tol must be a number above 0"),
        (LinearClassifierCV(l2s=[]), "l2s must be None or hold a penalty"),
        (LinearClassifierCV(l2s=[1.0, -1.0]), r"l2s\[1\] must be"),
        (LinearRegressor(group_l1=-1), "group_l1 must be"),
        (PrototypeClassifier(metric="angle"), "metric must be one of"),
        (PrototypeClassifier(sharpness=0), "sharpness must be a number above 0"),
    ],
    ids=str,
)
def test_parameters_that_cannot_be_are_refused_by_fit(estimator, message, digits):
    X, y = digits
    with pytest.raises(InputError, match=message) as caught:
        estimator.fit(X[:50], y[:50])
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


def test_a_fit_that_is_far_from_solved_warns(digits):
    X, y = digits
    with pytest.warns(ConvergenceWarning, match="relative gap"):
        LinearClassifier(l2=1e-13).fit(X[:200], y[:200])


def test_a_class_of_no_weight_is_named(digits):
    X, y = digits
    with pytest.raises(InputError, match="positive weight, 3 has none"):
        PrototypeClassifier().fit(X, y, sample_weight=(y != 3).astype(float))


def test_labels_may_be_strings_and_folds_choose_the_penalty(digits):
    X, y = digits
    names = np.array([f"digit {i}" for i in range(10)])[y]
    fitted = LinearClassifierCV(l2s=[10.0, 1e-2, 1e-3]).fit(X[::2], names[::2])
    assert fitted.l2_ < 10.0
    assert fitted.score(X[1::2], names[1::2]) > 0.93
