"""What every penalty shares: the standardised rows, the loss on them, their Gram matrix, the constants of the dual."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.heads.solvers import active
from featcache.heads.solvers.active import ActiveSet
from featcache.heads.solvers.coarse import TwoLevel, pays
from featcache.heads.solvers.losses import Loss
from featcache.heads.solvers.newton import Newton, fits
from featcache.heads.solvers.problem import Problem
from featcache.heads.solvers.rows import Float32, Float64, StandardisedRows, pull_back
from featcache.heads.solvers.smooth import pseudo_inverse
from featcache.heads.solvers.spectral import Spectral

KEEP_BYTES = 1 << 29  # logits kept between the Newton steps of a bias


class Prepared:
    """A problem made ready for any number of fits; `passes` counts the sweeps over the rows so far.

    Not thread-safe: the buffers are shared by every evaluation. Built by `prepare`.
    """

    def __init__(self, problem: Problem) -> None:
        """Standardise the rows (two reads of the features in memory, one of a stream)."""
        self.problem = problem
        self.rows = StandardisedRows(problem)
        self.loss = Loss(problem, self.rows.weights)
        self.n_features, self.n_outputs = problem.n_features, problem.n_outputs
        self.passes = 0.0
        self._logits: Float32 | None = None
        self._anchor: Float32 | None = None
        self._known_mean: Float64 = np.zeros(self.n_features)
        self._gram: Float64 | None = None
        self._two_level: TwoLevel | None = None
        self._newton: Newton | None = None
        self._spectral: Spectral | None = None
        self._active: ActiveSet | None = None
        self._difference: Prepared | None = None
        self._inverse: tuple[float, float, Float32] | None = None

    def evaluate(self, weight: NDArray[Any], bias: NDArray[Any], gradient: NDArray[Any]) -> tuple[float, Float64]:
        """Return the data loss and its bias gradient ``(k,)``; write its weight gradient ``(k, d)`` into `gradient`.

        Products are float32, sums over rows of the loss float64. One pass.
        """
        total = 0.0
        bias_gradient: Float64 = np.zeros(self.n_outputs)
        gradient[...] = 0.0
        for start, block in self.rows.blocks():
            logits = self._block_logits(block, weight, bias)
            total += self.loss.residual(logits, start)
            bias_gradient += logits.sum(axis=0, dtype=np.float64)
            gradient += pull_back(logits, block)
        self.passes += 1.0
        return total, bias_gradient

    def _block_logits(self, block: Float32, weight: NDArray[Any], bias: NDArray[Any]) -> Float32:
        if self._logits is None or len(self._logits) < len(block):
            self._logits = np.empty((len(block), self.n_outputs), dtype=np.float32)
        logits = self._logits[: len(block)]
        np.matmul(block, weight.T, out=logits)
        logits += np.asarray(bias, dtype=np.float32)
        return logits

    def evaluate_best_bias(
        self, weight: NDArray[Any], bias: NDArray[Any], gradient: NDArray[Any], *, exact: bool
    ) -> tuple[float, Float64, Float64]:
        """Return the data loss, its bias gradient and the bias float64 ``(k,)`` that is best for `weight`.

        A free bias makes the dual feasible only where its gradient is zero, so a certificate needs it far better than
        descent brings it: Newton steps on k numbers, on logits kept from one forward product (recomputed where they
        would take over half a GiB). With `exact` the logits and the loss are float64. Writes the weight gradient.
        """
        kind = np.dtype(np.float64 if exact else np.float32)
        keep = self.rows.matrix is not None and self.rows.n_rows * self.n_outputs * kind.itemsize <= KEEP_BYTES
        kept: list[tuple[int, Float32, NDArray[Any]]] = []
        wide = weight.astype(kind, copy=False).T

        def forward() -> Iterator[tuple[int, Float32, NDArray[Any]]]:
            if kept and kept[-1][0] + len(kept[-1][1]) == self.rows.n_rows:
                yield from kept
                return
            self.passes += 0.5
            for start, block in self.rows.blocks():
                logits = block.astype(kind, copy=False) @ wide
                if keep:
                    kept.append((start, block, logits))
                yield start, block, logits

        best = np.asarray(bias, dtype=np.float64)
        inverse: Float64 | None = None
        for _ in range(6):
            total, slope = 0.0, np.zeros(self.n_outputs)
            curvature = np.zeros((self.n_outputs, self.n_outputs)) if inverse is None else None
            for start, _block, logits in forward():
                shifted = logits + best.astype(kind)
                if curvature is not None:
                    curvature += self.loss.bias_curvature(shifted.copy(), start)
                total += self.loss.residual(shifted, start)
                slope += shifted.sum(axis=0, dtype=np.float64)
            if curvature is not None:
                inverse = pseudo_inverse(curvature)
            assert inverse is not None
            if float(np.abs(slope / np.maximum(self.loss.mean_target, 1e-6)).max()) < (1e-9 if exact else 1e-7):
                break
            step = inverse @ slope
            if not exact and float(np.abs(step).max()) < 1e-7:
                break
            best = best - step / max(1.0, float(np.abs(step).max()))
        gradient[...] = 0.0
        total, slope = 0.0, np.zeros(self.n_outputs)
        for start, block, logits in forward():
            shifted = logits + best.astype(kind)
            total += self.loss.residual(shifted, start)
            slope += shifted.sum(axis=0, dtype=np.float64)
            gradient += pull_back(shifted.astype(np.float32, copy=False), block)
        self.passes += 0.5
        return total, slope, best

    @property
    def anchor(self) -> Float32:
        """Return ``sum_i w_i y_i z_i'`` ``(k, d)`` (with the teacher's part): minus the gradient at zero weights."""
        if self._anchor is None:
            anchor = np.zeros((self.n_outputs, self.n_features), dtype=np.float32)
            known = np.zeros(self.n_features)
            distilled = self.problem.distillation is not None
            for start, block in self.rows.blocks():
                stop = start + len(block)
                pull = self.loss.pull(start, stop) * self.rows.weights[start:stop, None]
                anchor += pull_back(pull, block)
                if distilled:
                    mask = np.asarray(self.problem.targets)[start:stop] >= 0
                    known += (self.rows.weights[start:stop] * mask) @ block
            self._anchor, self._known_mean = anchor, known
            self.passes += 0.5
        return self._anchor

    def make_feasible(self, gradient: NDArray[Any], g: Float64, conjugate: float) -> tuple[NDArray[Any], float]:
        """Return weight gradient and conjugate of a dual point that the free bias allows, near the residual's own."""
        if self.loss.kind == "squared":  # the constraint is met by subtracting the mean, and z sums to zero
            return gradient, conjugate - 0.5 * float(g @ g) - float(g @ self.loss.mean_target)
        share, q, constant = self.loss.constant_dual(g)
        away: NDArray[Any] = -self.anchor
        if self.problem.distillation is not None:  # the labelled rows alone need not average to zero
            away = away + np.outer(q, self._known_mean)
        mixed = (1.0 - share) * gradient + share * away
        return mixed, (1.0 - share) * conjugate + share * constant

    def restrict(self, columns: NDArray[np.int64]) -> Prepared:
        """Return the problem with only `columns` of the features: what a working set is solved on."""
        part = Prepared.__new__(Prepared)
        part.__dict__.update(self.__dict__)
        part.rows = self.rows.restrict(columns)
        part.n_features = len(columns)
        part._anchor = np.ascontiguousarray(self.anchor[:, columns])
        part._known_mean = self._known_mean[columns]
        part._gram = part._inverse = part._two_level = part._newton = part._spectral = part._active = (
            part._difference
        ) = None
        part._logits = None
        part.passes = 0.0
        return part

    def null_point(self) -> tuple[Float32, Float32]:
        """Return ``(gradient, bias)`` at zero weights and their best bias: where every path begins."""
        bias = self.loss.initial_bias()
        if self.problem.distillation is None or self.problem.distillation.temperature == 1.0:
            return -self.anchor, bias
        gradient = np.empty((self.n_outputs, self.n_features), dtype=np.float32)
        flat = np.zeros_like(gradient)
        for _ in range(50):  # a fixed point in k numbers: the two terms' softmaxes differ in temperature
            _, bias_gradient = self.evaluate(flat, bias, gradient)
            if np.abs(bias_gradient).max() < 1e-7:
                break
            bias = (bias - bias_gradient / np.maximum(np.exp(bias), 1e-3)).astype(np.float32)
        return gradient, bias

    @property
    def two_level(self) -> TwoLevel | None:
        """Return the two-level solver of this problem, None where one level is expected to be faster."""
        if self._two_level is None and pays(self):
            self._two_level = TwoLevel(self)
        return self._two_level

    @property
    def spectral(self) -> Spectral | None:
        """Return the solver for paths of L2 penalties, None where it is not expected to be the fastest."""
        if self._spectral is None and pays(self) and self.loss.kind != "squared":
            self._spectral = Spectral(self)
        return self._spectral

    @property
    def active(self) -> ActiveSet | None:
        """Return the L1 solver for one output, None where there are several or the rows are streamed."""
        if self._active is None and active.fits(self):
            self._active = ActiveSet(self)
        return self._active

    @property
    def difference(self) -> Prepared | None:
        """Return the same rows as a problem of one output, None unless this is a softmax of two classes.

        Their softmax is the sigmoid of the difference of the logits, and of all weights with one difference w those
        of least L1, L2 or group norm are -w/2 and w/2.
        """
        two = self.loss.kind == "softmax" and self.n_outputs == 2 and self.problem.distillation is None
        if self._difference is None and two and self.rows.matrix is not None:
            given = self.problem
            part = self.restrict(np.arange(0))
            part.problem = Problem(
                features=given.features,
                targets=self.loss.targets(0, self.rows.n_rows)[:, 1:],
                loss="sigmoid",
                sample_weight=given.sample_weight,
            )
            part.rows, part.loss = self.rows, Loss(part.problem, self.rows.weights)
            part.n_features, part.n_outputs = self.n_features, 1
            part._anchor, part._known_mean = None, np.zeros(self.n_features)
            self._difference = part
        return self._difference

    @property
    def newton(self) -> Newton | None:
        """Return the Newton solver of this problem, None where the rows are streamed or too many."""
        if self._newton is None and fits(self):
            self._newton = Newton(self)
        return self._newton

    def preconditioner(self, curvature: float, l2: float) -> Float32:
        """Return ``(curvature * gram + l2)^-1`` ``(d, d)`` float32; the last is kept while its strengths are near."""
        if self._inverse is not None:
            old_curvature, old_l2, inverse = self._inverse
            if 0.3 < curvature / old_curvature < 3.0 and 0.3 < l2 / old_l2 < 3.0:
                return inverse
        system = (curvature * self.gram).astype(np.float32)
        system[np.diag_indices(self.n_features)] += np.float32(l2)
        inverse = np.linalg.inv(system)
        inverse += inverse.T.copy()
        inverse *= np.float32(0.5)
        self._inverse = (curvature, l2, inverse)
        return inverse

    @property
    def gram(self) -> Float64:
        """Return the weighted Gram matrix ``Z' diag(w) Z`` ``(d, d)`` float64, blocks multiplied in float32."""
        if self._gram is None:
            gram: Float64 = np.zeros((self.n_features, self.n_features))
            for start, block in self.rows.blocks():
                scaled = block * np.sqrt(self.rows.weights[start : start + len(block), None])
                gram += scaled.T @ scaled
            self._gram = gram
            self.passes += 1.0
        return self._gram


def prepare(problem: Problem) -> Prepared:
    """Return `problem` with its rows standardised, ready to be solved for any number of penalties."""
    return Prepared(problem)
