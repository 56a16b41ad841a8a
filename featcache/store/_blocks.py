"""Cutting rows into the blocks of a store's arrays, batch after batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.store._generation import Block, Committed
from featcache.store._record import KEYS


class BlockCutter:
    """Cuts rows into the blocks of every array, carrying the partial last ones on.

    A block's payload is lent: it is valid until the next block is asked for.
    """

    def __init__(self, committed: Committed) -> None:
        self._arrays = committed.record.arrays
        self.rows = self._cut_rows = committed.record.rows
        self._tails = {layout.name: bytearray(committed.tails.get(layout.name, b"")) for layout in self._arrays}

    def add(self, batches: list[dict[str, npt.NDArray[Any]]]) -> None:
        """Take over the rows of `batches`, emptying it: a commit's rows need not be in memory several times over."""
        self.rows += sum(len(batch[KEYS]) for batch in batches)
        for layout in self._arrays:
            tail = self._tails[layout.name]
            for batch in batches:
                tail += np.ascontiguousarray(batch.pop(layout.name)).reshape(-1).view(np.uint8).data
        batches.clear()

    def cut(self, *, finish: bool) -> Iterator[Block]:
        """Yield the blocks that the rows added since the last time fill; to `finish`, the partial ones they end in."""
        first, self._cut_rows = self._cut_rows, self.rows
        for layout in self._arrays:
            tail = self._tails[layout.name]
            block, whole = first // layout.block_rows, len(tail) - len(tail) % layout.block_bytes
            for start in range(0, whole, layout.block_bytes):
                with memoryview(tail)[start : start + layout.block_bytes] as payload:
                    yield Block(layout, block, payload)
                block += 1
            del tail[:whole]
        if finish:
            yield from self.rest()

    def rest(self) -> Iterator[Block]:
        """Yield the partial last blocks."""
        for layout in self._arrays:
            if self._tails[layout.name]:
                with memoryview(self._tails[layout.name]) as payload:
                    yield Block(layout, self.rows // layout.block_rows, payload)

    def tails(self) -> dict[str, memoryview]:
        """Return the bytes of the rows in each array's partial last block."""
        return {name: memoryview(bytes(tail)) for name, tail in self._tails.items() if tail}
