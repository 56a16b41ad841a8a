"""The interface of a text engine: token ids in, feature rows out. It knows none of the implementations."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import final

import numpy as np
import numpy.typing as npt

from featcache.engines.interface import CompiledNetwork, Features
from featcache.engines.text.buckets import Buckets, TextBatch
from featcache.errors import InputError

TokenIds = npt.NDArray[np.int64]
WINDOW = 16384  # texts that are sorted together: fewer leave more batches partly empty


class TextEngine(CompiledNetwork):
    """A compiled text encoder; `workers`: how many batches are computed at once, each on one thread.

    `buckets`: the shapes of batches. `pad_id`: the token behind a text that is shorter than its bucket.

    An implementation sets these, computes one batch in `_infer`, whose rows must not depend on each other nor on what
    the mask leaves out, and lets go of the network in `_release`. `featcache.testing.text_engines.TextEngineContract`
    tests the rest.

    Examples
    --------
    >>> import numpy as np
    >>> from featcache.engines.text.buckets import Buckets
    >>> from featcache.engines.text.interface import TextEngine
    >>> class MeanId(TextEngine):
    ...     name, version, precision, workers, pad_id = "mean", "1", "fp32", 1, 0
    ...     columns, buckets = (("features", (1,)),), Buckets(8)
    ...     def _infer(self, ids, mask):
    ...         return (((ids * mask).sum(axis=1) / mask.sum(axis=1))[:, None].astype(np.float32),)
    ...     def _release(self):
    ...         pass
    >>> with MeanId() as engine:
    ...     (rows,) = engine.run([np.array([3, 5]), np.array([7])])
    >>> rows.tolist()
    [[4.0], [7.0]]
    """

    buckets: Buckets
    pad_id: int

    @final
    def run(self, ids: Sequence[TokenIds]) -> tuple[Features, ...]:
        """Return, for each column, the rows of texts.

        Parameters
        ----------
        ids : sequence of (length,) int64
            Of any number of texts, 1 to ``buckets.max_length`` tokens each, as a `TextTokenizer` gives them.

        Returns
        -------
        tuple of (n, *shape) float32
            One array of the caller's own per column, in the order of `ids`. A row is the same bits whatever its
            neighbours and order.

        Raises
        ------
        InputError
            For texts of no token or too many, and once the engine is closed.
        """
        self._require_open()
        lengths = np.array([len(one) for one in ids], dtype=np.int64)
        if len(ids) and not (lengths.min() >= 1 and lengths.max() <= self.buckets.max_length):
            odd = int(lengths.min()) if lengths.min() < 1 else int(lengths.max())
            raise InputError(f"a text must have 1 to {self.buckets.max_length} tokens, got one of {odd}")
        results = tuple(np.empty((len(ids), *shape), dtype=np.float32) for _, shape in self.columns)

        def compute(batch: TextBatch) -> None:
            for result, rows in zip(results, self._infer(*self._padded(batch, ids)), strict=True):
                result[batch.indices] = rows[: len(batch.indices)]

        batches: list[TextBatch] = []
        for start in range(0, len(ids), WINDOW):
            for batch in self.buckets.plan(lengths[start : start + WINDOW]):
                batches.append(TextBatch(batch.bucket, batch.indices + start))
        if self.workers == 1 or len(batches) < 2:
            for batch in batches:
                compute(batch)
        else:
            with ThreadPoolExecutor(min(self.workers, len(batches)), "text-engine") as pool:
                for _ in pool.map(compute, batches):
                    pass
        return results

    def _padded(self, batch: TextBatch, ids: Sequence[TokenIds]) -> tuple[TokenIds, TokenIds]:
        """Return ids and mask in the bucket's shape; rows without a text repeat the first one."""
        shape = (batch.bucket.batch_size, batch.bucket.length)
        values, mask = np.full(shape, self.pad_id, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for row, index in enumerate(batch.indices.tolist()):
            values[row, : len(ids[index])] = ids[index]
            mask[row, : len(ids[index])] = 1
        values[len(batch.indices) :], mask[len(batch.indices) :] = values[0], mask[0]
        return values, mask

    @abstractmethod
    def _infer(self, ids: TokenIds, mask: TokenIds) -> tuple[Features, ...]:
        """Return the outputs, in arrays of the caller's own, of one batch of a bucket's shape."""
