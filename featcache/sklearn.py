"""scikit-learn estimators over featcache's heads: the exact solvers behind fit, predict and predict_proba.

Imports scikit-learn (``pip install featcache[sklearn]``). Estimators take any rows, so a cache's
features go into pipelines, searches and validation as they are:

>>> import featcache
>>> from featcache.sklearn import LinearClassifier
>>> with featcache.open_cache("cache") as cache:
...     X, y = cache.numpy(split="train")
>>> LinearClassifier(l2=1e-2).fit(X, y).score(X, y)
1.0
"""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from featcache.errors import DependencyError, InputError
from featcache.heads.linear import LinearHead
from featcache.heads.prototype import METRICS, PrototypeHead, fit_prototypes
from featcache.heads.solvers import Problem, Solution, solve, solve_path

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import check_cv
    from sklearn.utils.class_weight import compute_class_weight
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    raise DependencyError(
        "featcache.sklearn needs scikit-learn, which is not installed: pip install scikit-learn"
    ) from error

Matrix = npt.NDArray[Any]


def _merge_equal_rows(X: Matrix, y: Matrix, weights: Matrix | None) -> tuple[Matrix, Matrix, Matrix | None]:
    """Return the rows sorted, equal ones (with equal targets) made one that weighs their sum, weightless ones left out.

    So a row of weight two and a row given twice are one problem to the last bit, and the order of rows does not matter.
    """
    pairs = np.ascontiguousarray(np.concatenate([X, y.reshape(len(X), -1)], axis=1, dtype=np.float64))
    row_weights = np.ones(len(X)) if weights is None else weights
    kept = np.flatnonzero(row_weights > 0)
    keys = (pairs[kept] + 0.0).view(np.dtype((np.void, pairs.dtype.itemsize * pairs.shape[1]))).ravel()
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    total = np.bincount(inverse, weights=row_weights[kept], minlength=len(first))
    at = kept[first]
    return X[at], y[at], None if (total == 1).all() else total


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real)


def _check_strengths(values: Mapping[str, Any], tol: Any) -> None:
    """Raise `InputError` for a penalty that is no number of at least 0, or a tolerance that is none above 0."""
    for name, value in values.items():
        if not _is_number(value) or not 0 <= value < math.inf:
            raise InputError(f"{name} must be a number of at least 0, got {value!r}")
    if not _is_number(tol) or not 0 < tol < math.inf:
        raise InputError(f"tol must be a number above 0, got {tol!r}")


def _warn_unless_solved(solution: Solution, tol: float) -> None:
    """Warn where the gap is far above `tol`; float32 features leave one of about 1e-6."""
    if solution.gap > max(100 * tol, 1e-4):
        warnings.warn(
            f"the fit is proved to a relative gap of {solution.gap:.2g} only, asked for was tol={tol:g}: use a "
            "stronger penalty",
            ConvergenceWarning,
            stacklevel=3,
        )


class _Classifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """What the classifiers share: labels of any type, the decision from a head's logits."""

    def decision_function(self, X: Matrix) -> Matrix:
        """Return the logits (n, n_classes) float64; for two classes the second's minus the first's (n,)."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: Matrix) -> Matrix:
        """Return probabilities (n, n_classes) float64, columns in the order of ``classes_``."""
        logits = self._logits(X)
        logits -= logits.max(axis=1, keepdims=True)
        np.exp(logits, out=logits)
        return np.asarray(logits / logits.sum(axis=1, keepdims=True))

    def predict(self, X: Matrix) -> Matrix:
        """Return the likeliest class (n,) of each row."""
        winners = self._logits(X).argmax(axis=1)
        return np.asarray(self.classes_[winners])

    def _logits(self, X: Matrix) -> Matrix:
        """Return the logits in float64, so that a row's result does not depend on the rows beside it."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        return np.asarray(X @ self.coef_.T.astype(np.float64) + self.intercept_)

    def _check(self, X: Matrix, y: Matrix, sample_weight: Any) -> tuple[Matrix, npt.NDArray[np.int64], Matrix | None]:
        """Return (X, class numbers, weights or None), and set ``classes_``."""
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"a classifier needs at least two classes, got one class: {self.classes_!r}")
        weights = None
        if sample_weight is not None:
            weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        balance = getattr(self, "class_weight", None)
        if balance is not None:
            per_class = compute_class_weight(balance, classes=self.classes_, y=y, sample_weight=weights)
            weights = per_class[labels] * (1.0 if weights is None else weights)
        return X, labels.astype(np.int64), weights

    def _problem(self, X: Matrix, labels: Matrix, weights: Matrix | None) -> Problem:
        X, labels, weights = _merge_equal_rows(X, labels, weights)
        return Problem(X, labels, n_classes=len(self.classes_), sample_weight=weights)

    def _names(self) -> tuple[str, ...]:
        return tuple(str(i) for i in range(len(self.classes_)))


