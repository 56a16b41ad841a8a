"""L2-penalised heads on two levels: most iterations on the leading principal components, few on all features.

A pass over all features is two products of ``n d k``; over the r leading principal components it is d / r times
cheaper, and where features are correlated, as a network's are, nearly all curvature beyond the ridge lies in them.
The weights are split W = A Q' + T, Q the components. Given T, the best A is found by limited-memory BFGS on the n x r
scores, with the logits of T as an offset: nothing is approximated. T descends on ``min_A objective``, whose gradient
is the rest of the full gradient (the envelope theorem) and whose curvature is close to the ridge alone, so that few
full passes do. It is multigrid's idea (Nash 2000, for optimisation) with a spectral coarse space (Halko, Martinsson
and Tropp 2011 for finding it). What is returned is certified on all features, so the split affects time only.
"""

from __future__ import annotations

import numpy as np

from featcache.heads.solvers.certificate import relative_gap
from featcache.heads.solvers.components import Components
from featcache.heads.solvers.history import History
from featcache.heads.solvers.interface import Fit, Solver, Start
from featcache.heads.solvers.penalty import Penalty
from featcache.heads.solvers.prepared import Prepared
from featcache.heads.solvers.rows import BLOCK_ROWS, Float32, Float64, dot, pull_back
from featcache.heads.solvers.state import ROUNDING, State

RETREATS = 12
FAILURES = 8  # certificates that may fail before rounding is taken to be the limit
LOOSE = 3e-5  # a relative gap that logits updated in float32 can certify; below it they are computed afresh


