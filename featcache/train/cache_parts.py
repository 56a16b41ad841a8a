"""Rows of a cache that a worker reads by itself, wherever it is: the cache's place and the numbers of the rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featcache.errors import InputError
from featcache.heads.base import Floats
from featcache.heads.solvers.partitioned import PartitionedFeatures, distribute
from featcache.heads.solvers.parts import Workers
from featcache.train.blocks import BLOCK_BYTES, RowsOfCache, StreamedFeatures, rows_per_block

if TYPE_CHECKING:
    from featcache.cache import FeatureCache


@dataclass(frozen=True, slots=True, eq=False)
class CachePart:
    """Consecutive rows of a data set, as a worker reads them: what the solvers call a `BlockSource`.

    `place`: the cache, or its path where it is opened there; it must be that of `fingerprint`. The other fields are
    those of `RowsOfCache`; `dataset` names the samples.
    """

    place: FeatureCache | str
    fingerprint: str
    dataset: str
    columns: tuple[str, ...]
    width: int
    rows: npt.NDArray[np.int64]
    views: npt.NDArray[Any]
    indices: npt.NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, int]:
        """(n_rows, n_features)."""
        return len(self.rows), self.width

    def __iter__(self) -> Iterator[tuple[int, Floats]]:
        """Yield ``(first_row, block)`` as `StreamedFeatures` does; `InputError` for another cache."""
        from featcache.cache import borrow_cache

        with borrow_cache(self.place) as cache:
            if cache.fingerprint != self.fingerprint:
                raise InputError(
                    f"workers must find the cache {str(cache.path)!r} that is trained on, theirs has the fingerprint "
                    f"{cache.fingerprint[:12]} instead of {self.fingerprint[:12]}: put it where all machines see it"
                )
            rows = RowsOfCache(
                cache, self.columns, self.rows, self.views, self.indices, lambda: cache.samples(self.dataset)
            )
            block_rows = rows_per_block(self.width, memory_bytes=4 * BLOCK_BYTES)
            yield from StreamedFeatures([rows], num_features=self.width, block_rows=block_rows)


def partition_rows(rows: CachePart, workers: Workers) -> PartitionedFeatures:
    """Return features whose rows are `rows`, a run of them with each worker; nothing is read yet."""
    bounds = np.linspace(0, len(rows.rows), workers.n_workers + 1).astype(np.int64)
    parts = [
        CachePart(
            rows.place,
            rows.fingerprint,
            rows.dataset,
            rows.columns,
            rows.width,
            rows.rows[a:b],
            rows.views[a:b],
            rows.indices[a:b],
        )
        for a, b in pairwise(bounds)
    ]
    return distribute(workers, parts)
