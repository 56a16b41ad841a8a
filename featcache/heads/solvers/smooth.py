"""L2-penalised heads by limited-memory BFGS (Nocedal 1980) on float32 products: the solver for streams and small sets.

Measured on 10,000 x 1280 features with 200 classes: a pass is two products of 5 GFLOP each, and nothing else counts.
Boehning's bound (1992), curvature at most ``(I - 11'/k)/2 (x) Z'Z/n``, is safe but 50 times too large when
probabilities are spread over many classes, and slower than no preconditioner at all. The same matrix with the curvature
at even predictions, ``(1 - 1/k)/k``, halves the passes. Where there are few classes, forming and inverting it costs
more than that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featcache.heads.solvers.certificate import Penalty, duality_gap
from featcache.heads.solvers.rows import Float32, Float64

if TYPE_CHECKING:
    from featcache.heads.solvers.prepared import Prepared

MEMORY = 20
LONG_MEMORY = 100  # where pairs are so small that a longer memory costs less than the passes it saves
SMALL = 1 << 16
ROUNDING = 1e-6  # relative; below it float32 objectives do not compare, slopes do (Hager and Zhang 2005)


Base = Callable[[Float32, Float32], tuple[Float32, Float32]]


def kronecker(inverse: Float32, curvature: float) -> Base:
    """Return the inverse of the curvature that classes sharing one Gram matrix would have, as a function."""
    scale = np.float32(1.0 / curvature)
    return lambda gradient, bias_gradient: (gradient @ inverse, bias_gradient * scale)


class State:
    """One point with the data term evaluated there: everything a step or a certificate needs."""

    __slots__ = ("bias", "bias_gradient", "data_loss", "gradient", "weight")

    def __init__(self, prepared: Prepared, weight: Float32, bias: Float32) -> None:
        """Evaluate the data term at ``(weight, bias)``: one pass."""
        self.weight, self.bias = weight, bias
        self.gradient: Float32 = np.empty_like(weight)
        self.data_loss, self.bias_gradient = prepared.evaluate(weight, bias, self.gradient)

    @classmethod
    def of(
        cls, weight: Float32, bias: Float32, data_loss: float, gradient: Float32, bias_gradient: NDArray[np.float64]
    ) -> State:
        """Return the state of a point evaluated elsewhere."""
        state = cls.__new__(cls)
        state.weight, state.bias, state.data_loss = weight, bias, data_loss
        state.gradient, state.bias_gradient = gradient, bias_gradient
        return state

    @classmethod
    def certified(cls, prepared: Prepared, weight: Float32, bias: NDArray[Any], *, exact: bool) -> State:
        """Return the state at `weight` with its best bias, in float64 if `exact`: what a tight certificate needs."""
        state = cls.__new__(cls)
        state.weight, state.gradient = weight, np.empty_like(weight)
        state.data_loss, state.bias_gradient, best = prepared.evaluate_best_bias(
            weight, bias, state.gradient, exact=exact
        )
        state.bias = best.astype(np.float32)
        return state

    def objective(self, penalty: Penalty) -> float:
        """Return the penalised objective."""
        return self.data_loss + penalty.value(self.weight)

    def gap(self, prepared: Prepared, penalty: Penalty) -> float:
        """Return the duality gap at this point."""
        return duality_gap(
            prepared,
            penalty,
            weight=self.weight,
            bias=self.bias,
            data_loss=self.data_loss,
            gradient=self.gradient,
            bias_gradient=self.bias_gradient,
        )


def pseudo_inverse(curvature: Float64) -> Float64:
    """Return the inverse of a curvature in the bias ``(k, k)`` but for the direction that moves all logits alike."""
    return np.asarray(np.linalg.pinv(curvature, rcond=1e-9, hermitian=True), dtype=np.float64)


def settle_bias(prepared: Prepared, logits: Float32, inverse: Float64) -> tuple[Float64, float, Float64, Float64]:
    """Return ``(shift, data loss, its bias gradient, weighted residuals)`` with the bias moved to where it is best.

    In float64 on float32 `logits` ``(n, k)`` of all rows, which stay: what a tight certificate lacks is a bias gradient
    of zero, and that takes shifts below the rounding of the logits. `inverse`: of the curvature in the bias ``(k, k)``.
    """
    shift: Float64 = np.zeros(logits.shape[1])
    for count in range(4):
        residual = logits.astype(np.float64)
        residual += shift
        loss = prepared.loss.residual(residual, 0)
        slope: Float64 = residual.sum(axis=0)
        if count == 3 or float(np.abs(slope / np.maximum(prepared.loss.mean_target, 1e-6)).max()) < 1e-8:
            break
        move = inverse @ slope
        shift -= move / max(1.0, float(np.abs(move).max()))
    return shift, loss, slope, residual


def dot(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return the inner product of two arrays of one shape."""
    return float(np.vdot(a, b))


