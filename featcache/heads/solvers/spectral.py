"""L2-penalised heads along a path of penalties: one eigendecomposition of the Gram matrix serves every penalty.

The Hessian of softmax and sigmoid is close to ``C (x) Z'WZ``, C the ``(k, k)`` curvature in the bias at the present
predictions. With ``Z'WZ = Q diag(a) Q'`` and ``C = V diag(g) V'`` its inverse with any ridge is two rotations and one
division (Boehning 1992 for the idea, with a bound in place of C), which limited-memory BFGS then corrects (Nocedal
1980). What it learnt stays true for the next penalty: a pair of a step and the change of the data term's gradient
knows no ridge. The logits move with the weights, so that line searches and the start of a penalty, a point on the
line through two solutions near it (weights are smooth in the logarithm of the penalty), need no product with the rows.
"""

from __future__ import annotations

import numpy as np

from featcache.heads.solvers.certificate import relative_gap
from featcache.heads.solvers.interface import Fit, Solver, Start
from featcache.heads.solvers.logits import backward, bias_curvature, certified, forward
from featcache.heads.solvers.penalty import Penalty
from featcache.heads.solvers.prepared import Prepared
from featcache.heads.solvers.rows import Float32, Float64, chunk_rows, dot, map_chunks
from featcache.heads.solvers.state import State

MEMORY = 10
STEPS = 16  # in one fit; where they do not suffice, the other solvers go on from there
STEPS_WITH_MEMORY = 10  # after which what was learnt elsewhere is forgotten: it may be what misleads
KEPT_POINTS, KEPT_NUMBERS = 8, 1 << 27  # solutions whose logits are kept, as many as are worth so many numbers
REFRESH = 8  # fits after which the logits are computed from the weights, not moved along: rounding adds up
DRIFT = 0.1  # relative change of the loss that makes the curvature worth computing anew


