"""The chunks of one array across the segments of a snapshot, a bounded number of them kept and fetched ahead."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.store._object_segment import StoredSegment
from featcache.store.interface import Rows

_REQUESTS_AT_ONCE = 8

Chunk = npt.NDArray[Any]
ChunkName = tuple[str, str, int]  # of the array, the segment, the block


class ChunkedArray:
    """Where the rows of array `name` lie: chunk c holds the rows from ``first_rows[c]`` up to ``first_rows[c + 1]``."""

    def __init__(self, name: str, segments: list[StoredSegment]) -> None:
        self.name = name
        self._segments = segments
        firsts, owners, blocks = [], [], []
        start = 0
        for number, segment in enumerate(segments):
            layout, rows = segment.record.layout(name), segment.record.rows
            count = layout.blocks(rows)
            firsts.append(start + layout.block_rows * np.arange(count, dtype=np.int64))
            owners.append(np.full(count, number))
            blocks.append(np.arange(count))
            start += rows
        self.first_rows = np.concatenate([*firsts, np.array([start], dtype=np.int64)])
        self._owners = np.concatenate([np.empty(0, np.int64), *owners])
        self._blocks = np.concatenate([np.empty(0, np.int64), *blocks])

    def __len__(self) -> int:
        return len(self._owners)

    def chunks_of(self, rows: Rows) -> npt.NDArray[np.int64]:
        """Return the chunk (m,) that each row lies in."""
        return np.searchsorted(self.first_rows, rows, side="right") - 1

    def rows_in(self, chunk: int) -> int:
        """Return how many rows a chunk holds."""
        return int(self.first_rows[chunk + 1] - self.first_rows[chunk])

    def fetch(self, chunk: int) -> Chunk:
        """Return the checked rows of a chunk; raises `CorruptError`."""
        segment = self._segments[int(self._owners[chunk])]
        return segment.rows_of_block(segment.record.layout(self.name), int(self._blocks[chunk]))

    def fetch_some(self, chunk: int, rows: Rows) -> Chunk:
        """Return some `rows` of the snapshot, which lie in `chunk`, unchecked."""
        segment = self._segments[int(self._owners[chunk])]
        local = rows - self.first_rows[chunk]
        return segment.some_rows(segment.record.layout(self.name), int(self._blocks[chunk]), local)

    def place_of(self, chunk: int) -> str:
        """Return where the segment that holds a chunk lies."""
        return str(self._segments[int(self._owners[chunk])].path)

    def name_of(self, chunk: int) -> ChunkName:
        """Return what a chunk is called in every snapshot."""
        return self.name, self.place_of(chunk), int(self._blocks[chunk])


class ChunkBuffer:
    """Chunks that were fetched or are on their way, the latest used ones up to `most_bytes`.

    Threads and snapshots share it: chunks never change. `last`: which chunk of an array was asked for last.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self.last: dict[str, int] = {}
        self._chunks: OrderedDict[ChunkName, Future[Chunk]] = OrderedDict()
        self._lock = threading.RLock()  # a chunk may be there before one asks to be told
        self._pool = ThreadPoolExecutor(_REQUESTS_AT_ONCE, thread_name_prefix="featcache-chunks")

    def holds(self, array: ChunkedArray, chunk: int) -> bool:
        """Return whether a chunk is here or on its way."""
        with self._lock:
            return array.name_of(chunk) in self._chunks

    def order(self, array: ChunkedArray, chunk: int) -> Future[Chunk]:
        """Have a chunk fetched, if it is not here, and return what it will be."""
        name = array.name_of(chunk)
        with self._lock:
            future = self._chunks.get(name)
            if future is None:
                future = self._chunks[name] = self._pool.submit(array.fetch, chunk)
                future.add_done_callback(lambda _: self._make_room())
            self._chunks.move_to_end(name)
            return future

    def clear(self) -> None:
        """Let go of all chunks; those on their way are waited for by none."""
        with self._lock:
            for future in self._chunks.values():
                future.cancel()
            self._chunks.clear()
            self.last.clear()

    def _make_room(self) -> None:
        """Let go of failed chunks, and of those used longest ago where the others are too large."""
        with self._lock:
            size = 0
            for name, future in reversed(list(self._chunks.items())):
                if not future.done():
                    continue
                if future.cancelled() or future.exception() is not None:
                    del self._chunks[name]
                    continue
                size += future.result().nbytes
                if size > self._most_bytes:
                    del self._chunks[name]
