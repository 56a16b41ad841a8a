"""Rows that lie in parts, each held by a worker: read once, kept where they are, and only sums of them given away.

A worker holds a `Part`. Nothing that it computes depends on what it was asked before: a worker that is lost is replaced
by an empty one, which reads its rows again at the next question and answers alike.
"""

from __future__ import annotations

import itertools
import pickle
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from featcache.heads.solvers.losses import Loss
from featcache.heads.solvers.problem import BlockSource
from featcache.heads.solvers.rows import BLOCK_ROWS, Float32, Float64, checked_blocks, weighted_moments
from featcache.heads.solvers.sums import LocalFixedWeights, LocalSums

T = TypeVar("T")
Columns = NDArray[np.int64] | None
Chosen = NDArray[np.int64] | None
_numbers = itertools.count()


def next_number() -> int:
    """Return a number that no other table or share of this process has."""
    return next(_numbers)


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Rows that one worker reads once; `number` tells it from the worker's other tables."""

    number: int
    source: BlockSource


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """What one table gives to one problem: the rows `chosen` of it (None: all), and their `loss`.

    `first_row`: which row of the problem the first of them is, to name it. `uniform`: whether all rows weigh alike.
    """

    number: int
    chosen: Chosen
    loss: Loss
    first_row: int
    n_rows: int
    uniform: bool


class Frame:
    """The mean and standard deviation ``(d,)`` by which rows are held: as z, so that no pass computes it anew."""

    def __init__(self, mean: Float64, std: Float64) -> None:
        """Keep them, and what they are in float32."""
        self.mean, self.std = mean, std
        self._mean32 = mean.astype(np.float32)
        self._rest32 = (mean - self._mean32).astype(np.float32)
        self._scale32 = (1.0 / std).astype(np.float32)

    def standardise(self, block: Float32) -> None:
        """Turn `block` ``(m, d)`` into its z, in place."""
        block -= self._mean32
        if self._rest32.any():
            block -= self._rest32
        block *= self._scale32

    def restore(self, z: Float32, columns: Columns) -> Float32:
        """Return the rows of which `z` ``(m, d)`` was made, to float32's rounding; `columns`: which z has."""
        at = slice(None) if columns is None else columns
        block: Float32 = z * self.std[at].astype(np.float32)
        block += self._mean32[at]
        return block


@dataclass(slots=True, eq=False)
class _Held:
    """The rows of a table; `frame`: by which they are standardised, None while they are as they were read."""

    matrix: Float32
    frame: Frame | None = None


class _HeldRows:
    """Rows that a part holds, as sums take them: some or all, of some or all columns, block by block."""

    in_memory = True

    def __init__(self, matrix: Float32, chosen: Chosen, columns: Columns, weights: Float32) -> None:
        self._matrix, self._chosen, self._columns = matrix, chosen, columns
        self.n_rows = len(matrix) if chosen is None else len(chosen)
        self.n_features = matrix.shape[1] if columns is None else len(columns)
        self.weights = weights

    def blocks(self) -> Iterator[tuple[int, Float32]]:
        """Yield ``(first_row, rows)`` as they are held."""
        for start in range(0, self.n_rows, BLOCK_ROWS):
            block: Float32
            if self._chosen is None:
                block = np.asarray(self._matrix[start : start + BLOCK_ROWS])
            else:
                block = self._matrix[self._chosen[start : start + BLOCK_ROWS]]
            yield start, block if self._columns is None else np.ascontiguousarray(block[:, self._columns])