class LinearClassifier(_Classifier):
    """Softmax regression with L2, L1 or group-L1 penalties, solved to a certified gap.

    The objective is ``train_head``'s: the mean cross-entropy of standardised features, plus l1·‖W‖₁ + (l2/2)·‖W‖²_F +
    group_l1·Σ_j ‖W_:,j‖₂. C of scikit-learn is 1/(n·l2), for two classes 2/(n·l2).

    Parameters
    ----------
    l2, l1, group_l1 : float
        Strengths of the penalties, at least 0; one must be above 0.
    tol : float
        Relative gap to the optimum at which the fit ends, above 0.
    class_weight : dict, "balanced" or None
        As scikit-learn's.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.
    coef_, intercept_ : ndarray of shape (n_classes, n_features), (n_classes,)
        float32, acting on raw features.
    head_ : LinearHead
        The same as a head, to save or merge.
    solution_ : Solution
        Objective and certified gap.
    n_iter_ : int
        Passes over the rows.

    Raises
    ------
    InputError
        By ``fit``, for a parameter outside its range.

    Examples
    --------
    >>> X = [[0.0, 1.0], [1.0, 1.0], [2.0, 1.5], [3.0, 0.5]]
    >>> classifier = LinearClassifier(l2=0.1).fit(X, ["low", "low", "high", "high"])
    >>> classifier.predict([[0.5, 1.0], [2.5, 1.0]])
    array(['low', 'high'], dtype='<U4')
    >>> classifier.solution_.gap < 1e-6
    True
    """

    def __init__(
        self,
        *,
        l2: float = 1e-2,
        l1: float = 0.0,
        group_l1: float = 0.0,
        tol: float = 1e-6,
        class_weight: Any = None,
    ) -> None:
        self.l2 = l2
        self.l1 = l1
        self.group_l1 = group_l1
        self.tol = tol
        self.class_weight = class_weight

    def fit(self, X: Matrix, y: Matrix, sample_weight: Any = None) -> Self:
        """Return self, fitted on rows X (n, n_features) and labels y (n,); a weight of w counts as w equal rows."""
        _check_strengths({"l2": self.l2, "l1": self.l1, "group_l1": self.group_l1}, self.tol)
        X, labels, weights = self._check(X, y, sample_weight)
        problem = self._problem(X, labels, weights)
        self._keep(solve(problem, l1=self.l1, l2=self.l2, group_l1=self.group_l1, tolerance=self.tol))
        return self

    def _keep(self, solution: Solution) -> None:
        _warn_unless_solved(solution, self.tol)
        self.solution_ = solution
        self.coef_, self.intercept_ = solution.raw_weight(), solution.raw_bias()
        self.head_ = LinearHead(classes=self._names(), weight=self.coef_, bias=self.intercept_)
        self.n_iter_ = max(1, round(solution.passes))


