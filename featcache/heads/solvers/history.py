"""What limited-memory BFGS remembers (Nocedal 1980): the last steps, and how the gradient changed along each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from featcache.heads.solvers.rows import Float32, dot

MEMORY = 20
LONG_MEMORY = 100  # where pairs are so small that a longer memory costs less than the passes it saves
SMALL = 1 << 16

Base = Callable[[Float32, Float32], tuple[Float32, Float32]]


def kronecker(inverse: Float32, curvature: float) -> Base:
    """Return the inverse of the curvature that classes sharing one Gram matrix would have, as a function."""
    scale = np.float32(1.0 / curvature)
    return lambda gradient, bias_gradient: (gradient @ inverse, bias_gradient * scale)


class History:
    """The last steps and gradient changes of limited-memory BFGS, applied to a gradient (Nocedal 1980, two loops)."""

    def __init__(self, scale: float, base: Base | None = None, memory: int | None = None) -> None:
        """Begin with the inverse Hessian `scale` times that of `base` (None: the identity)."""
        self._scale, self._base, self._memory = scale, base, memory
        self._pairs: list[tuple[Float32, Float32, Float32, Float32, float]] = []

    def add(self, s: Float32, sb: Float32, y: Float32, yb: Float32) -> None:
        """Remember a step ``(s, sb)`` of weights and bias with the change ``(y, yb)`` of the gradient along it.

        A change so small that its squares vanish in float32 says nothing of the curvature and is left out.
        """
        product = dot(s, y) + dot(sb, yb)
        base, base_bias = (y, yb) if self._base is None else self._base(y, yb)
        size = dot(y, base) + dot(yb, base_bias)
        if product > 1e-12 * (dot(y, y) + dot(yb, yb)) and size > 0:
            self._pairs.append((s, sb, y, yb, 1.0 / product))
            self._scale = product / size
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
