"""The driver's side of rows in parts: features that name them, statistics and sums added over the workers.

The workers hold z, the rows standardised by the first problem that was measured (`Frame`). Another problem of the same
rows, such as a fold, has another mean and deviation; its z differs from what is held by ``(z - shift) * factor`` for
each column, which is folded into weights on the way there and into gradients on the way back. Shift and factor are near
0 and 1, so that float32 loses nothing by it. What goes each way are weights and sums; targets are sent once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from featcache.heads.solvers.losses import Loss
from featcache.heads.solvers.parts import Chosen, Columns, Frame, Held, Part, Share, Table, Workers, next_number
from featcache.heads.solvers.problem import BlockSource, Problem, RemoteFeatures
from featcache.heads.solvers.rows import Float32, Float64, StandardisedRows, spread_of
from featcache.heads.solvers.sums import FixedWeights, RowSums

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Consecutive rows of some features: the rows `chosen` (None: all `n_rows`) of a `table` of one `worker`."""

    worker: int
    table: Held
    chosen: Chosen
    n_rows: int


class PartitionedFeatures(RemoteFeatures):
    """Features ``(n, d)`` that lie in the parts of some workers: what a problem has in place of an array.

    `pieces`: the rows, one piece after another. `columns`: which of the tables' columns, None for all `width`.
    """

    def __init__(self, workers: Workers, pieces: Sequence[Piece], *, width: int, columns: Columns = None) -> None:
        self.workers, self.pieces = workers, tuple(pieces)
        self.width, self.columns = width, columns
        self._kept: tuple[Held, list[Held]] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(n_rows, n_features)."""
        width = self.width if self.columns is None else len(self.columns)
        return sum(piece.n_rows for piece in self.pieces), width

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, chosen: Any) -> PartitionedFeatures:
        """Return the rows that a mask ``(n,)`` or a slice chooses, which stay where they are."""
        mask = np.zeros(len(self), dtype=bool)
        mask[chosen] = True
        if mask.all():
            return self
        pieces = []
        for piece, rows in zip(self.pieces, self.slices(), strict=True):
            kept = np.flatnonzero(mask[rows])
            if len(kept) == piece.n_rows:
                pieces.append(piece)
            elif len(kept):
                within = kept if piece.chosen is None else piece.chosen[kept]
                pieces.append(replace(piece, chosen=within, n_rows=len(kept)))
        return PartitionedFeatures(self.workers, pieces, width=self.width, columns=self.columns)

    def take_columns(self, kept: NDArray[np.int64]) -> PartitionedFeatures:
        """Return the same rows with only the columns `kept` ``(m,)``."""
        columns = kept if self.columns is None else self.columns[kept]
        return PartitionedFeatures(self.workers, self.pieces, width=self.width, columns=columns)

    def followed_by(self, other: PartitionedFeatures) -> PartitionedFeatures:
        """Return these rows and then those of `other`, of the same workers and columns."""
        pieces = (*self.pieces, *other.pieces)
        return PartitionedFeatures(self.workers, pieces, width=self.width, columns=self.columns)

    def ask(self, product: Callable[..., T], *arguments: Any, each: Sequence[Any] | None = None) -> list[T]:
        """Return ``product(part, table, chosen, columns, *arguments)`` for each piece; `each`: one argument per piece.

        The argument of a piece stands before those of all.
        """
        if self._kept is None:
            keep = self.workers.keep
            self._kept = keep(self.columns), [keep(piece.chosen) for piece in self.pieces]
        columns, chosen = self._kept
        own: list[tuple[Any, ...]] = [
            (piece.table, rows, columns) for piece, rows in zip(self.pieces, chosen, strict=True)
        ]
        if each is not None:
            own = [(*one, further) for one, further in zip(own, each, strict=True)]
        return self.workers.run(product, [piece.worker for piece in self.pieces], own, *arguments)

    def slices(self) -> list[slice]:
        """Return which rows each piece is."""
        ends = np.cumsum([0, *(piece.n_rows for piece in self.pieces)])
        return [slice(int(a), int(b)) for a, b in pairwise(ends)]


def distribute(workers: Workers, sources: Sequence[BlockSource]) -> PartitionedFeatures:
    """Return features whose rows are those of `sources`, one for each worker, in their order; nothing is read yet."""
    width = sources[0].shape[1]
    pieces = [
        Piece(worker, workers.keep(Table(next_number(), source)), None, source.shape[0])
        for worker, source in enumerate(sources)
    ]
    return PartitionedFeatures(workers, pieces, width=width)


class PartitionedRows(StandardisedRows):
    """The statistics of rows in parts. Their z are not here: all that can be had of them are `PartitionedSums`."""

    def __init__(self, problem: Problem, features: PartitionedFeatures) -> None:
        """Measure the rows where they are; `problem` is of `features`."""
        self._weigh(problem)
        self._matrix = None
        self.loss = Loss(problem, self.weights)
        self._features, self._workers = features, features.workers
        self._shares = [
            self._workers.keep(
                Share(next_number(), piece.chosen, self.loss.of_rows(rows), rows.start, self.n_rows, self.uniform)
            )
            for piece, rows in zip(features.pieces, features.slices(), strict=True)
        ]
        if self._workers.frame.value is None:
            self._make_frame()
        self._take(features.columns)
        self._measure()

    def ask(self, product: Callable[..., T], *arguments: Any) -> list[T]:
        """Return what `product` of each part makes of its share; arguments that are kept cost no traffic."""
        pieces = self._features.pieces
        each = [(piece.table, share) for piece, share in zip(pieces, self._shares, strict=True)]
        at = [piece.worker for piece in pieces]
        return self._workers.run(product, at, each, self._workers.frame, self._columns, *arguments)

    def keep(self, value: Any) -> Held:
        """Return what stands for `value` in `ask`, where it is to be sent once."""
        return self._workers.keep(value)

    def _take(self, columns: Columns) -> None:
        self.columns = columns
        self._columns = self._workers.keep(columns)

    def _moments(self) -> tuple[Float64, Float64, Float64]:
        """Return shift, and first and second moments of what is held, each ``(d,)``."""
        shift = next(mean for mean in self.ask(Part.first_mean) if mean is not None)
        moments = [pair for pair in self.ask(Part.moments, shift) if pair is not None]
        first, second = (np.sum([pair[i] for pair in moments], axis=0) for i in range(2))
        return shift.astype(np.float64), first, second

    def _make_frame(self) -> None:
        """Have the workers hold their rows standardised as this problem's are, of all columns."""
        self._take(None)
        shift, first, second = self._moments()
        mean = shift + first
        self._workers.frame = self._workers.keep(Frame(mean, spread_of(mean, first, second)[1]))

    def _measure(self) -> None:
        frame, at = self._frame
        shift, first, second = self._moments()
        self.mean = frame.mean[at] + (shift + first) * frame.std[at]
        self.constant, deviation = spread_of(self.mean, first, second, scale=frame.std[at])
        self.std = np.where(self.constant, 1.0, deviation * frame.std[at])
        self._round()

    @property
    def _frame(self) -> tuple[Frame, Any]:
        """Return how the workers' rows are standardised, and where these columns stand in it."""
        frame: Frame = self._workers.frame.value
        return frame, slice(None) if self.columns is None else self.columns

    @property
    def relative(self) -> tuple[Float64, Float64]:
        """Return ``(shift, factor)``, each ``(d,)``: z is what the workers hold, less shift, times factor."""
        frame, at = self._frame
        factor = np.where(self.constant, 0.0, frame.std[at] / self.std)
        return (self.mean - frame.mean[at]) / frame.std[at], factor

    def restrict(self, columns: NDArray[np.int64]) -> PartitionedRows:
        """Return the same rows with only `columns`, where they are."""
        part = PartitionedRows.__new__(PartitionedRows)
        part.__dict__.update(self.__dict__)
        part.n_features = len(columns)
        part.mean, part.std, part.constant = self.mean[columns], self.std[columns], self.constant[columns]
        part._take(columns if self.columns is None else self.columns[columns])
        return part


