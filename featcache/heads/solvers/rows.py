"""Standardised rows: one pass for the mean and standard deviation, then block products that all solvers are made of.

In memory the standardised matrix is kept as float32 ``(n_rows, n_features)``; a `BlockSource` is standardised block by
block into one buffer at each pass, so memory is a few blocks whatever the number of rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import InputError
from featcache.heads.solvers.problem import BlockSource, Problem, RemoteFeatures
from featcache.system.threads import processor_count

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

BLOCK_ROWS = 2048  # rows per product when reading from memory: large enough for GEMM, small enough for the buffers
_LEAST_SPREAD = 2.0**-24  # the smallest number of float16 above 0
CHUNK_ROWS = 256  # rows of features per elementwise step: they stay in a core's second-level cache
CHUNK_NUMBERS = 1 << 18  # of an elementwise step: with fewer, threads wait for each other longer than they compute
_THREADS = min(processor_count(), 8)
_pool: ThreadPoolExecutor | None = None
_pool_owner = 0


def pull_back(residual: NDArray[Any], block: Float32) -> Float32:
    """Return ``residual' Z`` ``(k, d)`` float32 of residuals ``(m, k)`` and rows Z ``(m, d)``.

    BLAS is up to 1.5 times faster with the long side first, the more the fewer the outputs.
    """
    return np.ascontiguousarray((block.T @ residual).T)


def dot(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return the inner product of two arrays of one shape."""
    return float(np.vdot(a, b))


