"""What every penalty shares: the standardised rows, the loss on them, their Gram matrix, the constants of the dual.

Nothing here knows a solver; what a solver keeps from fit to fit is kept with the problem by `Prepared.derive`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from featcache.heads.solvers.losses import Loss
from featcache.heads.solvers.partitioned import PartitionedFeatures, PartitionedRows, PartitionedSums
from featcache.heads.solvers.problem import Problem
from featcache.heads.solvers.rows import Float32, Float64, StandardisedRows
from featcache.heads.solvers.sums import LocalSums, RowSums

T = TypeVar("T")


class Prepared:
    """A problem made ready for any number of fits; `passes` counts the sweeps over the rows so far.

    Not thread-safe: the buffers are shared by every evaluation. Built by `prepare`.
    """

    def __init__(self, problem: Problem) -> None:
        """Standardise the rows (two reads of the features in memory, one of a stream or of rows in parts)."""
        self.problem = problem
        self.rows: StandardisedRows
        self.sums: RowSums
        if isinstance(problem.features, PartitionedFeatures):
            self.rows = PartitionedRows(problem, problem.features)
            self.loss = self.rows.loss
            self.sums = PartitionedSums(self.rows)
        else:
            self.rows = StandardisedRows(problem)
            self.loss = Loss(problem, self.rows.weights)
            self.sums = LocalSums(self.rows, self.loss)
        self.n_features, self.n_outputs = problem.n_features, problem.n_outputs
        self.turns = False  # whether the columns are principal components, which are uncorrelated
        self.passes = 0.0
        self._gradient_at_zero: Float32 | None = None
        self._labelled_mean: Float64 = np.zeros(self.n_features)
        self._gram: Float64 | None = None
        self._spectrum: tuple[Float32, Float32] | None = None
        self._derived: dict[Callable[[Prepared], Any], Any] = {}

    def derive(self, make: Callable[[Prepared], T]) -> T:
        """Return ``make(self)``, made at the first call and kept: what is worth sharing between fits."""
        if make not in self._derived:
            self._derived[make] = make(self)
        derived: T = self._derived[make]
        return derived

    def evaluate(self, weight: Float32, bias: Float32) -> tuple[float, Float32, Float64]:
        """Return the data loss, its weight gradient ``(k, d)`` and its bias gradient ``(k,)``.

        Products are float32, sums over rows of the loss float64. One pass.
        """
        self.passes += 1.0
        return self.sums.evaluate(weight, bias)

    @property
    def gradient_at_zero(self) -> Float32:
        """Return the weight gradient ``(k, d)`` at zero weights: ``-sum_i w_i y_i z_i'``, with the teacher's part.

        The columns are centred, so that it depends on no bias, unless a teacher of another temperature takes part.
        """
        if self._gradient_at_zero is None:
            products, self._labelled_mean = self.sums.target_products()
            self._gradient_at_zero = -products
            self.passes += 0.5
        return self._gradient_at_zero

    def make_feasible(self, gradient: NDArray[Any], g: Float64, conjugate: float) -> tuple[NDArray[Any], float]:
        """Return weight gradient and conjugate of a dual point that the free bias allows, near the residual's own."""
        if self.loss.kind == "squared":  # the constraint is met by subtracting the mean, and z sums to zero
            return gradient, conjugate - 0.5 * float(g @ g) - float(g @ self.loss.mean_target)
        share, q, constant = self.loss.constant_dual(g)
        away: NDArray[Any] = self.gradient_at_zero
        if self.problem.distillation is not None:  # the labelled rows alone need not average to zero
            away = away + np.outer(q, self._labelled_mean)
        mixed = (1.0 - share) * gradient + share * away
        return mixed, (1.0 - share) * conjugate + share * constant

    def restrict(self, columns: NDArray[np.int64]) -> Prepared:
        """Return the problem with only `columns` of the features: what a working set is solved on."""
        part = self._copy()
        part.rows = self.rows.restrict(columns)
        part.sums = self.sums.over(part.rows)
        part.n_features = len(columns)
        part._gradient_at_zero = np.ascontiguousarray(self.gradient_at_zero[:, columns])
        part._labelled_mean = self._labelled_mean[columns]
        return part

    def turned(self, scores: Float32, basis: Float32) -> Prepared:
        """Return the problem on `scores` ``(n, r)``, the rows in an orthonormal `basis` ``(d, r)``, as they are.

        They are not standardised again. Its solutions are weights on the scores; their `mean` and `std` say nothing of
        the features.
        """
        part = self._copy()
        part.rows = self.rows.replaced(scores)
        part.sums = LocalSums(part.rows, part.loss)
        part.n_features = scores.shape[1]
        part.turns = True
        part._gradient_at_zero = self.gradient_at_zero @ basis
        part._labelled_mean = self._labelled_mean @ basis
        return part

    def with_targets(self, problem: Problem) -> Prepared:
        """Return `problem`, which differs in its targets and its loss alone, on these standardised rows, shared."""
        part = self._copy()
        part.problem, part.loss = problem, Loss(problem, self.rows.weights)
        part.sums = LocalSums(part.rows, part.loss)
        part.n_outputs = problem.n_outputs
        part._gradient_at_zero, part._labelled_mean = None, np.zeros(self.n_features)
        return part

    def continued(self, problem: Problem, matrix: Float32) -> Prepared:
        """Return `problem`, whose rows are those of `matrix` ``(m, d)``, standardised as the rows here are.

        Its columns are centred as nearly as the two sets of rows are alike, which the certificates take as exact; so is
        the spectrum that of the rows here, where it is known.
        """
        part = self._copy()
        part._spectrum = self._spectrum
        part.rows = self.rows.continued(matrix)
        part.problem, part.loss = problem, Loss(problem, part.rows.weights)
        part.sums = LocalSums(part.rows, part.loss)
        part.n_outputs = problem.n_outputs
        part._gradient_at_zero, part._labelled_mean = None, np.zeros(self.n_features)
        return part

    def _copy(self) -> Prepared:
        """Return this problem without what was computed from its rows."""
        part = Prepared.__new__(Prepared)
        part.__dict__.update(self.__dict__)
        part._gram = part._spectrum = None
        part._derived = {}
        part.passes = 0.0
        return part

    def null_point(self) -> tuple[Float32, Float32]:
        """Return ``(gradient, bias)`` at zero weights and their best bias: where every path begins."""
        bias = self.loss.initial_bias()
        if self.problem.distillation is None or self.problem.distillation.temperature == 1.0:
            return self.gradient_at_zero, bias
        flat = np.zeros((self.n_outputs, self.n_features), dtype=np.float32)
        for _ in range(50):  # a fixed point in k numbers: the two terms' softmaxes differ in temperature
            _, gradient, bias_gradient = self.evaluate(flat, bias)
            if np.abs(bias_gradient).max() < 1e-7:
                break
            bias = (bias - bias_gradient / np.maximum(np.exp(bias), 1e-3)).astype(np.float32)
        return gradient, bias

    @property
    def gram(self) -> Float64:
        """Return the weighted Gram matrix ``Z' diag(w) Z`` ``(d, d)`` float64, blocks multiplied in float32."""
        if self._gram is None:
            self._gram = self.sums.gram()
            self.passes += 1.0
        return self._gram

    @property
    def spectrum(self) -> tuple[Float32, Float32]:
        """Return the eigenvalues ``(d,)``, none below 0, and eigenvectors ``(d, d)`` of the Gram matrix, in float32.

        They shape steps and are in no answer: those of rows that are much alike do as well.
        """
        if self._spectrum is None:
            values, vectors = np.linalg.eigh(self.gram.astype(np.float32))
            self._spectrum = np.maximum(values, np.float32(0)), vectors
        return self._spectrum

    @property
    def known_spectrum(self) -> tuple[Float32, Float32] | None:
        """Return the spectrum if it was computed, or given: of rows that are much alike it may be set."""
        return self._spectrum

    @known_spectrum.setter
    def known_spectrum(self, spectrum: tuple[Float32, Float32] | None) -> None:
        self._spectrum = spectrum


def prepare(problem: Problem) -> Prepared:
    """Return `problem` with its rows standardised, ready to be solved for any number of penalties.

    Parameters
    ----------
    problem : Problem
        Its features are read twice; a stream once, and again in each pass of a fit.

    Returns
    -------
    Prepared
        To be handed to `solve` and `solve_path` as `prepared`; not thread-safe.

    Raises
    ------
    InputError
        For features with NaN or Inf, or a class without a row.

    Examples
    --------
    >>> import numpy as np
    >>> from featcache.heads.solvers import Problem, prepare, solve
    >>> labels = np.arange(60) % 3
    >>> features = np.eye(3)[labels] + np.random.default_rng(0).normal(size=(60, 3))
    >>> prepared = prepare(Problem(features=features, targets=labels))
    >>> solutions = [solve(prepared.problem, l2=l2, prepared=prepared) for l2 in (0.1, 0.01)]
    >>> [solution.gap <= 1e-6 for solution in solutions]
    [True, True]
    """
    return Prepared(problem)