class PartitionedSums(RowSums):
    """Sums over rows in parts: each part's own, added here."""

    def __init__(self, rows: PartitionedRows) -> None:
        """Sum over `rows`; nothing is asked yet."""
        self._rows = rows

    def evaluate(self, weight: Float32, bias: Float32) -> tuple[float, Float32, Float64]:
        """Return loss and gradients: one round."""
        there, bias_there = self.fold(weight, bias)
        losses, gradients, slopes = zip(
            *self._rows.ask(Part.evaluate, there, bias_there.astype(np.float32)), strict=True
        )
        slope = np.sum(slopes, axis=0)
        return float(sum(losses)), self.unfold(_added(gradients), slope), slope

    def fixed(self, weight: Float32, *, exact: bool) -> PartitionedFixedWeights:
        """Return the data term at `weight`, its bias open."""
        return PartitionedFixedWeights(self, self._rows, weight, exact=exact)

    def target_products(self) -> tuple[Float32, Float64]:
        """Return the products of the rows with their targets."""
        loss = self._rows.loss
        products, labelled = zip(*self._rows.ask(Part.target_products), strict=True)
        shift, factor = self._rows.relative
        share = loss.labelled_share if loss.distils else 0.0
        return (
            self.unfold(_added(products), loss.mean_mixed_target),
            (np.sum(labelled, axis=0) - share * shift) * factor,
        )

    def gram(self) -> Float64:
        """Return the weighted Gram matrix."""
        shift, factor = self._rows.relative  # the shift is the mean of what is held
        held: Float64 = np.sum(self._rows.ask(Part.gram), axis=0)
        return (held - np.outer(shift, shift)) * np.outer(factor, factor)

    def over(self, rows: PartitionedRows) -> PartitionedSums:
        """Return the same sums over `rows`."""
        return PartitionedSums(rows)

    def fold(self, weight: NDArray[Any], bias: NDArray[Any]) -> tuple[NDArray[Any], Float64]:
        """Return weights on what is held, in the type of `weight`, and bias, that give the same logits."""
        shift, factor = self._rows.relative
        wide = weight * factor
        return wide.astype(weight.dtype), bias - wide @ shift

    def unfold(self, gradient: Float64, slope: Float64) -> Float32:
        """Return the weight gradient on z ``(k, d)``, of that on what is held and residuals' sums ``(k,)``."""
        shift, factor = self._rows.relative
        result: Float32 = ((gradient - np.outer(slope, shift)) * factor).astype(np.float32)
        return result


