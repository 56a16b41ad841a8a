"""The penalty of a linear head: its value, its proximal step, and the columns it would let become non-zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.heads.solvers.rows import Float64


@dataclass(frozen=True, slots=True)
class Penalty:
    """The three strengths of the penalty; ``group_l1`` sums the Euclidean norms of the columns of W."""

    l1: float = 0.0
    l2: float = 0.0
    group_l1: float = 0.0

    @property
    def is_sparse(self) -> bool:
        """Return whether it makes weights exactly zero."""
        return bool(self.l1 or self.group_l1)

    def value(self, weight: NDArray[Any]) -> float:
        """Return the penalty of `weight` ``(n_outputs, n_features)``, added up in float64."""
        total = 0.0
        if self.l1:
            total += self.l1 * float(np.abs(weight).sum(dtype=np.float64))
        if self.l2:
            flat = weight.ravel()
            total += 0.5 * self.l2 * float(np.einsum("i,i->", flat, flat, dtype=np.float64))
        if self.group_l1:
            total += self.group_l1 * float(column_norms(weight).sum())
        return total

    def proximal(self, point: NDArray[Any], step: float) -> NDArray[Any]:
        """Return the proximal point of `step` times this: soft threshold, group threshold, then the ridge's."""
        kind = point.dtype.type
        result = point
        if self.l1:
            cut = kind(step * self.l1)
            result = np.sign(point) * np.maximum(np.abs(point) - cut, kind(0))
        if self.group_l1:
            norms = column_norms(result)
            shrink = np.maximum(1.0 - step * self.group_l1 / np.maximum(norms, 1e-300), 0.0)
            result = result * shrink.astype(point.dtype)
        if self.l2:
            result = result * kind(1.0 / (1.0 + step * self.l2))
        return result

    def violation(self, gradient: NDArray[Any]) -> Float64:
        """Return by how much each column of zero weights breaks its optimality condition, ``(d,)``; <= 0: it holds."""
        if self.group_l1:
            excess = np.maximum(np.abs(gradient) - np.float32(self.l1), np.float32(0)) if self.l1 else gradient
            above: Float64 = column_norms(excess) - self.group_l1
            return above
        largest: Float64 = np.abs(gradient).max(axis=0).astype(np.float64)
        return largest - self.l1


def column_norms(weight: NDArray[Any]) -> Float64:
    """Return the Euclidean norm of each column ``(n_features,)`` float64."""
    norms: Float64 = np.sqrt(np.einsum("ij,ij->j", weight, weight, dtype=np.float64))
    return norms