class History:
    """The last steps and gradient changes of limited-memory BFGS, applied to a gradient (Nocedal 1980, two loops)."""

    def __init__(self, scale: float, base: Base | None = None, memory: int | None = None) -> None:
        """Begin with the inverse Hessian `scale` times that of `base` (None: the identity)."""
        self._scale, self._base, self._memory = scale, base, memory
        self._pairs: list[tuple[Float32, Float32, Float32, Float32, float]] = []

    def add(self, s: Float32, sb: Float32, y: Float32, yb: Float32) -> None:
        """Remember a step ``(s, sb)`` of weights and bias with the change ``(y, yb)`` of the gradient along it."""
        product = dot(s, y) + dot(sb, yb)
        if product > 1e-12 * (dot(y, y) + dot(yb, yb)):
            self._pairs.append((s, sb, y, yb, 1.0 / product))
            base, base_bias = (y, yb) if self._base is None else self._base(y, yb)
            self._scale = product / (dot(y, base) + dot(yb, base_bias))
            del self._pairs[: -(self._memory or (LONG_MEMORY if s.size <= SMALL else MEMORY))]

    def exchange_ridge(self, change: float) -> None:
        """Add `change` to the ridge in what is remembered: the same steps, other gradients; the bias has no ridge."""
        if change == 0.0:
            return
        pairs, self._pairs = self._pairs, []
        for s, sb, y, yb, _ in pairs:
            self.add(s, sb, y + np.float32(change) * s, yb)

    def direction(self, gradient: Float32, bias_gradient: Float32) -> tuple[Float32, Float32]:
        """Return the approximate inverse Hessian times the gradient: the direction to subtract."""
        direction, bias_direction = gradient.copy(), bias_gradient.copy()
        coefficients: list[float] = []
        for s, sb, y, yb, rho in reversed(self._pairs):
            a = rho * (dot(s, direction) + dot(sb, bias_direction))
            coefficients.append(a)
            direction -= np.float32(a) * y
            bias_direction -= np.float32(a) * yb
        if self._base is not None:
            direction, bias_direction = self._base(direction, bias_direction)
        direction = direction * np.float32(self._scale)
        bias_direction = bias_direction * np.float32(self._scale)
        for (s, sb, y, yb, rho), a in zip(self._pairs, reversed(coefficients), strict=True):
            back = a - rho * (dot(y, direction) + dot(yb, bias_direction))
            direction += np.float32(back) * s
            bias_direction += np.float32(back) * sb
        return direction, bias_direction


def relative_gap(prepared: Prepared, state: State, penalty: Penalty) -> float:
    """Return the duality gap over the objective; without any penalty, the largest entry of the gradient instead."""
    if penalty == Penalty():
        return float(max(np.abs(state.gradient).max(), np.abs(state.bias_gradient).max()))
    return state.gap(prepared, penalty) / max(abs(state.objective(penalty)), 1e-12)


def typical_curvature(prepared: Prepared) -> float:
    """Return the mean second derivative of the loss in one logit when predictions are spread evenly."""
    k = prepared.n_outputs
    return {"softmax": (1.0 - 1.0 / k) / k, "sigmoid": 0.25, "squared": 1.0}[prepared.loss.kind]


def minimise_l2(
    prepared: Prepared, state: State, *, l2: float, tolerance: float, max_passes: int
) -> tuple[State, float, bool]:
    """Return ``(state, relative gap, converged)``: the minimum of data term + l2/2 |W|^2, started at `state`."""
    penalty = Penalty(l2=l2)
    objective = state.objective(penalty)
    certified = failed = False
    curvature = typical_curvature(prepared)
    n, d = prepared.rows.n_rows, prepared.n_features
    # Gram matrix and inverse cost d (n + 2 d) against n k of a pass: about thirty passes are what they save
    if l2 > 0 and d * (n + 2 * d) <= 30 * n * prepared.n_outputs:
        history = History(1.0, kronecker(prepared.preconditioner(curvature, l2), curvature))
    else:
        history = History(scale=1.0 / (8.0 * curvature + l2))
    for _ in range(max_passes):
        gap = relative_gap(prepared, state, penalty)
        if gap <= tolerance:
            return state, gap, True
        total = state.gradient + np.float32(l2) * state.weight
        if not certified and dot(total, total) <= 1.8 * l2 * tolerance * abs(objective):
            # float32 logits leave a bias gradient that, where the objective is small, no certificate can bear
            state = State.certified(prepared, state.weight, state.bias, exact=failed)
            failed = True
            objective = state.objective(penalty)
            certified = True
            continue
        certified = False
        bias_total = state.bias_gradient.astype(np.float32)
        direction, bias_direction = history.direction(total, bias_total)
        slope = dot(total, direction) + dot(bias_total, bias_direction)
        step = np.float32(1.0)
        while True:
            trial = State(prepared, state.weight - step * direction, state.bias - step * bias_direction)
            value = trial.objective(penalty)
            if value <= objective - 1e-4 * float(step) * slope or step < 1e-5:
                break
            turned = dot(trial.gradient + np.float32(l2) * trial.weight, direction)
            turned += dot(trial.bias_gradient.astype(np.float32), bias_direction)
            if value <= objective + ROUNDING * abs(objective) and turned >= -0.8 * slope:
                break
            step *= np.float32(0.4)
        s, sb = trial.weight - state.weight, trial.bias - state.bias
        y = trial.gradient - state.gradient + np.float32(l2) * s
        yb = (trial.bias_gradient - state.bias_gradient).astype(np.float32)
        history.add(s, sb, y, yb)
        state, objective = trial, value
    return state, relative_gap(prepared, state, penalty), False
