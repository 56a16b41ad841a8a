"""The sums over all rows that fits are made of, as one interface: the rows may lie here, or in parts elsewhere.

Whatever a solver asks of streamed or partitioned rows is one of these, and none gives anything that grows with the
rows. Solvers of rows in memory go beyond them, to the matrix itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featcache.heads.solvers.losses import Loss
from featcache.heads.solvers.rows import Float32, Float64, pull_back

KEEP_BYTES = 1 << 29  # logits kept between the Newton steps of a bias


class RowBlocks(Protocol):
    """Rows z block by block, and what each weighs; `in_memory`: whether going through them again costs little."""

    n_rows: int
    n_features: int
    weights: Float32

    @property
    def in_memory(self) -> bool: ...

    def blocks(self) -> Iterator[tuple[int, Float32]]: ...


class FixedWeights(ABC):
    """The data term of one set of weights, as a function of the bias alone; `forwards`: products with rows so far."""

    forwards = 0

    @abstractmethod
    def slope(self, bias: Float64, *, curvature: bool) -> tuple[Float64, Float64 | None]:
        """Return the gradient in the bias ``(k,)`` and, where asked for, the Hessian in it ``(k, k)``."""

    @abstractmethod
    def evaluate(self, bias: Float64) -> tuple[float, Float32, Float64]:
        """Return the loss, the weight gradient ``(k, d)`` and the bias gradient ``(k,)``: half a pass and a forward."""


class RowSums(ABC):
    """Sums over all rows of one problem: the data term with its gradients, and second moments."""

    @abstractmethod
    def evaluate(self, weight: Float32, bias: Float32) -> tuple[float, Float32, Float64]:
        """Return the data loss, its weight gradient ``(k, d)`` and its bias gradient ``(k,)``: one pass."""

    @abstractmethod
    def fixed(self, weight: Float32, *, exact: bool) -> FixedWeights:
        """Return the data term at `weight` ``(k, d)``, its bias still open; `exact`: in float64."""

    @abstractmethod
    def target_products(self) -> tuple[Float32, Float64]:
        """Return ``sum_i w_i y_i z_i'`` ``(k, d)``, the teacher mixed in, and ``sum_i w_i z_i`` of labelled rows.

        The second ``(d,)`` is zero without a teacher, as it is not needed then.
        """

    @abstractmethod
    def gram(self) -> Float64:
        """Return ``Z' diag(w) Z`` ``(d, d)`` float64, blocks multiplied in float32."""

    @abstractmethod
    def over(self, rows: Any) -> RowSums:
        """Return the same sums over `rows`, which are these in other columns."""


class LocalSums(RowSums):
    """Sums over rows that are read here, in memory or streamed."""

    def __init__(self, rows: RowBlocks, loss: Loss) -> None:
        """Sum over `rows`, whose targets `loss` knows."""
        self._rows, self._loss = rows, loss
        self._logits: Float32 | None = None

    def evaluate(self, weight: Float32, bias: Float32) -> tuple[float, Float32, Float64]:
        """Return loss and gradients; products are float32, sums over rows of the loss float64."""
        total = 0.0
        gradient: Float32 = np.zeros_like(weight)
        bias_gradient: Float64 = np.zeros(self._loss.n_outputs)
        for start, block in self._rows.blocks():
            logits = self._block_logits(block, weight, bias)
            total += self._loss.residual(logits, start)
            bias_gradient += logits.sum(axis=0, dtype=np.float64)
            gradient += pull_back(logits, block)
        return total, gradient, bias_gradient

    def _block_logits(self, block: Float32, weight: Float32, bias: Float32) -> Float32:
        if self._logits is None or len(self._logits) < len(block):
            self._logits = np.empty((len(block), self._loss.n_outputs), dtype=np.float32)
        logits = self._logits[: len(block)]
        np.matmul(block, weight.T, out=logits)
        logits += np.asarray(bias, dtype=np.float32)
        return logits

    def fixed(self, weight: Float32, *, exact: bool) -> LocalFixedWeights:
        """Return the data term at `weight`, its bias open."""
        return LocalFixedWeights(self._rows, self._loss, weight, exact=exact)

    def target_products(self) -> tuple[Float32, Float64]:
        """Return the products of the rows with their targets."""
        loss, weights = self._loss, self._rows.weights
        products: Float32 = np.zeros((loss.n_outputs, self._rows.n_features), dtype=np.float32)
        labelled: Float64 = np.zeros(self._rows.n_features)
        for start, block in self._rows.blocks():
            stop = start + len(block)
            targets = loss.mixed_targets(start, stop) * weights[start:stop, None]
            products += pull_back(targets, block)
            if loss.distils:
                labelled += (weights[start:stop] * loss.labelled(start, stop)) @ block
        return products, labelled

    def gram(self) -> Float64:
        """Return the weighted Gram matrix."""
        d = self._rows.n_features
        gram: Float64 = np.zeros((d, d))
        for start, block in self._rows.blocks():
            scaled = block * np.sqrt(self._rows.weights[start : start + len(block), None])
            gram += scaled.T @ scaled
        return gram

    def over(self, rows: RowBlocks) -> LocalSums:
        """Return the same sums over `rows`."""
        return LocalSums(rows, self._loss)


