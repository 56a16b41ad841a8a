"""Rows of a cache that do not fit into memory: read from the store block by block, at every pass anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featcache.datasets.listing import printable
from featcache.errors import InputError
from featcache.heads.base import Floats
from featcache.heads.solvers.partitioned import PartitionedFeatures
from featcache.heads.solvers.parts import Chosen, Columns, Part, Table
from featcache.system.objects import ObjectPath
from featcache.system.read_ahead import ReadAhead

if TYPE_CHECKING:
    from featcache.cache import FeatureCache
    from featcache.datasets.samples import Samples
    from featcache.store import StoreReader

WITHOUT_CLUSTER = "use a linear head without mixup, or leave out the cluster (--ray)"
BLOCK_BYTES = 1 << 26  # of a block's float32 rows: far more than a product needs to be fast, far less than memory
FEWEST_ROWS = 64  # of a block, whatever memory is allowed: fewer are no faster to hold and much slower to read


@dataclass(frozen=True, slots=True, eq=False)
class RowsOfCache:
    """Where rows lie: `cache`; `rows` (n,) in its store and `views` (n,), in order; `columns` laid side by side.

    `indices` (n,): the samples they belong to, in what `samples` returns; to name an image whose features are not
    finite.
    """

    cache: FeatureCache
    columns: tuple[str, ...]
    rows: npt.NDArray[np.int64]
    views: npt.NDArray[Any]
    indices: npt.NDArray[np.int64]
    samples: Callable[[], Samples]

    def __getitem__(self, chosen: Any) -> RowsOfCache:
        """Return the rows that a mask (n,) or a slice chooses."""
        return RowsOfCache(
            self.cache, self.columns, self.rows[chosen], self.views[chosen], self.indices[chosen], self.samples
        )

    def read(self, reader: StoreReader) -> Floats:
        """Return the features (n, d) float32, by an open reader; `InputError` where one is NaN or infinite."""
        starts = np.flatnonzero(np.diff(self.views.astype(np.int64), prepend=-1))  # of runs of rows in one view
        parts = [
            self.cache.gather(self.rows[a:b], output=list(self.columns), views=[int(self.views[a])], reader=reader)
            for a, b in pairwise([*starts, len(self.rows)])
        ]
        features = parts[0] if len(parts) == 1 else np.concatenate(parts)
        check_finite(features, self.indices, self.samples)
        return features


class StreamedFeatures:
    """Features (n, d) that are read again at every pass: what the solvers call a `BlockSource`.

    `parts`: rows one after another, of one or several data sets. `kept` (d,): which of their columns, None for all.
    Memory holds one block of `block_rows` rows. The cache must stay open, and its rows as they are.
    """

    def __init__(
        self,
        parts: Sequence[RowsOfCache],
        *,
        num_features: int,
        block_rows: int,
        kept: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self._parts = tuple(parts)
        self._num_features, self._block_rows, self._kept = num_features, block_rows, kept

    @property
    def shape(self) -> tuple[int, int]:
        """(n_rows, n_features)."""
        width = self._num_features if self._kept is None else len(self._kept)
        return sum(len(part.rows) for part in self._parts), width

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[tuple[int, Floats]]:
        """Yield ``(first_row, block)``, block (m, d) float32; raises `InputError` where one is not finite."""
        first = 0
        for block in self._blocks():
            yield first, block if self._kept is None else np.ascontiguousarray(block[:, self._kept])
            first += len(block)

    def _blocks(self) -> Iterator[Floats]:
        """Yield the rows of all parts, block by block; from a storage, the next is on its way while one is in use.

        A pass has one snapshot of each cache: a storage is asked once what is in it.
        """
        with ExitStack() as opened:
            readers = {cache: opened.enter_context(cache.reader()) for cache in {part.cache for part in self._parts}}
            blocks = [
                (part[start : start + self._block_rows], readers[part.cache])
                for part in self._parts
                for start in range(0, len(part.rows), self._block_rows)
            ]
            if not any(isinstance(cache.path, ObjectPath) for cache in readers):
                yield from (block.read(reader) for block, reader in blocks)
                return
            with ReadAhead(
                lambda i: blocks[i][0].read(blocks[i][1]), len(blocks), size=lambda rows: rows.nbytes, most=1
            ) as reads:
                yield from (reads.take(i) for i in range(len(blocks)))

    def __getitem__(self, chosen: Any) -> StreamedFeatures:
        """Return the rows that a mask (n,) or a slice chooses."""
        mask = np.zeros(len(self), dtype=bool)
        mask[chosen] = True
        ends = np.cumsum([len(part.rows) for part in self._parts])
        masks = np.split(mask, ends[:-1])
        return self._of([part[rows] for part, rows in zip(self._parts, masks, strict=True)], self._kept)

    def take_columns(self, kept: npt.NDArray[np.int64]) -> StreamedFeatures:
        """Return the same rows with only the columns `kept` (m,)."""
        return self._of(self._parts, kept if self._kept is None else self._kept[kept])

    def followed_by(self, other: StreamedFeatures) -> StreamedFeatures:
        """Return these rows and then those of `other`, which must have as many columns."""
        return self._of((*self._parts, *other._parts), self._kept)

    def _of(self, parts: Sequence[RowsOfCache], kept: npt.NDArray[np.int64] | None) -> StreamedFeatures:
        """Return features read as these are, of other `parts` and columns `kept`."""
        return StreamedFeatures(parts, num_features=self._num_features, block_rows=self._block_rows, kept=kept)


Features = Floats | StreamedFeatures | PartitionedFeatures


def rows_per_block(num_features: int, *, memory_bytes: int) -> int:
    """Return how many rows are read at once: a quarter of `memory_bytes`, at most 64 MiB, at least 64 rows."""
    return max(FEWEST_ROWS, min(BLOCK_BYTES, memory_bytes // 4) // (4 * num_features))


def blocks_of(features: Features) -> Iterator[tuple[int, Floats]]:
    """Yield ``(first_row, rows)`` of features that can be had here; those in memory are one block."""
    assert not isinstance(features, PartitionedFeatures), "rows in parts stay there"
    if isinstance(features, StreamedFeatures):
        yield from features
    else:
        yield 0, features


def map_rows(function: Callable[[Floats], Floats], features: Features) -> Floats:
    """Return what `function` makes of rows (m, d) → (m, k), for all of `features` (n, d): (n, k).

    It is called where the rows are, and so is sent there where they are in parts.
    """
    if isinstance(features, PartitionedFeatures):
        return np.concatenate(features.ask(_map_part, function))
    return np.concatenate([function(block) for _, block in blocks_of(features)])


def _map_part(
    part: Part, table: Table, chosen: Chosen, columns: Columns, function: Callable[[Floats], Floats]
) -> Floats:
    return np.concatenate([function(block) for _, block in part.raw_blocks(table, chosen, columns)])


def take_columns(features: Features, kept: npt.NDArray[np.int64]) -> Features:
    """Return `features` with only the columns `kept`."""
    if isinstance(features, StreamedFeatures | PartitionedFeatures):
        return features.take_columns(kept)
    return np.ascontiguousarray(features[:, kept])


def join_rows(first: Features, second: Features) -> Features:
    """Return the rows of `first` and then those of `second`: both in memory, both streamed or both in parts."""
    if isinstance(first, PartitionedFeatures):
        assert isinstance(second, PartitionedFeatures)
        return first.followed_by(second)
    if isinstance(first, StreamedFeatures):
        assert isinstance(second, StreamedFeatures)
        return first.followed_by(second)
    assert not isinstance(second, StreamedFeatures | PartitionedFeatures)
    return np.concatenate([first, second])


def in_memory(features: Features, what: str) -> Floats:
    """Return features that are in memory, or raise `InputError` saying that `what` needs them there."""
    if isinstance(features, StreamedFeatures):
        raise InputError(
            f"{what} needs the rows in memory, got {len(features)} of {features.shape[1]} features, more than memory "
            "allows: use a linear head without mixup, or raise memory_bytes (--memory-gb)"
        )
    if isinstance(features, PartitionedFeatures):
        raise InputError(f"{what} needs the rows in memory, in a cluster they are in parts: {WITHOUT_CLUSTER}")
    return features


def check_finite(features: Floats, indices: npt.NDArray[np.int64], samples: Callable[[], Samples]) -> None:
    """Raise `InputError` naming the first image whose features (n, d) are not finite; `indices`: their samples.

    Where there are more rows than indices, the rows are those samples once for each view.
    """
    if np.isfinite(features.sum(dtype=np.float64)):
        return
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        first = printable(samples().paths[int(indices[bad[0] % len(indices)])])
        raise InputError(
            f"features must be finite, got NaN or infinity in {len(bad)} rows, first that of {first!r}: the network "
            "overflows on it; build the cache with --precision fp32"
        )