class Part:
    """The rows of one worker: each table is read when it is first asked for, and then held.

    Parameters
    ----------
    memory_bytes : int, optional
        Rows beyond it are held in a file without a name, in the folder for temporary files, and mapped into memory.
    """

    def __init__(self, memory_bytes: int | None = None) -> None:
        """Hold nothing yet."""
        self._memory_bytes = memory_bytes
        self._tables: dict[int, _Held] = {}
        self._narrow: tuple[int, NDArray[np.int64], Float32] | None = None  # of a table, the columns last in use
        self._fixed: tuple[int, Columns, NDArray[Any], bool, LocalFixedWeights] | None = None
        self._held_bytes = 0

    # --- what is held ---

    def _hold(self, table: Table) -> _Held:
        if table.number not in self._tables:
            matrix = self._room(*table.source.shape)
            for start, block in checked_blocks(table.source):
                matrix[start : start + len(block)] = block
            self._tables[table.number] = _Held(matrix)
        return self._tables[table.number]

    def _room(self, n_rows: int, n_features: int) -> Float32:
        size = 4 * n_rows * n_features
        if not size or self._fits(size):
            self._held_bytes += size
            return np.empty((n_rows, n_features), dtype=np.float32)
        with tempfile.TemporaryFile(prefix="featcache-rows-") as file:  # gone with the process, however that ends
            return np.memmap(file, dtype=np.float32, mode="w+", shape=(n_rows, n_features))

    def _fits(self, size: int) -> bool:
        return self._memory_bytes is None or self._held_bytes + size <= self._memory_bytes

    def _rows(self, table: Table, share: Share, frame: Frame | None, columns: Columns) -> _HeldRows:
        """Return the rows of a share, standardised by `frame`, if there is one already."""
        held = self._hold(table)
        if frame is not None and held.frame is None:
            for start in range(0, len(held.matrix), BLOCK_ROWS):
                frame.standardise(held.matrix[start : start + BLOCK_ROWS])
            held.frame = frame
            self._narrow = None
        matrix = held.matrix
        if columns is not None and self._copy_of(table, columns, matrix):
            assert self._narrow is not None
            matrix, columns = self._narrow[2], None
        return _HeldRows(matrix, share.chosen, columns, share.loss.weights)

    def _copy_of(self, table: Table, columns: NDArray[np.int64], matrix: Float32) -> bool:
        """Return whether there is room for a copy of some columns, which is then made: most are asked for again."""
        if self._narrow is not None and self._narrow[0] == table.number and np.array_equal(self._narrow[1], columns):
            return True
        self._narrow = None
        if not self._fits(4 * len(matrix) * len(columns)):
            return False
        copy = np.empty((len(matrix), len(columns)), dtype=np.float32)
        for start in range(0, len(matrix), BLOCK_ROWS):
            np.take(
                matrix[start : start + BLOCK_ROWS], columns, axis=1, out=copy[start : start + BLOCK_ROWS], mode="clip"
            )
        self._narrow = (table.number, columns, copy)
        return True

    # --- sums for a fit: of a table's share of a problem, on some columns ---

    def moments(
        self, table: Table, share: Share, frame: Frame | None, columns: Columns, shift: Float32
    ) -> tuple[Float64, Float64] | None:
        """Return the first and second moments of rows less `shift`, weighted; None where there are no rows."""
        rows = self._rows(table, share, frame, columns)
        if not rows.n_rows:
            return None
        return weighted_moments(
            rows.blocks(),
            rows.weights,
            n_rows=share.n_rows,
            n_features=rows.n_features,
            uniform=share.uniform,
            shift=shift,
            first_row=share.first_row,
        )[1:]

    def first_mean(self, table: Table, share: Share, frame: Frame | None, columns: Columns) -> Float32 | None:
        """Return the mean of the first rows ``(d,)``, by which moments are shifted; None where there are no rows."""
        for _, block in self._rows(table, share, frame, columns).blocks():
            mean: Float32 = block[:256].mean(axis=0, dtype=np.float64).astype(np.float32)
            return mean
        return None

    def evaluate(
        self, table: Table, share: Share, frame: Frame, columns: Columns, weight: Float32, bias: Float32
    ) -> tuple[float, Float32, Float64]:
        """Return loss, weight gradient and bias gradient of these rows."""
        return self._sums(table, share, frame, columns).evaluate(weight, bias)

    def target_products(self, table: Table, share: Share, frame: Frame, columns: Columns) -> tuple[Float32, Float64]:
        """Return the products of these rows with their targets."""
        return self._sums(table, share, frame, columns).target_products()

    def gram(self, table: Table, share: Share, frame: Frame, columns: Columns) -> Float64:
        """Return the weighted Gram matrix of these rows."""
        return self._sums(table, share, frame, columns).gram()

    def slope(
        self,
        table: Table,
        share: Share,
        frame: Frame,
        columns: Columns,
        weight: NDArray[Any],
        bias: Float64,
        exact: bool,
        curvature: bool,
    ) -> tuple[Float64, Float64 | None]:
        """Return slope and curvature in the bias at fixed weights, whose logits are kept for the next question."""
        return self._term(table, share, frame, columns, weight, exact).slope(bias, curvature=curvature)

    def evaluate_fixed(
        self,
        table: Table,
        share: Share,
        frame: Frame,
        columns: Columns,
        weight: NDArray[Any],
        bias: Float64,
        exact: bool,
    ) -> tuple[float, Float32, Float64]:
        """Return loss and gradients at weights whose logits may be at hand."""
        return self._term(table, share, frame, columns, weight, exact).evaluate(bias)

    def _sums(self, table: Table, share: Share, frame: Frame, columns: Columns) -> LocalSums:
        return LocalSums(self._rows(table, share, frame, columns), share.loss)

    def _term(
        self, table: Table, share: Share, frame: Frame, columns: Columns, weight: NDArray[Any], exact: bool
    ) -> LocalFixedWeights:
        if self._fixed is not None:
            number, their_columns, their_weight, their_exact, term = self._fixed
            same = number == share.number and their_exact == exact and np.array_equal(their_weight, weight)
            if same and np.array_equal(their_columns, columns):  # type: ignore[arg-type] # None equals None alone
                return term
        term = LocalFixedWeights(self._rows(table, share, frame, columns), share.loss, weight, exact=exact)
        self._fixed = share.number, columns, weight, exact, term
        return term

    # --- rows for a prediction ---

    def raw_blocks(self, table: Table, chosen: Chosen, columns: Columns) -> Iterator[tuple[int, Float32]]:
        """Yield ``(first_row, rows)`` of a table as they were read, to float32's rounding."""
        held = self._hold(table)
        n = len(held.matrix) if chosen is None else len(chosen)
        for start in range(0, max(n, 1), BLOCK_ROWS):  # of no rows, one block of none
            at = slice(start, start + BLOCK_ROWS) if chosen is None else chosen[start : start + BLOCK_ROWS]
            block: Float32 = held.matrix[at]
            if columns is not None:
                block = block[:, columns]
            yield start, np.asarray(block) if held.frame is None else held.frame.restore(block, columns)


