"""Which texts are computed together: a few lengths, each with the one batch size that it always has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

TOKENS_PER_BATCH = 256
_STEPS = 8  # lengths between a power of two and the next: at most an eighth of a row is padding


@dataclass(frozen=True, slots=True)
class Bucket:
    """A shape that batches have: `batch_size` texts of up to `length` tokens."""

    length: int
    batch_size: int


@dataclass(frozen=True, slots=True)
class TextBatch:
    """The texts, by their places `indices` in a window, of one batch; no more than the bucket's batch size."""

    bucket: Bucket
    indices: npt.NDArray[np.int64]


def bucket_lengths(max_length: int) -> tuple[int, ...]:
    """Return the lengths of all buckets up to `max_length`, the least first.

    >>> bucket_lengths(40)
    (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 22, 24, 26, 28, 30, 32, 36, 40)
    >>> bucket_lengths(100)[-5:]
    (72, 80, 88, 96, 100)
    """
    lengths: list[int] = []
    length = 0
    while length < max_length:
        length += max(1, (1 << max(0, length.bit_length() - 1)) // _STEPS)
        lengths.append(min(length, max_length))
    return tuple(lengths)


class Buckets:
    """The buckets of texts of up to `max_length` tokens, `tokens` of them to a batch, padding included."""

    def __init__(self, max_length: int, tokens: int = TOKENS_PER_BATCH) -> None:
        self.max_length = max_length
        self.all = tuple(Bucket(length, max(1, tokens // length)) for length in bucket_lengths(max_length))
        self._lengths = np.array([bucket.length for bucket in self.all])

    def place(self, length: int) -> int:
        """Return which of `all` a text of so many tokens (1 to `max_length`) belongs to."""
        return int(np.searchsorted(self._lengths, length))

    def plan(self, lengths: npt.NDArray[np.int64]) -> list[TextBatch]:
        """Return the batches of a window of texts with so many tokens each (1 to `max_length`), the longest first."""
        places = np.searchsorted(self._lengths, lengths)
        order = np.argsort(-places, kind="stable")
        batches = []
        start = 0
        for place, count in sorted(zip(*np.unique(places, return_counts=True), strict=True), reverse=True):
            bucket, members = self.all[place], order[start : start + count]
            start += count
            for first in range(0, count, bucket.batch_size):
                batches.append(TextBatch(bucket, members[first : first + bucket.batch_size]))
        return batches


def plan_batches(
    ids: Sequence[npt.NDArray[np.int64]], max_length: int, tokens: int = TOKENS_PER_BATCH
) -> list[TextBatch]:
    """Return the batches in which a window of texts is computed; each text is in one of them.

    >>> batches = plan_batches([np.ones(length, dtype=np.int64) for length in (3, 9, 4, 200)], max_length=256)
    >>> [(batch.bucket.length, batch.indices.tolist()) for batch in batches]
    [(208, [3]), (9, [1]), (4, [2]), (3, [0])]
    """
    return Buckets(max_length, tokens).plan(np.array([len(one) for one in ids], dtype=np.int64))
