"""L2-penalised heads by truncated Newton: for rows in memory, few classes, and any condition of the features.

Limited-memory BFGS has to learn the curvature from its steps, which takes thousands of passes where the features'
spectrum is steep. A Newton step solves ``H x = -g`` by conjugate gradients, a pass each, only as far as the step is
worth (Dembo, Eisenstat and Steihaug 1982). H is block-diagonal but for the softmax's coupling, and its blocks differ
little in shape, so that one matrix, ``Z' diag(mean_k w_i psi''_ik) Z + l2``, preconditions every class. It is made once
the iterations have cost as much as it does, and made anew by the same rule (ski rental; Karlin et al. 1988).

The logits move along a line with the weights, so that the line search costs no product at all.
"""

from __future__ import annotations

import numpy as np

from featcache.heads.solvers.bias import pseudo_inverse
from featcache.heads.solvers.certificate import relative_gap
from featcache.heads.solvers.curvature import Curvature
from featcache.heads.solvers.interface import Fit, Solver, Start
from featcache.heads.solvers.inverse import invert_positive_definite
from featcache.heads.solvers.logits import backward, bias_curvature, certified, forward
from featcache.heads.solvers.penalty import Penalty
from featcache.heads.solvers.prepared import Prepared
from featcache.heads.solvers.rows import BLOCK_ROWS, Float32, Float64, dot, pull_back
from featcache.heads.solvers.state import State

MOST_FEATURES = 8192  # above which the inverse would take over 256 MiB
MOST_ITERATIONS = 300  # of conjugate gradients in one step
MOST_RIDGES = 8  # tried, each ten times the one before, until the preconditioner is positive definite
PRODUCT_SPEED = 2.0  # how many times faster than a pass's thin products a square one runs, per operation
LEAST_OBJECTIVE = 0.01  # float32 logits move a certificate by some 1e-9, which below this is more than 1e-7 of it
PATIENCE = 3  # certificates in a row that may fail before rounding is taken to be the limit


