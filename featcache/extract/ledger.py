"""The images of one extraction on their way in: who takes which, what they are, and what became of each.

Everything is kept in arrays, a few dozen bytes per image, so that millions of images are no burden.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from featcache.system.sources.interface import FileStat

PENDING: Final = 0
EXTRACTED: Final = 1
REUSED: Final = 2
REPEATED: Final = 3  # equal bytes to an image that came before: its row, or its failure
FAILED: Final = 4


Known = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]  # digests (n, 32) and stats (n, 4)


class ExtractionLedger:
    """The paths of n images, handed out one by one to any thread, and what is known of each.

    `digests` (n, 32) uint8, `stats` (n, 4) int64, zeros where an image could not be read; written into `out`, where
    such arrays are given.
    """

    def __init__(self, paths: Sequence[str | bytes], out: Known | None = None) -> None:
        count = len(paths)
        self.paths = paths
        self.digests, self.stats = out or (np.empty((count, 32), dtype=np.uint8), np.empty((count, 4), dtype=np.int64))
        self.digests.fill(0)
        self.stats.fill(0)
        self.finished = 0
        self._states = np.zeros(count, dtype=np.uint8)
        self._failures: dict[int, str] = {}
        self._next = 0
        # An open-addressing table of indices: a set of digests would take ten times the memory.
        self._table = np.full(
            1 << max(4, (2 * count - 1).bit_length()), -1, dtype=np.int32 if count < 1 << 31 else np.int64
        )
        self._lock = threading.Lock()

    @property
    def exhausted(self) -> bool:
        """Whether every image was taken."""
        return self._next >= len(self.paths)

    def take(self) -> int | None:
        """Return the index of the next image, None where every one was taken."""
        with self._lock:
            if self._next >= len(self.paths):
                return None
            self._next += 1
            return self._next - 1

    def identify(self, index: int, data: bytes, stat: FileStat) -> bool:
        """Note an image's digest and stat; return whether these bytes come for the first time in this extraction."""
        return self.note(index, hashlib.sha256(data).digest(), stat)

    def note(self, index: int, digest: bytes, stat: FileStat) -> bool:
        """Note an image's digest, known already, and its stat; return as `identify`."""
        row = np.frombuffer(digest, dtype=np.uint8)
        mask = len(self._table) - 1
        with self._lock:
            self.digests[index] = row
            self.stats[index] = stat
            slot = int.from_bytes(digest[:8], "little") & mask
            while (other := int(self._table[slot])) >= 0:
                if self.digests[other].tobytes() == digest:
                    self._set(index, REPEATED)
                    return False
                slot = (slot + 1) & mask
            self._table[slot] = index
            return True

    def reuse(self, index: int) -> None:
        """Note that an image's rows were there before."""
        with self._lock:
            self._set(index, REUSED)

    def finish(self, index: int) -> None:
        """Note that an image is on its way to its rows."""
        with self._lock:
            self._set(index, EXTRACTED)

    def fail(self, index: int, reason: str) -> None:
        """Note why an image has no row."""
        with self._lock:
            self._failures[index] = reason
            self._set(index, FAILED)

    def _set(self, index: int, state: int) -> None:
        self._states[index] = state
        self.finished += 1

    def settled_failures(self) -> dict[int, str]:
        """Return index → reason, with the images whose bytes equal those of a failed one."""
        reasons = {self.digests[index].tobytes(): reason for index, reason in self._failures.items()}
        reasons.pop(bytes(32), None)  # never read: nothing equals it
        if reasons:
            for index in np.flatnonzero(self._states == REPEATED):
                reason = reasons.get(self.digests[index].tobytes())
                if reason is not None:
                    self._failures[int(index)] = reason
                    self._states[index] = FAILED
        return dict(sorted(self._failures.items()))

    def reused(self) -> int:
        """Return how many images needed no row of their own; call it after `settled_failures`."""
        return int(np.count_nonzero((self._states == REUSED) | (self._states == REPEATED)))