@dataclass(slots=True)
class Traffic:
    """What went to the workers and came back, as if each were a machine of its own: bytes, and rounds of questions.

    `kept`: bytes sent once, to be kept. `sent`, `received`: in `rounds`.
    """

    kept: int = 0
    sent: int = 0
    received: int = 0
    rounds: int = 0


@dataclass(eq=False)
class Held:
    """What is kept beside the workers, as a value of `Workers.run` that costs no traffic again."""

    value: Any


class Workers(ABC):
    """Some workers, each with a `Part`: where they are is the implementation's business.

    `frame`: by which all of them hold their rows standardised, once the first problem was measured. `elsewhere`:
    whether they are other processes, which must open for themselves what they read.
    """

    elsewhere = True

    def __init__(self, n_workers: int) -> None:
        """Begin with nothing sent."""
        self.n_workers = n_workers
        self.traffic = Traffic()
        self.frame: Held = Held(None)

    def keep(self, value: Any) -> Held:
        """Return what stands for `value` in `run`: it is sent at most once."""
        self.traffic.kept += message_bytes(value)
        return self._keep(value)

    def run(
        self, product: Callable[..., T], at: Sequence[int], each: Sequence[tuple[Any, ...]], *common: Any
    ) -> list[T]:
        """Return ``product(part, *each[i], *common)`` of the worker ``at[i]``, for every i; one round.

        `product`: a method of `Part`, or a function whose first argument is one. Raises what the first of them raised.
        """
        results = self._run(product, at, each, common)
        plain = [item for item in common if not isinstance(item, Held)]
        self.traffic.rounds += 1
        self.traffic.sent += len(at) * message_bytes(plain)
        self.traffic.sent += message_bytes([item for one in each for item in one if not isinstance(item, Held)])
        self.traffic.received += message_bytes(results)
        return results

    @abstractmethod
    def _keep(self, value: Any) -> Held: ...

    @abstractmethod
    def _run(
        self, product: Callable[..., T], at: Sequence[int], each: Sequence[tuple[Any, ...]], common: tuple[Any, ...]
    ) -> list[T]: ...


class LocalWorkers(Workers):
    """Parts in this very process, asked one after another: for tests, and to read a slow storage only once."""

    elsewhere = False

    def __init__(self, n_workers: int, *, memory_bytes: int | None = None) -> None:
        """Begin with empty parts; `memory_bytes`: of each."""
        super().__init__(n_workers)
        self.parts = [Part(memory_bytes) for _ in range(n_workers)]

    def _keep(self, value: Any) -> Held:
        return Held(value)

    def _run(
        self, product: Callable[..., T], at: Sequence[int], each: Sequence[tuple[Any, ...]], common: tuple[Any, ...]
    ) -> list[T]:
        def value_of(item: Any) -> Any:
            return item.value if isinstance(item, Held) else item

        return [
            product(self.parts[worker], *map(value_of, own), *map(value_of, common))
            for worker, own in zip(at, each, strict=True)
        ]


def message_bytes(message: Any) -> int:
    """Return how many bytes `message` takes when it is sent, arrays uncopied."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    return len(head) + sum(buffer.raw().nbytes for buffer in buffers)
