"""The second derivative of the losses at one set of logits: products with a change of the logits, and its diagonal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.heads.solvers.losses import Loss, softmax_in_place
from featcache.heads.solvers.rows import CHUNK_ROWS, Float32, Float64, map_chunks


class Curvature:
    """``w_i psi''(u_i)`` for all rows i, held as one or (distilling) two sets of probabilities ``(n, k)`` float32."""

    def __init__(self, loss: Loss, logits: Float32) -> None:
        """Compute the probabilities at `logits` ``(n, k)``, which are kept as they are."""
        self._kind, self._weights = loss.kind, loss.weights[:, None]
        self._shape = logits.shape
        self._parts: list[tuple[Float32, Float32]] = []  # row weights (n, 1), probabilities (n, k)
        if loss.kind == "sigmoid":
            self._parts = [(self._weights, _sigmoid(logits))]
        elif loss.kind == "softmax":
            self._parts = [
                (weights, self._softmax(logits, temperature)) for weights, temperature in loss.softmax_terms()
            ]

    def _softmax(self, logits: Float32, temperature: float) -> Float32:
        probabilities = logits / np.float32(temperature)
        self._by_chunks(lambda a, b: softmax_in_place(probabilities[a:b]))
        return probabilities

    def _by_chunks(self, step: Callable[[int, int], Any]) -> None:
        def run(start: int, stop: int) -> float:
            step(start, stop)
            return 0.0

        n, k = self._shape
        map_chunks(n, k, run)

    def product(self, change: Float32, first_row: int) -> Float32:
        """Turn `change` ``(m, k)``, a change of the logits of some rows, into that of their weighted residuals."""

        def step(start: int, stop: int) -> float:
            u = change[start:stop]
            rows = slice(first_row + start, first_row + stop)
            if self._kind == "squared":
                u *= self._weights[rows]
            elif self._kind == "sigmoid":
                weights, p = self._parts[0]
                u *= p[rows] * (1 - p[rows])
                u *= weights[rows]
            else:
                self._softmax_product(u, rows)
            return 0.0

        m, k = change.shape
        map_chunks(m, k, step)
        return change

    def _softmax_product(self, u: Float32, rows: slice) -> None:
        last = len(self._parts) - 1
        total: Float32 | None = None
        for position, (weights, p) in enumerate(self._parts):
            part = p[rows]
            mean = np.einsum("ij,ij->i", part, u)[:, None]
            residual_change = np.subtract(u, mean, out=u) if position == last else u - mean
            residual_change *= part
            residual_change *= weights[rows]
            if total is not None:
                residual_change += total
            total = residual_change

    def row_means(self) -> Float32:
        """Return the mean of each row's diagonal over the outputs ``(n,)``: one weight per row for all classes."""
        n, k = self._shape
        if self._kind == "squared":
            return self._weights[:, 0]
        result: Float32 = np.zeros(n, dtype=np.float32)
        for weights, p in self._parts:
            inner = p.sum(axis=1) - np.einsum("ij,ij->i", p, p)
            result += weights[:, 0] * np.maximum(inner, 0) / np.float32(k)
        return result

    def output_sums(self) -> Float64:
        """Return the sum over the rows of each output's diagonal ``(k,)``: the curvature in the bias."""
        n, k = self._shape
        if self._kind == "squared":
            return np.full(k, float(self._weights.sum(dtype=np.float64)))
        result: Float64 = np.zeros(k)
        for weights, p in self._parts:
            for start in range(0, n, CHUNK_ROWS):
                rows = slice(start, start + CHUNK_ROWS)
                result += weights[rows, 0] @ (p[rows] * (1 - p[rows]))
        return result


def _sigmoid(logits: NDArray[Any]) -> Float32:
    half: Float32 = np.tanh(logits * np.float32(0.5))
    half += 1
    half *= np.float32(0.5)
    return half
