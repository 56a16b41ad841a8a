"""L1-penalised heads of one output by Newton steps whose lasso is solved exactly on the columns that count.

A proximal Newton step minimises the quadratic model of the loss plus the penalty (Lee, Sun and Saunders 2014; the step
of Friedman, Hastie and Tibshirani 2010). Along a path few columns are not zero, so the model's lasso is solved there by
an active set with signs: where the signs are right, its solution is one linear system, and columns whose sign turns
leave, columns that break their condition enter, together (Lee et al. 2006; Kim and Park 2010 for many at once). One
product of the rows that count with themselves and a few small systems replace hundreds of sweeps of coordinate descent.
The columns that may count are those of the sequential strong rule (Tibshirani et al. 2012); every gap and every
condition is computed on all of them. Zeros are exact: a column that is out is never written to.

What limits it: a solution with thousands of non-zeros, whose systems cost their cube; those are left to `proximal`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featcache.heads.solvers.certificate import relative_gap
from featcache.heads.solvers.interface import Fit, Solver, Start
from featcache.heads.solvers.penalty import Penalty
from featcache.heads.solvers.prepared import Prepared
from featcache.heads.solvers.rows import Float32, Float64
from featcache.heads.solvers.state import State

MOST_COLUMNS = 1500  # in one lasso
STEPS = 30
_NOISE = 1e-6  # relative, of an objective: a step that raises it by more went wrong
_LEAST_DAMPING, _MORE_DAMPING, _MOST_DAMPING = 1e-6, 30.0, 1e-2  # of the Hessian, in shares of its mean diagonal
ROUNDS = 25  # in one lasso; after these the candidate is only a direction, and the line search decides


@dataclass(frozen=True, slots=True)
class _Model:
    """`columns` ``(m,)``, their `rows` ``(m, n)``, the `hessian` ``(m, m)``, and how the bias follows each, `side`."""

    columns: NDArray[np.int64]
    rows: Float32
    hessian: Float32
    side: Float32


class ActiveSet(Solver):
    """The columns of one prepared problem of one output, and the point where the last fit ended."""

    def __init__(self, prepared: Prepared) -> None:
        """Keep the rows column by column, ``(d, n)`` float32."""
        matrix = prepared.rows.matrix
        self._prepared = prepared
        self._columns: Float32 = np.ascontiguousarray(matrix.T)
        self._targets: Float64 = prepared.loss.targets(0, len(matrix))[:, 0].astype(np.float64)
        self._weights: Float64 = prepared.rows.weights.astype(np.float64)
        self._squared = prepared.loss.kind == "squared"
        self._points: list[tuple[float, Float32, float]] = []  # l1, weight (d,), bias of the last two fits

    def _evaluate(self, logits: Float64) -> tuple[float, Float64, Float64]:
        """Return the loss, the weighted residuals and the weighted second derivatives ``(n,)``."""
        weights, targets = self._weights, self._targets
        if self._squared:
            left = logits - targets
            return 0.5 * float(weights @ (left * left)), weights * left, weights
        decay = np.exp(-np.abs(logits))
        total = 1.0 / (1.0 + decay)
        loss = float(weights @ (np.maximum(logits, 0.0) + np.log1p(decay) - targets * logits))
        predicted = np.where(logits >= 0.0, total, decay * total)
        return loss, weights * (predicted - targets), weights * (decay * total * total)

    def _optimize_bias(self, product: Float64, bias: float) -> tuple[float, float, Float64, Float64]:
        """Return the best bias for `product`, and the evaluation there: Newton steps on one number."""
        for _ in range(20):
            loss, residual, curvature = self._evaluate(product + bias)
            slope = float(residual.sum())
            if abs(slope) < 1e-10:
                break
            bias -= max(min(slope / max(float(curvature.sum()), 1e-12), 2.0), -2.0)
        return bias, loss, residual, curvature

    def minimise(self, start: Start, *, penalty: Penalty, tolerance: float, max_passes: float) -> Fit:
        """Return the penalised minimum over all columns, or where few steps did not suffice."""
        penalty = Penalty(l1=penalty.l1 + penalty.group_l1, l2=penalty.l2)  # a column of one weight is its own group
        prepared = self._prepared
        limit = prepared.passes + max_passes
        within = start.weight[0] != 0
        if start.screen is not None:
            within |= start.screen
        at, beta, product = self._begin(start.weight[0], float(start.bias[0]), penalty.l1)
        beta, loss, residual, curvature = self._optimize_bias(product, beta)
        gradient = self._columns @ residual.astype(np.float32)
        objective = loss + penalty.value(at[None])
        gap, best = np.inf, np.inf
        damping = _LEAST_DAMPING
        model: _Model | None = None
        state = self._state(at, beta, loss, residual, gradient)
        for _ in range(STEPS):
            gap = relative_gap(prepared, state, penalty)
            if gap <= tolerance or prepared.passes >= limit:
                break
            within |= np.abs(gradient) > penalty.l1
            chosen = np.flatnonzero(within)
            if not 0 < len(chosen) <= MOST_COLUMNS:
                break
            if model is None or not np.array_equal(model.columns, chosen):
                model = self._model(chosen, curvature, penalty.l2, damping)
            here = at[chosen]
            slope = gradient[chosen] + np.float32(penalty.l2) * here
            move = _lasso(model.hessian, slope, here, penalty.l1) - here
            change: Float64 = (move @ model.rows).astype(np.float64)
            drift = -float(model.side @ move)
            step = 1.0
            while True:
                trial: Float32 = here + np.float32(step) * move
                weight_there = at.copy()
                weight_there[chosen] = trial
                beta_now, loss, residual, curvature = self._optimize_bias(product + step * change, beta + step * drift)
                objective_there = loss + penalty.value(weight_there[None])
                if objective_there <= objective + 1e-9 * abs(objective) or step < 1e-3:
                    break
                step *= 0.4
            if objective_there > objective + _NOISE * abs(objective):
                # columns that nearly repeat each other: even a thousandth of the move leads far away, so it is damped
                damping *= _MORE_DAMPING
                if damping > _MOST_DAMPING:
                    break
                _, _, _, curvature = self._optimize_bias(product, beta)
                model = None
                continue
            at, beta, product, objective = weight_there, beta_now, product + step * change, objective_there
            gradient = self._columns @ residual.astype(np.float32)
            prepared.passes += 1.0
            state = self._state(at, beta, loss, residual, gradient)
            if step < 1e-3 or gap > 0.999 * best:
                gap = relative_gap(prepared, state, penalty)
                break
            if gap > 0.1 * best:  # a curvature that is no longer the present one has had its use
                model = None
            best = min(best, gap)
        else:
            gap = relative_gap(prepared, state, penalty)
        self._points = [*self._points, (penalty.l1, at, beta)][-2:]
        return Fit(state, gap, gap <= tolerance)

    def _begin(self, weight: Float32, bias: float, l1: float) -> tuple[Float32, float, Float64]:
        """Return weights, bias and product to start at: on the line through the last two points of a path.

        Between two changes of the signs a lasso's weights are linear in the penalty, those of a logistic loss nearly.
        """
        if len(self._points) == 2 and np.array_equal(self._points[1][1], weight):
            (before, w0, b0), (last, w1, b1) = self._points
            if before > last > l1:
                share = (last - l1) / (before - last)
                ahead = w1 + np.float32(min(share, 2.0)) * (w1 - w0)
                ahead[(w1 == 0) | (ahead * w1 < 0)] = 0
                weight, bias = ahead, b1 + share * (b1 - b0)
        return weight, bias, self._product(weight)

    def _model(self, chosen: NDArray[np.int64], curvature: Float64, l2: float, damping: float) -> _Model:
        """Return the quadratic model of the loss in some columns, the bias already at its best for each move."""
        rows = self._columns[chosen]
        weighted_rows = rows * curvature.astype(np.float32)
        hessian = weighted_rows @ rows.T
        side = weighted_rows.sum(axis=1)
        share = side / np.float32(max(float(curvature.sum()), 1e-12))
        hessian -= np.outer(side, share)
        hessian[np.diag_indices(len(chosen))] += np.float32(l2 + damping * float(np.trace(hessian)) / len(chosen))
        return _Model(chosen, rows, hessian, share)

    def _product(self, weight: Float32) -> Float64:
        used = np.flatnonzero(weight)
        self._prepared.passes += 0.5
        return np.asarray(weight[used] @ self._columns[used], dtype=np.float64)

    def _state(self, at: Float32, beta: float, loss: float, residual: Float64, gradient: Float32) -> State:
        bias: Float32 = np.array([beta], dtype=np.float32)
        return State(at[None], bias, loss, gradient[None], residual.sum(keepdims=True))


def _lasso(hessian: Float32, slope: Float32, start: Float32, l1: float) -> Float32:
    """Return the minimum ``(m,)`` of ``slope'(x - start) + (x - start)'H(x - start) / 2 + l1 |x|_1``, zeros exact."""
    cut = np.float32(l1)
    linear = hessian @ start - slope
    signs = np.where(start != 0, np.sign(start), np.where(np.abs(slope) > cut, -np.sign(slope), 0)).astype(np.float32)
    result = start
    for _ in range(ROUNDS):
        inside = np.flatnonzero(signs)
        candidate = np.zeros_like(start)
        if len(inside):
            solved = np.linalg.solve(hessian[np.ix_(inside, inside)], linear[inside] - cut * signs[inside])
            opposite = solved * signs[inside] <= 0
            if opposite.any():
                signs[inside[opposite]] = 0
                solved[opposite] = 0
                candidate[inside] = solved
                result = candidate
                continue
            candidate[inside] = solved
        result = candidate
        left = hessian @ candidate - linear
        broken = (signs == 0) & (np.abs(left) > np.float32(1.0001) * cut)
        if not broken.any():
            break
        signs[broken] = -np.sign(left[broken])
    return result