class Spectral(Solver):
    """The eigenvectors of one prepared problem, and what its last fits leave for the next."""

    def __init__(self, prepared: Prepared) -> None:
        """Begin with nothing learnt but the spectrum of the rows."""
        self._prepared, self._matrix = prepared, prepared.rows.matrix
        self._values, self._vectors = prepared.spectrum
        self._pairs: list[tuple[Float32, Float32, Float32, Float32, float, float]] = []
        self._points: list[tuple[float, Float32, Float32, Float32]] = []  # l2, weight, bias, logits
        self._loss_at_curvature = np.nan  # no loss is near it: the first is always computed
        self._fits = 0
        # arrays as large as the logits are kept: the pages of new ones cost as much as what is computed in them
        shape = (len(self._matrix), prepared.n_outputs)
        self._residuals: Float32 = np.empty(shape, dtype=np.float32)
        self._change: Float32 = np.empty(shape, dtype=np.float32)

    def _bend(self, logits: Float32, loss: float) -> None:
        """Decompose the curvature in the bias at `logits`, where the loss has moved enough since the last time."""
        if abs(loss - self._loss_at_curvature) <= DRIFT * abs(self._loss_at_curvature):
            return
        curvature = bias_curvature(self._prepared, logits)
        if self._prepared.loss.kind == "softmax":  # moving all logits alike changes nothing: no step may grow along it
            curvature += np.trace(curvature) / len(curvature) ** 2
        values, vectors = np.linalg.eigh(curvature)
        useful = values > 1e-9 * values[-1]
        self._bias_inverse: Float64 = (vectors * np.where(useful, 1.0 / np.where(useful, values, 1.0), 0.0)) @ vectors.T
        self._class_values: Float32 = np.maximum(values, 0.0).astype(np.float32)
        self._class_vectors: Float32 = vectors.astype(np.float32)
        self._loss_at_curvature = loss

    def _residual(self, logits: Float32, change: Float32 | None, step: float) -> tuple[Float32, float, Float64, float]:
        """Return the weighted residuals at ``logits - step * change``, the loss, its slope in the bias and along it.

        The residuals are overwritten by the next call.
        """
        n, k = logits.shape
        residual = self._residuals
        size = chunk_rows(k)
        sums: Float32 = np.empty((-(-n // size), k), dtype=np.float32)
        along: Float64 = np.zeros(len(sums))
        ones, length = np.ones(size, dtype=np.float32), np.float32(-step)

        def move(start: int, stop: int) -> float:
            part = residual[start:stop]
            if change is None:
                part[...] = logits[start:stop]
            else:
                np.multiply(change[start:stop], length, out=part)
                part += logits[start:stop]
            loss = self._prepared.loss.residual(part, start)
            chunk = start // size
            sums[chunk] = ones[: stop - start] @ part
            if change is not None:
                along[chunk] = np.vdot(part, change[start:stop])
            return loss

        loss = map_chunks(n, k, move)
        slope: Float64 = sums.sum(axis=0, dtype=np.float64)
        return residual, loss, slope, float(along.sum())

    def _direction(self, gradient: Float32, slope: Float32, l2: float) -> tuple[Float32, Float32]:
        """Return the approximate inverse Hessian times the gradient: the direction to subtract."""
        ridge = np.float32(l2)
        d, b = gradient.copy(), slope.copy()
        shares: list[float] = []
        for s, sb, y, yb, sy, ss in reversed(self._pairs):
            share = (dot(s, d) + dot(sb, b)) / (sy + l2 * ss)
            shares.append(share)
            d -= np.float32(share) * y
            d -= np.float32(share) * ridge * s
            b -= np.float32(share) * yb
        rotated: Float32 = np.matmul(self._class_vectors.T @ d, self._vectors, dtype=np.float32)
        rotated /= np.outer(self._class_values, self._values) + ridge
        d = np.matmul(self._class_vectors @ rotated, self._vectors.T, dtype=np.float32)
        b = (self._bias_inverse @ b).astype(np.float32)
        for (s, sb, y, yb, sy, ss), share in zip(self._pairs, reversed(shares), strict=True):
            back = np.float32(share - (dot(y, d) + l2 * dot(s, d) + dot(yb, b)) / (sy + l2 * ss))
            d += back * s
            b += back * sb
        return d, b

    def _search(
        self, logits: Float32, change: Float32, weight: Float32, d: Float32, *, l2: float, slope: float
    ) -> tuple[float, Float32, float, Float64]:
        """Return the step, the weighted residuals there, the loss and its slope in the bias: by slopes, no products."""
        across, square = l2 * dot(weight, d), l2 * dot(d, d)
        low, low_slope, high, high_slope = 0.0, -slope, 0.0, 0.0
        step = 1.0
        for _ in range(8):
            residual, loss, bias_slope, along = self._residual(logits, change, step)
            slope_there = step * square - across - along
            if abs(slope_there) <= 0.4 * slope:
                break
            if slope_there > 0.0:
                high, high_slope = step, slope_there
            else:
                low, low_slope = step, slope_there
            width = high - low
            step = low + width * min(max(-low_slope / (high_slope - low_slope), 0.1), 0.9) if high else 2.0 * step
        return step, residual, loss, bias_slope

    def _begin(self, start: Start, l2: float) -> tuple[Float32, Float32, Float32]:
        """Return weights, bias and logits to begin at: on the line through kept points, if `start` is one of them.

        The logits are the caller's to change.
        """
        self._fits += 1
        points = [point for point in self._points if point[1].shape == start.weight.shape]
        if not any(np.array_equal(point[1], start.weight) for point in points):
            return start.weight, start.bias, forward(self._prepared, start.weight, start.bias)
        points.sort(key=lambda point: abs(np.log(point[0] / l2)))
        first, weight, bias, logits = points[0]
        if len(points) > 1 and points[1][0] != first:
            second, weight2, bias2, logits2 = points[1]
            share = np.float32(np.clip(np.log(l2 / first) / np.log(first / second), -1.0, 2.0))
            weight, bias = weight + share * (weight - weight2), bias + share * (bias - bias2)
            ahead = logits - logits2
            ahead *= share
            ahead += logits
            logits = ahead
        else:
            logits = logits.copy()
        if self._fits % REFRESH == 0:
            logits = forward(self._prepared, weight, bias)
        return weight, bias, logits

    def minimise(self, start: Start, *, penalty: Penalty, tolerance: float, max_passes: float) -> Fit:
        """Return the minimum of data term + l2/2 |W|^2, l2 above 0, or where few steps did not suffice."""
        prepared, l2 = self._prepared, penalty.l2
        limit = prepared.passes + max_passes
        weight, bias, logits = self._begin(start, l2)
        residual, loss, slope, _ = self._residual(logits, None, 0.0)
        before: tuple[Float32, Float64, Float32, Float32] | None = None
        for count in range(STEPS + 1):
            self._bend(logits, loss)
            if float(np.abs(slope / prepared.loss.mean_target).max()) > 1e-6:  # what a certificate needs of the bias
                move = self._bias_inverse @ slope
                shift = (move / max(1.0, float(np.abs(move).max()))).astype(np.float32)
                logits -= shift
                bias = bias - shift
                residual, loss, slope, _ = self._residual(logits, None, 0.0)
            gradient = backward(prepared, residual)
            if before is not None:
                self._learn(gradient - before[0], (slope - before[1]).astype(np.float32), before[2], bias - before[3])
            state = State(weight, bias, loss, gradient, slope)
            gap = relative_gap(prepared, state, penalty)
            total = gradient + np.float32(l2) * weight
            if gap > tolerance and dot(total, total) <= l2 * tolerance * state.objective(penalty):
                state, shift = certified(prepared, logits, weight, bias, self._bias_inverse)
                logits += shift
                gap, bias = relative_gap(prepared, state, penalty), state.bias
                gradient, slope, total = state.gradient, state.bias_gradient, state.gradient + np.float32(l2) * weight
            if gap <= tolerance or count == STEPS or prepared.passes >= limit:
                break
            if count == STEPS_WITH_MEMORY:
                self._pairs.clear()
            bias_total = slope.astype(np.float32)
            d, db = self._direction(total, bias_total, l2)
            down = dot(total, d) + dot(bias_total, db)
            if not down > 0.0:
                self._pairs.clear()
                break
            change = np.matmul(self._matrix, d.T, out=self._change)
            change += db
            prepared.passes += 0.5
            step, residual, loss, slope_there = self._search(logits, change, weight, d, l2=l2, slope=down)
            change *= np.float32(step)
            logits -= change
            s = np.float32(-step) * d
            before = (gradient, slope, s, bias)
            weight, bias, slope = weight + s, bias - np.float32(step) * db, slope_there
        kept = min(KEPT_POINTS, max(2, KEPT_NUMBERS // logits.size))
        others = [point for point in self._points if point[0] != l2]
        self._points = [*others, (l2, weight, bias, logits)][-kept:]
        return Fit(state, gap, gap <= tolerance)

    def _learn(self, y: Float32, yb: Float32, s: Float32, sb: Float32) -> None:
        product = dot(s, y) + dot(sb, yb)
        if product > 0.0:
            self._pairs = [*self._pairs, (s, sb, y, yb, product, dot(s, s))][-MEMORY:]