class TwoLevel(Solver):
    """The coarse space of one prepared problem, and the logits of the point where the descent stands."""

    def __init__(self, prepared: Prepared) -> None:
        """Take the leading components and the scores on them."""
        components = prepared.derive(Components)
        self._prepared, self._matrix = prepared, prepared.rows.matrix
        self._basis, self._values, self._scores = components.basis, components.values, components.scores
        self._rest_value = components.rest_value
        self._offset: Float32 = np.zeros((len(self._matrix), prepared.n_outputs), dtype=np.float32)
        self._buffer: Float32 = np.empty((BLOCK_ROWS, prepared.n_outputs), dtype=np.float32)
        self._ones: Float32 = np.ones(BLOCK_ROWS, dtype=np.float32)
        self._last_histories: tuple[float, History, History] | None = None
        self._cost = len(self._values) / prepared.n_features  # of a coarse pass, in passes
        self._curvature = prepared.loss.typical_curvature

    def _coarse(self, move: Float32, bias: Float32) -> tuple[float, Float32, Float32]:
        """Return data loss, gradient ``(k, r)`` and bias gradient with the logits moved by ``scores @ move'``."""
        total = 0.0
        gradient = np.zeros_like(move)
        bias_gradient: Float64 = np.zeros(len(bias))
        for start in range(0, len(self._scores), BLOCK_ROWS):
            scores = self._scores[start : start + BLOCK_ROWS]
            logits = self._buffer[: len(scores)]
            np.matmul(scores, move.T, out=logits)
            logits += self._offset[start : start + len(scores)]
            logits += bias
            total += self._prepared.loss.residual(logits, start)
            gradient += pull_back(logits, scores)
            bias_gradient += self._ones[: len(logits)] @ logits
        self._prepared.passes += self._cost
        slope: Float32 = bias_gradient.astype(np.float32)
        return total, gradient, slope

    def _descend_coarse(
        self, weight: Float32, bias: Float32, history: History, *, l2: float, stop: float, most: int
    ) -> tuple[Float32, Float32, float]:
        """Return the coarse move, bias and objective once the squared coarse gradient is below ``stop``."""
        ridge = np.float32(l2)
        coarse_weight = weight @ self._basis
        constant = 0.5 * l2 * (dot(weight, weight) - dot(coarse_weight, coarse_weight))
        move = np.zeros_like(coarse_weight)

        def value(at: Float32, loss: float) -> float:
            return loss + constant + 0.5 * l2 * dot(coarse_weight + at, coarse_weight + at)

        loss, gradient, bias_total = self._coarse(move, bias)
        objective = value(move, loss)
        for _ in range(most):
            total = gradient + ridge * (coarse_weight + move)
            if dot(total, total) + dot(bias_total, bias_total) / self._curvature * l2 <= stop:
                break
            direction, bias_direction = history.direction(total, bias_total)
            slope = dot(total, direction) + dot(bias_total, bias_direction)
            step = np.float32(1.0)
            for _ in range(RETREATS):
                at, at_bias = move - step * direction, bias - step * bias_direction
                loss, gradient, at_bias_gradient = self._coarse(at, at_bias)
                objective_there = value(at, loss)
                if objective_there <= objective - 1e-4 * float(step) * slope:
                    break
                slope_there = dot(gradient + ridge * (coarse_weight + at), direction) + dot(
                    at_bias_gradient, bias_direction
                )
                if objective_there <= objective + ROUNDING * abs(objective) and slope_there >= -0.8 * slope:
                    break
                step *= np.float32(0.4)
            after = gradient + ridge * (coarse_weight + at)
            history.add(at - move, at_bias - bias, after - total, at_bias_gradient - bias_total)
            move, bias, objective, bias_total = at, at_bias, objective_there, at_bias_gradient
        return move, bias, objective

    def _full_state(self, weight: Float32, bias: Float32) -> State:
        """Return the state over all features at the logits coarse_weight, those of `weight`: half a pass."""
        gradient: Float32 = np.zeros((self._prepared.n_outputs, self._prepared.n_features), dtype=np.float32)
        total = 0.0
        bias_gradient: Float64 = np.zeros(len(bias))
        for start in range(0, len(self._matrix), BLOCK_ROWS):
            block = self._matrix[start : start + BLOCK_ROWS]
            logits = np.add(self._offset[start : start + len(block)], bias, out=self._buffer[: len(block)])
            total += self._prepared.loss.residual(logits, start)
            bias_gradient += logits.sum(axis=0, dtype=np.float64)
            gradient += pull_back(logits, block)
        self._prepared.passes += 0.5
        return State(weight, bias, total, gradient, bias_gradient)

    def _apply(self, weight: Float32) -> Float32:
        self._prepared.passes += 0.5
        product: Float32 = self._matrix @ weight.T
        return product

    def _rest(self, array: Float32) -> Float32:
        """Return the part of ``(k, d)`` outside the coarse space."""
        return np.asarray(array - (array @ self._basis) @ self._basis.T, dtype=np.float32)

    def _histories(self, l2: float) -> tuple[History, History]:
        """Return what earlier fits learnt of the curvature, with the ridge's part of it exchanged."""
        self._coarse_scale = (1.0 / (self._curvature * self._values + l2)).astype(np.float32)
        if self._last_histories is None:
            bias_scale = np.float32(1.0 / self._curvature)
            coarse = History(
                1.0, lambda gradient, slope: (gradient * self._coarse_scale, slope * bias_scale), memory=40
            )
            self._last_histories = (l2, coarse, History(1.0 / (self._curvature * self._rest_value + l2)))
        old, coarse, rest = self._last_histories
        coarse.exchange_ridge(l2 - old)
        rest.exchange_ridge(l2 - old)
        self._last_histories = (l2, coarse, rest)
        return coarse, rest

    def minimise(self, start: Start, *, penalty: Penalty, tolerance: float, max_passes: float) -> Fit:
        """Return the minimum of data term + l2/2 |W|^2, l2 above 0; certified with `exact` logits where passes end."""
        prepared, l2 = self._prepared, penalty.l2
        limit = prepared.passes + max_passes
        weight, bias = start.weight, start.bias
        coarse_history, rest_history = self._histories(l2)
        nothing = np.zeros(0, dtype=np.float32)
        step: Float32 | None = None
        previous: Float32 | None = None
        objective: float = np.inf
        rest_square = 0.0  # of a cold start, where the components are all that counts at first
        if weight.any():
            self._offset = self._apply(weight)
            begin = self._rest(self._full_state(weight, bias).gradient + np.float32(l2) * weight)
            rest_square = dot(begin, begin)
        else:
            self._offset = np.zeros_like(self._offset)
        failed = 0
        while prepared.passes < limit:
            goal = 0.2 * l2 * tolerance * abs(objective) if np.isfinite(objective) else 0.0
            first = not np.isfinite(objective)
            move, bias, coarse_objective = self._descend_coarse(
                weight,
                bias,
                coarse_history,
                l2=l2,
                stop=max(goal, 0.02 * rest_square),
                most=12 if first else 8,
            )
            if step is not None and coarse_objective > objective + ROUNDING * abs(
                objective
            ):  # the rest went too far: half back
                step = step * np.float32(0.5)
                weight = weight - step
                self._offset -= self._apply(step)
                previous = None
                if dot(step, step) < 1e-14 * dot(weight, weight):
                    break
                continue
            objective = coarse_objective
            weight = weight + move @ self._basis.T
            for row in range(0, len(self._scores), BLOCK_ROWS):
                block = slice(row, row + BLOCK_ROWS)
                self._offset[block] += self._scores[block] @ move.T
            state = self._full_state(weight, bias)
            total = state.gradient + np.float32(l2) * weight
            square = dot(total, total)
            if square <= 1.8 * l2 * tolerance * abs(objective):
                gap = relative_gap(prepared, state, penalty)
                if gap <= tolerance and tolerance >= LOOSE:
                    return Fit(state, gap, True)
                # float32 logits leave a bias gradient that, where the objective is small, no certificate can bear
                state = State.certified(prepared, weight, bias, exact=tolerance < LOOSE or failed > 0)
                gap = relative_gap(prepared, state, penalty)
                failed += 1
                if gap <= tolerance or failed > FAILURES:
                    return Fit(state, gap, gap <= tolerance)
                bias = state.bias
            rest = self._rest(total)
            rest_square = dot(rest, rest)
            if step is not None and previous is not None:
                rest_history.add(step, nothing, rest - previous, nothing)
            previous = rest
            step = -self._rest(rest_history.direction(rest, nothing)[0])
            weight = weight + step
            self._offset += self._apply(step)
        state = State.certified(prepared, weight, bias, exact=True)
        gap = relative_gap(prepared, state, penalty)
        return Fit(state, gap, gap <= tolerance)