class Newton(Solver):
    """The descent of one prepared problem: what it keeps from fit to fit is the preconditioner."""

    def __init__(self, prepared: Prepared) -> None:
        """Begin without a preconditioner."""
        self._prepared, self._matrix = prepared, prepared.rows.matrix
        self._inverse: Float32 | None = None
        self._spent = 0.0
        n, d, k = prepared.rows.n_rows, prepared.n_features, prepared.n_outputs
        self._inverse_cost = (2.0 * n * d * d + 3.0 * d**3) / (4.0 * n * d * k * PRODUCT_SPEED)  # in passes
        self._apply_cost = d / (2.0 * n)

    def _product(self, curvature: Curvature, move: Float32, move_bias: Float32) -> tuple[Float32, Float32, Float32]:
        """Return the change of the logits and the data term's Hessian times a move of weights and bias: one pass."""
        n = len(self._matrix)
        changed = np.empty((n, len(move)), dtype=np.float32)
        product = np.zeros_like(move)
        bias_product: Float64 = np.zeros(len(move))
        for start in range(0, n, BLOCK_ROWS):
            block = self._matrix[start : start + BLOCK_ROWS]
            part = np.matmul(block, move.T, out=changed[start : start + len(block)])
            part += move_bias
            residual_change = curvature.product(part.copy(), start)
            product += pull_back(residual_change, block)
            bias_product += residual_change.sum(axis=0, dtype=np.float64)
        self._prepared.passes += 1.0
        return changed, product, bias_product.astype(np.float32)

    def _certified(self, weight: Float32, bias: Float32, *, exact: bool) -> State:
        """Return the state with its best bias, settled in float64; `exact`: on logits of float64 products too."""
        prepared = self._prepared
        if exact:
            return State.certified(prepared, weight, bias, exact=True)
        logits = forward(prepared, weight, bias)
        return certified(prepared, logits, weight, bias, pseudo_inverse(bias_curvature(prepared, logits)))[0]

    def _precondition(self, curvature: Curvature, l2: float) -> None:
        """Make the preconditioner of this point where the iterations since the last have cost as much."""
        if self._spent < self._inverse_cost or self._matrix.shape[1] > MOST_FEATURES:
            return
        scale = np.sqrt(curvature.row_means())
        d = self._matrix.shape[1]
        system = np.zeros((d, d), dtype=np.float32)
        for start in range(0, len(self._matrix), BLOCK_ROWS):
            block = self._matrix[start : start + BLOCK_ROWS] * scale[start : start + BLOCK_ROWS, None]
            system += block.T @ block
        # Where the ridge is too small for float32's digits the inverse is not positive definite, and no use: one
        # product with a vector shows that, and a larger ridge mends it.
        ridge = max(l2, 1e-6 * float(np.trace(system)) / d)
        probe = np.asarray(np.random.default_rng(0).standard_normal(d), dtype=np.float32)
        self._inverse = None
        for _ in range(MOST_RIDGES):
            system[np.diag_indices(d)] += np.float32(ridge)
            inverse = invert_positive_definite(system)
            wrong = inverse @ (system @ probe) - probe
            if dot(wrong, wrong) < 0.01 * dot(probe, probe):  # false for NaN
                self._inverse = inverse
                break
            ridge *= 10.0
        self._spent = 0.0
        self._prepared.passes += 1.0

    def _step(
        self, curvature: Curvature, total: Float32, bias_total: Float32, *, l2: float, ratio: float, floor: float
    ) -> tuple[Float32, Float32, Float32]:
        """Return ``(x, x_bias, change of the logits)`` with ``H x`` near minus the gradient.

        Ends where the residual's preconditioned norm is `ratio` of the gradient's, or its square below `floor`.
        """
        bias_scale = (1.0 / np.maximum(curvature.output_sums(), 1e-8)).astype(np.float32)
        inverse, ridge = self._inverse, np.float32(l2)
        # the columns have variance 1: without a matrix, the mean curvature is the diagonal
        diagonal = np.float32(1.0 / (l2 + float(curvature.row_means().sum(dtype=np.float64))))

        def soften(residual: Float32, bias_residual: Float32) -> tuple[Float32, Float32]:
            weights = residual * diagonal if inverse is None else residual @ inverse
            return weights, bias_residual * bias_scale

        x, x_bias = np.zeros_like(total), np.zeros_like(bias_total)
        residual, bias_residual = -total, -bias_total
        move, move_bias = soften(residual, bias_residual)
        begin = norm = dot(residual, move) + dot(bias_residual, move_bias)
        if not begin > 0.0:  # rounding has made the preconditioner indefinite: the gradient's own direction, then
            self._inverse = inverse = None
            move, move_bias = soften(residual, bias_residual)
            begin = norm = dot(residual, move) + dot(bias_residual, move_bias)
        logits_change: Float32 = np.zeros((len(self._matrix), len(total)), dtype=np.float32)
        for _ in range(MOST_ITERATIONS):
            changed, product, bias_product = self._product(curvature, move, move_bias)
            product += ridge * move
            curve = dot(move, product) + dot(move_bias, bias_product)
            if not curve > 0.0:
                break
            length = np.float32(norm / curve)
            x += length * move
            x_bias += length * move_bias
            logits_change += length * changed
            residual -= length * product
            bias_residual -= length * bias_product
            self._spent += 1.0 + (0.0 if inverse is None else self._apply_cost)
            softened, bias_softened = soften(residual, bias_residual)
            left = dot(residual, softened) + dot(bias_residual, bias_softened)
            if not left > ratio**2 * begin or dot(residual, residual) <= floor:
                break
            turn = np.float32(left / norm)
            move = softened + turn * move
            move_bias = bias_softened + turn * move_bias
            norm = left
        return x, x_bias, logits_change

    def _search(
        self, logits: Float32, logits_change: Float32, weight: Float32, x: Float32, *, l2: float, slope: float
    ) -> tuple[float, Float32, float]:
        """Return the step along the line, the weighted residuals there and the data loss: slopes only, no products.

        `slope` is that at the start, below zero. Near the minimum float32 objectives do not compare, slopes do (Hager
        and Zhang 2005).
        """
        across, along = l2 * dot(weight, x), l2 * dot(x, x)
        low, low_slope, high, high_slope = 0.0, slope, 1.0, 0.0
        step = 1.0
        for _ in range(12):
            residual = logits + np.float32(step) * logits_change
            loss = self._prepared.loss.residual(residual, 0)
            slope_there = dot(residual, logits_change) + across + step * along
            if slope_there <= -0.3 * slope and (step == 1.0 or slope_there >= 0.3 * slope):
                break
            if slope_there > 0.0:
                high, high_slope = step, slope_there
            else:
                low, low_slope = step, slope_there
            width = high - low
            step = low + width * min(max(-low_slope / (high_slope - low_slope), 0.1), 0.9)
        return step, residual, loss

    def _begin(self, start: Start) -> tuple[Float32, Float32 | None]:
        """Return the logits at `start`, and the weight gradient there where it is known without a product."""
        prepared = self._prepared
        if start.weight.any():
            return forward(prepared, start.weight, start.bias), None
        # the columns are centred: at zero weights their gradient does not depend on the bias, and certificates use it
        gradient = None if prepared.problem.distillation is not None else prepared.gradient_at_zero
        return np.tile(start.bias, (len(self._matrix), 1)), gradient

    def minimise(self, start: Start, *, penalty: Penalty, tolerance: float, max_passes: float) -> Fit:
        """Return the minimum of data term + l2/2 |W|^2, l2 above 0."""
        prepared, l2 = self._prepared, penalty.l2
        limit = prepared.passes + max_passes
        weight, bias = start.weight, start.bias
        logits, known_gradient = self._begin(start)
        residual = logits.copy()
        loss = prepared.loss.residual(residual, 0)
        failed = 0
        while True:
            gradient = backward(prepared, residual) if known_gradient is None else known_gradient
            known_gradient = None
            total = gradient + np.float32(l2) * weight
            bias_total = residual.sum(axis=0, dtype=np.float64).astype(np.float32)
            objective = loss + penalty.value(weight)
            aim = 1.8 * l2 * tolerance * abs(objective)
            square = dot(total, total)
            if square <= aim or prepared.passes >= limit:
                state = self._certified(weight, bias, exact=failed > 0 or objective < LEAST_OBJECTIVE)
                gap = relative_gap(prepared, state, penalty)
                failed += 1
                if gap <= tolerance or failed >= PATIENCE or prepared.passes >= limit:
                    return Fit(state, gap, gap <= tolerance)
                bias = state.bias
                logits = forward(prepared, weight, bias)
                total = state.gradient + np.float32(l2) * weight
                bias_total = state.bias_gradient.astype(np.float32)
                aim = 0.1 * dot(total, total)
            curvature = Curvature(prepared.loss, logits)
            self._precondition(curvature, l2)
            worth = min(0.1, np.sqrt(square / (2.0 * l2 * max(abs(objective), 1e-12))))
            x, x_bias, logits_change = self._step(curvature, total, bias_total, l2=l2, ratio=worth, floor=0.3 * aim)
            slope = dot(total, x) + dot(bias_total, x_bias)
            if not slope < 0.0:
                self._inverse = None  # rounding has made it indefinite
                continue
            step, residual, loss = self._search(logits, logits_change, weight, x, l2=l2, slope=slope)
            weight = weight + np.float32(step) * x
            bias = bias + np.float32(step) * x_bias
            logits += np.float32(step) * logits_change