class LinearClassifierCV(LinearClassifier):
    """A `LinearClassifier` whose L2 penalty is chosen by stratified folds over a warm-started path.

    Parameters
    ----------
    l2s : sequence of float or None
        The penalties to choose from; None: a grid from the one at which all weights are 0 downwards.
    cv : int or splitter
        A number of folds or any scikit-learn splitter.
    tol, class_weight
        As for `LinearClassifier`.

    Attributes
    ----------
    l2_ : float
        The chosen penalty.
    l2s_, scores_ : ndarray of shape (n_values,)
        The penalties, strongest first, and the mean accuracy of each on the held-out folds.

    Examples
    --------
    >>> X = [[0.0], [1.0], [2.0], [3.0], [10.0], [11.0], [12.0], [13.0]]
    >>> classifier = LinearClassifierCV(l2s=[1.0, 0.1], cv=2).fit(X, [0, 0, 0, 0, 1, 1, 1, 1])
    >>> classifier.scores_, classifier.l2_
    (array([1., 1.]), 1.0)
    """

    def __init__(self, *, l2s: Any = None, cv: Any = 5, tol: float = 1e-6, class_weight: Any = None) -> None:
        self.l2s = l2s
        self.cv = cv
        self.tol = tol
        self.class_weight = class_weight

    def fit(self, X: Matrix, y: Matrix, sample_weight: Any = None) -> Self:
        """Return self, fitted on all rows with the penalty that did best on held-out folds.

        Raises `InputError` for a penalty that is no number of at least 0, and for an empty list of them.
        """
        strengths = {} if self.l2s is None else {f"l2s[{i}]": value for i, value in enumerate(self.l2s)}
        _check_strengths(strengths, self.tol)
        if self.l2s is not None and not strengths:
            raise InputError("l2s must be None or hold a penalty, got none")
        X, labels, weights = self._check(X, y, sample_weight)
        values = sorted((float(value) for value in strengths.values()), reverse=True) or None
        path = solve_path(self._problem(X, labels, weights), penalty="l2", values=values, tolerance=self.tol)
        self.l2s_ = np.array([solution.l2 for solution in path])
        scores: list[list[float]] = []
        for train, held_out in check_cv(self.cv, labels, classifier=True).split(X, labels):
            problem = self._problem(X[train], labels[train], None if weights is None else weights[train])
            share = None if weights is None else weights[held_out]
            matrix = X[held_out].astype(np.float64)
            scores.append([])
            for solution in solve_path(problem, penalty="l2", values=self.l2s_, tolerance=self.tol):
                logits = matrix @ solution.raw_weight().T.astype(np.float64) + solution.raw_bias()
                right = logits.argmax(axis=1) == labels[held_out]
                scores[-1].append(float(np.average(right, weights=share)))
        self.scores_ = np.mean(scores, axis=0)
        best = int(self.scores_.argmax())
        self.l2_ = float(self.l2s_[best])
        self._keep(path[best])
        return self


