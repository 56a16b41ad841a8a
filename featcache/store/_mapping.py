"""One generation as this process sees it: its arrays mapped once, checked once, and shared by all readers."""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from featcache.errors import CorruptError
from featcache.store._generation import Committed, Generation
from featcache.store._index import KeyIndex
from featcache.store._record import Layout
from featcache.store._region import Region
from featcache.store.interface import Keys, Rows
from featcache.system.threads import processor_count

_SMALLEST_CAPACITY = 16
_SPARSE = 16  # a block is checked whole if at least one row in so many is wanted, else row by row
_WORTH_A_THREAD = 4
_BLOCKS_AHEAD = 2
_WORTH_THREADS_BYTES = 8 << 20
_MOST_THREADS = 4


class MappedGeneration:
    """The mapped arrays of one generation, and what was committed when it was last asked."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.renew_locks()
        self._stamp = b""
        self._committed: Committed | None = None
        self._regions: dict[str, Region] = {}
        self._index = KeyIndex()
        _open_mappings.add(self)

    def renew_locks(self) -> None:
        """Make new locks: in a forked child, other threads' hold on the old ones never ends."""
        self.lock = threading.Lock()
        self._index_lock = threading.Lock()

    def committed(self) -> Committed:
        """Return what is committed now; read again only if something was committed since."""
        with self.lock:
            stamp = self.generation.stamp()
            if self._committed is None or stamp != self._stamp:
                # A commit in between is loaded now and, for its stamp is newer, once more the next time.
                self._committed, self._stamp = self.generation.load(), stamp
            return self._committed

    def array(self, name: str, committed: Committed, rows: int) -> MappedArray:
        """Return the first `rows` rows of array `name`, at most the `committed` ones."""
        layout = committed.record.layout(name)
        with self.lock:
            stored = committed.record.rows
            needed = layout.blocks(stored)
            region = self._regions.get(name)
            if region is None or region.capacity < needed:
                region = Region(layout, max(_SMALLEST_CAPACITY, 2 * needed))
                self._regions[name] = region
            if stored % layout.block_rows:
                region.fill_tail(needed - 1, committed.tails[name])
        return MappedArray(self, layout, rows, region, full_blocks=stored // layout.block_rows)

    def find(self, keys: Keys, stored: MappedArray, *, skip: npt.NDArray[np.bool_] | None = None) -> Rows:
        """Return the row of each of `keys` among the `stored` ones, or -1; those marked in `skip` are passed over."""
        with self._index_lock:  # not `lock`, which the threads that check blocks ahead need
            for _, block in stored.blocks(start=len(self._index)):
                self._index.add(block)
            return self._index.find(keys, lambda rows: stored.gather(rows, None), rows=stored.rows, skip=skip)

    def check(self, layout: Layout, region: Region, block: int) -> None:
        """Check a mapped block once in this process; raises `CorruptError`."""
        if crc32c(region.block(block, layout.block_rows).data) != region.stored[block]:
            first = block * layout.block_rows
            raise CorruptError(
                f"block {block} of {layout.name!r} (rows {first} to {first + layout.block_rows - 1}) in "
                f"{str(self.generation.path)!r} must match its checksum, it does not: "
                "featcache verify --repair drops its damaged rows"
            )
        region.checked[block] = True


class MappedArray:
    """The first `rows` rows of one array of a generation: a snapshot, for later commits only add."""

    def __init__(
        self, mapping: MappedGeneration, layout: Layout, rows: int, region: Region, *, full_blocks: int
    ) -> None:
        self.layout = layout
        self.rows = rows
        self._mapping = mapping
        self._region = region
        self._full_blocks = full_blocks

    def blocks(self, *, start: int = 0) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield (first row, checked view) block by block, from row `start` on; the next ones are checked meanwhile."""
        size = self.layout.block_rows
        numbers = range(start // size, self.layout.blocks(self.rows))
        ahead = self._check_ahead(numbers)
        try:
            for block in numbers:
                if ahead is not None:
                    next(ahead)
                self.prepare(block)
                skipped = max(0, start - block * size)
                view = self._region.block(block, self.layout.rows_in(block, self.rows))
                yield block * size + skipped, view[skipped:]
        finally:
            if ahead is not None:
                ahead.close()

    def _check_ahead(self, numbers: range) -> Generator[None] | None:
        """Return what at each step waits for the check of the next block; None if too few are unchecked."""
        if int((~self._region.checked[numbers.start : numbers.stop]).sum()) < _WORTH_A_THREAD:
            return None

        def steps() -> Generator[None]:
            with ThreadPoolExecutor(1) as pool:
                waiting: deque[Future[None]] = deque()
                try:
                    for block in numbers:
                        while len(waiting) <= _BLOCKS_AHEAD and block + len(waiting) < numbers.stop:
                            waiting.append(pool.submit(self.prepare, block + len(waiting)))
                        waiting.popleft().result()
                        yield
                finally:
                    for future in waiting:
                        future.cancel()

        return steps()

    def block(self, block: int, *, check: bool = True) -> npt.NDArray[Any]:
        """Return the view of one block, checked once."""
        self.prepare(block, check=check)
        return self._region.block(block, self.layout.rows_in(block, self.rows))

    def prepare(self, block: int, *, check: bool = True) -> None:
        """Map a block, and check it if it was not; the partial last one is a checked copy already."""
        region = self._region
        if not region.mapped[block]:
            if block >= self._full_blocks:
                return
            with self._mapping.lock:
                if not region.mapped[block]:
                    with self._mapping.generation.locate(self.layout, block) as extent:
                        region.map_block(block, extent)
        if check and not region.checked[block]:
            self._mapping.check(self.layout, region, block)

    def view(self) -> npt.NDArray[Any] | None:
        """Return all rows as one mapped array, (rows, *shape), or None where blocks are not whole pages."""
        return self._region.all(self.rows) if self._region.contiguous else None

    def unchecked(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Return (m,) bool: which of `rows` lie in blocks of which so few are wanted that checking them whole is waste.

        Every other block of `rows` is mapped and checked.
        """
        size = self.layout.block_rows
        blocks = rows // size
        counts = np.bincount(blocks, minlength=self.layout.blocks(self.rows))
        sparse = np.zeros(len(counts), dtype=bool)
        for block in np.flatnonzero(counts):
            done = self._region.checked[block] or block >= self._full_blocks
            sparse[block] = not done and counts[block] * _SPARSE < size
            self.prepare(int(block), check=not sparse[block])
        return sparse[blocks] if sparse.any() else np.zeros(len(rows), dtype=bool)

    def gather(self, rows: Rows, out: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
        """Return a checked copy of `rows`, which must lie within the array."""
        for block in np.flatnonzero(np.bincount(rows // self.layout.block_rows)):
            self.prepare(int(block))
        return self.copy(rows, out)

    def copy(self, rows: Rows, out: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
        """Return a copy of `rows`, whose blocks are mapped."""
        if out is None:
            out = np.empty((len(rows), *self.layout.shape), dtype=self.layout.dtype)
        _gather(self, rows, out)
        return out

    def let_go(self, start: int, stop: int) -> None:
        """Give back the memory of the full blocks that end within rows `start` to `stop`."""
        size = self.layout.block_rows
        self._region.let_go(start // size, min(stop // size, self._full_blocks))

    def check_blocks(self, rows: Rows) -> None:
        """Check the blocks of `rows` whole; raises `CorruptError`."""
        for block in np.unique(rows // self.layout.block_rows):
            self.prepare(int(block))


def _gather(array: MappedArray, rows: Rows, out: npt.NDArray[Any]) -> None:
    """Copy `rows` (m,) of `array`, whose blocks are mapped, to `out` (m, *shape)."""
    whole = array.view()
    if whole is None or out.dtype != whole.dtype or not out.flags.c_contiguous:
        _gather_by_block(array, rows, out)
        return
    threads = min(_MOST_THREADS, processor_count()) if out.nbytes >= _WORTH_THREADS_BYTES else 1
    if threads == 1:
        _take(whole, rows, out)
        return
    bounds = np.linspace(0, len(rows), threads + 1).astype(int).tolist()
    parts = list(itertools.pairwise(bounds))
    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(_take, whole, rows[low:high], out[low:high]) for low, high in parts[1:]]
        _take(whole, rows[: parts[0][1]], out[: parts[0][1]])
        for other in others:
            other.result()


def _take(whole: npt.NDArray[Any], rows: Rows, out: npt.NDArray[Any]) -> None:
    # The rows were checked to lie within the array; "clip" spares numpy a buffered copy.
    np.take(whole, rows, axis=0, out=out, mode="clip")


def _gather_by_block(array: MappedArray, rows: Rows, out: npt.NDArray[Any]) -> None:
    """Copy block by block: for blocks that are not whole pages, and for other dtypes or layouts of `out`."""
    order = np.argsort(rows, kind="stable")
    size = array.layout.block_rows
    bounds = np.flatnonzero(np.diff(rows[order] // size)) + 1
    for part in np.split(order, bounds):
        if len(part):
            block = int(rows[part[0]] // size)
            out[part] = array.block(block, check=False)[rows[part] - block * size]


def _renew_locks() -> None:
    for mapping in list(_open_mappings):
        mapping.renew_locks()


_open_mappings: weakref.WeakSet[MappedGeneration] = weakref.WeakSet()
os.register_at_fork(after_in_child=_renew_locks)