class PartitionedFixedWeights(FixedWeights):
    """The data term at one set of weights, whose logits each part keeps."""

    def __init__(self, sums: PartitionedSums, rows: PartitionedRows, weight: Float32, *, exact: bool) -> None:
        """Fold the weights; they are sent once."""
        kind = np.float64 if exact else np.float32
        self._sums, self._rows = sums, rows
        self._there, self._moved = sums.fold(weight.astype(kind), np.zeros(len(weight)))
        self._held = rows.keep(self._there)
        self._exact = exact

    def slope(self, bias: Float64, *, curvature: bool) -> tuple[Float64, Float64 | None]:
        """Return the slope and the curvature in the bias."""
        answers = self._rows.ask(Part.slope, self._held, bias + self._moved, self._exact, curvature)
        slopes, curvatures = zip(*answers, strict=True)
        self.forwards = 1
        return np.sum(slopes, axis=0), np.sum(curvatures, axis=0) if curvature else None

    def evaluate(self, bias: Float64) -> tuple[float, Float32, Float64]:
        """Return loss and gradients."""
        answers = self._rows.ask(Part.evaluate_fixed, self._held, bias + self._moved, self._exact)
        losses, gradients, slopes = zip(*answers, strict=True)
        self.forwards = 1
        slope = np.sum(slopes, axis=0)
        return float(sum(losses)), self._sums.unfold(_added(gradients), slope), slope


def _added(parts: Sequence[NDArray[Any]]) -> Float64:
    total: Float64 = np.sum(parts, axis=0, dtype=np.float64)
    return total