class LocalFixedWeights(FixedWeights):
    """The data term at one set of weights, over rows that are read here.

    The logits come from one forward product and are kept (recomputed where they would take over half a GiB).
    """

    def __init__(self, rows: RowBlocks, loss: Loss, weight: NDArray[Any], *, exact: bool) -> None:
        """Compute nothing yet."""
        self._kind = np.dtype(np.float64 if exact else np.float32)
        self._rows, self._loss, self._weight = rows, loss, weight
        self._wide = weight.astype(self._kind, copy=False).T
        self._keep = rows.in_memory and rows.n_rows * loss.n_outputs * self._kind.itemsize <= KEEP_BYTES
        self._kept: list[tuple[int, NDArray[Any]]] = []

    def _forward(self) -> Iterator[tuple[int, Float32 | None, NDArray[Any]]]:
        """Yield ``(first_row, z, logits without bias)``; z is None where the logits were kept."""
        if self._kept and self._kept[-1][0] + len(self._kept[-1][1]) == self._rows.n_rows:
            yield from ((start, None, logits) for start, logits in self._kept)
            return
        self.forwards += 1
        for start, block in self._rows.blocks():
            logits = block.astype(self._kind, copy=False) @ self._wide
            if self._keep:
                self._kept.append((start, logits))
            yield start, block, logits

    def slope(self, bias: Float64, *, curvature: bool) -> tuple[Float64, Float64 | None]:
        """Return the slope and the curvature in the bias."""
        k = self._loss.n_outputs
        slope: Float64 = np.zeros(k)
        bend: Float64 | None = np.zeros((k, k)) if curvature else None
        for start, _block, logits in self._forward():
            shifted = logits + bias.astype(self._kind)
            if bend is not None:
                bend += self._loss.bias_curvature(shifted.copy(), start)
            self._loss.residual(shifted, start)
            slope += shifted.sum(axis=0, dtype=np.float64)
        return slope, bend

    def evaluate(self, bias: Float64) -> tuple[float, Float32, Float64]:
        """Return loss and gradients."""
        gradient: Float32 = np.zeros(self._weight.shape, dtype=np.float32)
        total, slope = 0.0, np.zeros(self._loss.n_outputs)
        blocks: Iterator[tuple[int, Float32]] | None = None
        for start, block, logits in self._forward():
            shifted = logits + bias.astype(self._kind)
            total += self._loss.residual(shifted, start)
            slope += shifted.sum(axis=0, dtype=np.float64)
            if block is None:
                blocks = self._rows.blocks() if blocks is None else blocks
                block = next(blocks)[1]
            gradient += pull_back(shifted.astype(np.float32, copy=False), block)
        return total, gradient, slope