def chunk_rows(width: int) -> int:
    """Return how many rows of `width` numbers an elementwise step takes."""
    return max(1, CHUNK_NUMBERS // width)


def map_chunks(n_rows: int, width: int, function: Callable[[int, int], float]) -> float:
    """Return the sum of ``function(start, stop)`` over `chunk_rows`, computed by threads, added in row order."""
    global _pool, _pool_owner
    size = chunk_rows(width)
    bounds = [(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]
    if _THREADS == 1 or len(bounds) < 2:
        return float(sum(function(start, stop) for start, stop in bounds))
    if _pool is None or _pool_owner != os.getpid():  # a forked child has no threads of its parent's pool
        _pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="featcache-solver")
        _pool_owner = os.getpid()

    def run(part: int) -> list[float]:
        return [function(start, stop) for start, stop in bounds[part::_THREADS]]

    parts = list(_pool.map(run, range(_THREADS)))
    return float(sum(parts[index % _THREADS][index // _THREADS] for index in range(len(bounds))))


def _check_finite(sums: Float64, first_row: int) -> None:
    if not np.isfinite(sums).all():
        column = int(np.flatnonzero(~np.isfinite(sums))[0])
        raise InputError(
            f"features must be finite, got NaN or Inf in column {column} at or after row {first_row}; "
            "drop those rows or build the cache again"
        )


def checked_blocks(source: BlockSource) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the blocks of `source`; `InputError` where they do not follow each other and cover all rows."""
    n_rows, n_features = source.shape
    expected = 0
    for start, block in source:
        if start != expected or block.ndim != 2 or block.shape[1] != n_features:
            raise InputError(
                f"blocks must follow each other with {n_features} columns, "
                f"got {block.shape} at row {start} where row {expected} was due"
            )
        expected += len(block)
        yield start, block
    if expected != n_rows:
        raise InputError(f"blocks must cover all {n_rows} rows, got {expected}")


def weighted_moments(
    blocks: Iterable[tuple[int, NDArray[Any]]],
    weights: Float32,
    *,
    n_rows: int,
    n_features: int,
    uniform: bool,
    shift: Float32 | None = None,
    first_row: int = 0,
) -> tuple[Float32, Float64, Float64]:
    """Return ``(shift, first, second)``, ``(d,)`` each: weighted sums of rows less `shift`, and of the squares of that.

    `weights` ``(m,)`` are those of the rows in `blocks`, shares of all `n_rows`. `shift`: without one the mean of the
    first rows. Raises `InputError` where the sums are not finite, whose rows stand from `first_row` on.
    """
    first, second = np.zeros(n_features), np.zeros(n_features)
    buffer = np.empty((CHUNK_ROWS, n_features), dtype=np.float32)
    for block_start, block in blocks:
        for offset in range(0, len(block), CHUNK_ROWS):
            chunk = block[offset : offset + CHUNK_ROWS]
            start = block_start + offset
            if shift is None:
                shift = chunk.mean(axis=0, dtype=np.float64).astype(np.float32)
                _check_finite(shift.astype(np.float64), first_row)
            centred = np.subtract(chunk, shift, out=buffer[: len(chunk)], casting="same_kind")
            scaled = weights[start : start + len(chunk)] * np.float32(n_rows)
            part = scaled @ centred
            _check_finite(part.astype(np.float64), first_row + start)
            first += part
            if uniform:
                np.multiply(centred, centred, out=centred)
                second += np.ones(len(chunk), dtype=np.float32) @ centred
            else:
                second += np.einsum("i,ij,ij->j", scaled, centred, centred)
    assert shift is not None
    return shift, first / n_rows, second / n_rows


def spread_of(
    mean: Float64, first: Float64, second: Float64, *, scale: Float64 | float = 1.0
) -> tuple[NDArray[np.bool_], Float64]:
    """Return which columns are constant, and the standard deviation of each ``(d,)``: 1 where it is constant.

    `first` and `second`: the means of the rows and of their squares, less a shift that is near `mean`, in units of
    `scale`; so is what is returned.
    """
    variance = second - first * first
    _check_finite(variance, 0)
    # A constant column leaves only rounding noise: of float32 arithmetic on values of the column's size.
    size = np.maximum(np.abs(mean) / scale, np.abs(first))
    noise = (np.finfo(np.float32).eps * size) ** 2 * 4 + 1e-14 * second
    # A spread that rows of float16 can hardly write is noise of theirs: its weight would be millions.
    constant = variance <= np.maximum(noise, (_LEAST_SPREAD / scale) ** 2)
    return constant, np.sqrt(np.where(constant, 1.0, variance))


class StandardisedRows:
    """The rows z = (x - mean) / std of a problem, with weights that sum to one.

    `mean` and `std` are ``(n_features,)`` float64, weighted by the sample weights; a constant column has std 1, so that
    its z is 0 and its weight stays 0. `weights` is ``(n_rows,)`` float32 and sums to 1. `effective_rows` is the sum of
    the sample weights. Not thread-safe for a `BlockSource` (one buffer).
    """

    def __init__(self, problem: Problem) -> None:
        """Read the features once for their moments and, if they are in memory, once more to standardise them."""
        self._weigh(problem)
        self._source = problem.features
        self._measure()
        self._matrix: Float32 | None = None
        self._buffer: Float32 | None = None
        if not isinstance(self._source, BlockSource) or isinstance(self._source, np.ndarray):
            matrix = np.empty((self.n_rows, self.n_features), dtype=np.float32)
            for start, block in self._raw_blocks():
                self._standardise(block, matrix[start : start + len(block)])
            self._matrix = matrix

    def _weigh(self, problem: Problem) -> None:
        self.n_rows, self.n_features = problem.n_rows, problem.n_features
        weight = problem.sample_weight
        raw = np.ones(self.n_rows) if weight is None else np.asarray(weight, dtype=np.float64)
        self.effective_rows = float(raw.sum())
        self.weights: Float32 = (raw / self.effective_rows).astype(np.float32)
        self.uniform = weight is None

    @property
    def in_memory(self) -> bool:
        """Return whether the rows are held here."""
        return self._matrix is not None

    @property
    def matrix(self) -> Float32:
        """Return the standardised matrix ``(n_rows, n_features)`` of rows in memory."""
        assert self._matrix is not None, "streamed rows have no matrix"
        return self._matrix

    def _raw_blocks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        if isinstance(self._source, np.ndarray):
            for start in range(0, self.n_rows, BLOCK_ROWS):
                yield start, self._source[start : start + BLOCK_ROWS]
            return
        assert not isinstance(self._source, RemoteFeatures)
        yield from checked_blocks(self._source)

    def _measure(self) -> None:
        """Compute mean and standard deviation in one pass, shifted by the first rows' mean against cancellation."""
        shift, first, second = weighted_moments(
            self._raw_blocks(), self.weights, n_rows=self.n_rows, n_features=self.n_features, uniform=self.uniform
        )
        self.mean: Float64 = shift.astype(np.float64) + first
        self.constant, self.std = spread_of(self.mean, first, second)
        self._round()

    def _round(self) -> None:
        """Keep mean and standard deviation in float32, as they are used."""
        constant = self.constant
        self._mean32 = np.where(constant, 0.0, self.mean).astype(np.float32)
        self._rest32 = np.where(constant, 0.0, self.mean - self._mean32).astype(np.float32)
        self._scale32 = np.where(constant, 0.0, 1.0 / self.std).astype(np.float32)

    def standardise(self, features: NDArray[Any]) -> Float32:
        """Return z ``(m, n_features)`` of further rows, by the mean and standard deviation of these."""
        z: Float32 = np.empty(features.shape, dtype=np.float32)
        self._standardise(features, z)
        return z

    def _standardise(self, block: NDArray[Any], out: NDArray[Any]) -> NDArray[Any]:
        """Write z of `block` into `out`; a constant column becomes exactly zero."""
        np.subtract(block, self._mean32, out=out, casting="same_kind")
        if self._rest32.any():
            out -= self._rest32
        out *= self._scale32
        return out

    def scale_columns(self, factors: Float64) -> None:
        """Multiply the columns of z by `factors` ``(n_features,)``, all above 0; `std` is divided by them."""
        factors32 = factors.astype(np.float32)
        self.std = self.std / factors
        self._scale32 = self._scale32 * factors32
        if self._matrix is not None:
            self._matrix *= factors32

    def blocks(self) -> Iterator[tuple[int, Float32]]:
        """Yield ``(first_row, z)`` with z ``(m, n_features)`` float32, valid until the next item."""
        if self._matrix is not None:
            for start in range(0, self.n_rows, BLOCK_ROWS):
                yield start, self._matrix[start : start + BLOCK_ROWS]
            return
        for start, block in self._raw_blocks():
            if self._buffer is None or len(self._buffer) < len(block):
                self._buffer = np.empty((len(block), self.n_features), dtype=np.float32)
            yield start, self._standardise(block, self._buffer[: len(block)])

    def restrict(self, columns: NDArray[np.int64]) -> StandardisedRows:
        """Return the same rows with only `columns`, copied into memory: one read of the rows."""
        part = StandardisedRows.__new__(StandardisedRows)
        part.__dict__.update(self.__dict__)
        part.n_features = len(columns)
        part.mean, part.std, part.constant = self.mean[columns], self.std[columns], self.constant[columns]
        matrix = np.empty((self.n_rows, len(columns)), dtype=np.float32)
        for start, block in self.blocks():
            np.take(block, columns, axis=1, out=matrix[start : start + len(block)], mode="clip")
        part._matrix = matrix
        return part

    def replaced(self, matrix: Float32) -> StandardisedRows:
        """Return rows of these weights that are `matrix` ``(n_rows, r)`` as it is: centred, not standardised."""
        part = StandardisedRows.__new__(StandardisedRows)
        part.__dict__.update(self.__dict__)
        part.n_features = matrix.shape[1]
        part.mean, part.std = np.zeros(part.n_features), np.ones(part.n_features)
        part.constant = np.zeros(part.n_features, dtype=np.bool_)
        part._matrix = matrix
        return part

    def continued(self, matrix: Float32) -> StandardisedRows:
        """Return rows that are `matrix` ``(m, n_features)``, `standardise` of other features; each counts alike."""
        part = StandardisedRows.__new__(StandardisedRows)
        part.__dict__.update(self.__dict__)
        part.n_rows, part.effective_rows, part.uniform = len(matrix), float(len(matrix)), True
        part.weights = np.full(len(matrix), 1.0 / len(matrix), dtype=np.float32)
        part._source = part._matrix = matrix
        part._buffer = None
        return part