class PrototypeClassifier(_Classifier):
    """The nearest class mean, by angle (``cosine``) or by distance in standardised features (``euclidean``).

    Parameters
    ----------
    metric : str
        ``cosine`` or ``euclidean``.
    sharpness : float
        What the similarities are multiplied by before the softmax, above 0; it changes no decision.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.
    head_ : PrototypeHead
        The means, to save or merge.

    Examples
    --------
    >>> classifier = PrototypeClassifier(metric="euclidean").fit([[0.0], [1.0], [4.0], [5.0]], [0, 0, 1, 1])
    >>> classifier.predict([[2.0], [3.0]])
    array([0, 1])
    """

    def __init__(self, *, metric: str = "cosine", sharpness: float = 10.0) -> None:
        self.metric = metric
        self.sharpness = sharpness

    def fit(self, X: Matrix, y: Matrix, sample_weight: Any = None) -> Self:
        """Return self, fitted on rows X (n, n_features) and labels y (n,); a weight of w counts as w equal rows.

        Raises `InputError` for another metric, a sharpness that is not above 0, and a class without a weighty row.
        """
        if self.metric not in METRICS:
            raise InputError(f"metric must be one of {METRICS!r}, got {self.metric!r}")
        if not _is_number(self.sharpness) or not 0 < self.sharpness < math.inf:
            raise InputError(f"sharpness must be a number above 0, got {self.sharpness!r}")
        X, labels, weights = self._check(X, y, sample_weight)
        X, labels, weights = _merge_equal_rows(X, labels, weights)
        missing = np.setdiff1d(np.arange(len(self.classes_)), labels)
        if len(missing):
            raise InputError(f"every class needs a row of positive weight, {self.classes_[missing[0]]} has none")
        arrays = fit_prototypes(X, labels, n_classes=len(self.classes_), metric=self.metric, weights=weights)
        self.head_ = PrototypeHead(classes=self._names(), sharpness=self.sharpness, **arrays)
        return self

    def _logits(self, X: Matrix) -> Matrix:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        head: PrototypeHead = self.head_
        z = (X - head.center) * head.scale.astype(np.float64)
        if head.metric == "euclidean":
            return np.asarray(self.sharpness * (z @ head.prototypes.T - 0.5 * (head.prototypes**2).sum(axis=1)))
        length = np.sqrt((z * z).sum(axis=1, keepdims=True))
        return np.asarray(self.sharpness * (z / np.maximum(length, 1e-12)) @ head.prototypes.T)


class LinearRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Least squares with L2, L1 or group-L1 penalties on standardised features, one or several targets.

    The objective is mean(‖y − W·z − b‖²)/2 + l1·‖W‖₁ + (l2/2)·‖W‖²_F + group_l1·Σ_j ‖W_:,j‖₂.

    Parameters
    ----------
    l2, l1, group_l1 : float
        Strengths of the penalties, at least 0; one must be above 0.
    tol : float
        Relative gap to the optimum at which the fit ends, above 0.

    Attributes
    ----------
    coef_, intercept_ : ndarray of shape (n_targets, n_features), (n_targets,)
        float32, acting on raw features.
    solution_ : Solution
        Objective and certified gap.

    Examples
    --------
    A penalty of 1 on a standardised feature halves the slope of least squares, here 2:

    >>> regressor = LinearRegressor(l2=1.0).fit([[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0])
    >>> regressor.predict([[3.0]]).round(3)
    array([5.])
    """

    def __init__(self, *, l2: float = 1e-3, l1: float = 0.0, group_l1: float = 0.0, tol: float = 1e-6) -> None:
        self.l2 = l2
        self.l1 = l1
        self.group_l1 = group_l1
        self.tol = tol

    def fit(self, X: Matrix, y: Matrix, sample_weight: Any = None) -> Self:
        """Return self, fitted on rows X (n, n_features) and targets y (n,) or (n, n_targets)."""
        _check_strengths({"l2": self.l2, "l1": self.l1, "group_l1": self.group_l1}, self.tol)
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], multi_output=True, y_numeric=True)
        weights = None
        if sample_weight is not None:
            weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        self._flat = y.ndim == 1
        X, targets, weights = _merge_equal_rows(X, np.asarray(y, dtype=np.float64).reshape(len(X), -1), weights)
        problem = Problem(X, targets, loss="squared", n_classes=targets.shape[1], sample_weight=weights)
        solution = solve(problem, l1=self.l1, l2=self.l2, group_l1=self.group_l1, tolerance=self.tol)
        _warn_unless_solved(solution, self.tol)
        self.solution_ = solution
        self.coef_, self.intercept_ = solution.raw_weight(), solution.raw_bias()
        self.n_iter_ = max(1, round(solution.passes))
        return self

    def predict(self, X: Matrix) -> Matrix:
        """Return the predicted targets, of the shape that y had."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        values = X @ self.coef_.T.astype(np.float64) + self.intercept_
        return np.asarray(values[:, 0] if self._flat else values)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
