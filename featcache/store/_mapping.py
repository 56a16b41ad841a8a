"""One generation as this process sees it: its arrays mapped once, checked once, and shared by all readers."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from featcache.errors import CorruptError
from featcache.store import Keys, Rows
from featcache.store._gather import gather_rows
from featcache.store._generation import Committed, Generation
from featcache.store._index import KeyIndex
from featcache.store._record import Layout
from featcache.store._region import Region

_SMALLEST_CAPACITY = 16


class Mapping:
    """The mapped arrays of one generation, and what was committed when it was last asked."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.lock = threading.RLock()
        self._stamp = b""
        self._committed: Committed | None = None
        self._regions: dict[str, Region] = {}
        self._index: KeyIndex | None = None
        self._newest_keys: MappedArray | None = None
        _open_mappings.add(self)

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
        """Return the row of each of `keys` among the `stored` ones, or -1."""
        with self.lock:
            if self._index is None:
                self._index = KeyIndex(self._fetch_keys)
            if len(self._index) < stored.rows:
                self._newest_keys = stored
                for first, block in stored.blocks(start=len(self._index)):
                    del first
                    self._index.add(block)
            if skip is not None and len(skip) < len(self._index):
                skip = np.concatenate((skip, np.zeros(len(self._index) - len(skip), dtype=bool)))
            rows = self._index.find(keys, skip=skip)
        rows[rows >= stored.rows] = -1
        return rows

    def _fetch_keys(self, rows: Rows) -> Keys:
        if self._newest_keys is None:
            raise AssertionError("an index must have been filled before it asks for keys")
        return self._newest_keys.gather(rows, None)

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

    def __init__(self, mapping: Mapping, layout: Layout, rows: int, region: Region, *, full_blocks: int) -> None:
        self.layout = layout
        self.rows = rows
        self._mapping = mapping
        self._region = region
        self._full_blocks = full_blocks

    def blocks(self, *, start: int = 0) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield (first row, checked view) block by block, from row `start` on."""
        size = self.layout.block_rows
        for block in range(start // size, self.layout.blocks(self.rows)):
            self.prepare(block)
            skipped = max(0, start - block * size)
            view = self._region.block(block, self.layout.rows_in(block, self.rows))
            yield block * size + skipped, view[skipped:]

    def block(self, block: int) -> npt.NDArray[Any]:
        """Return the checked view of one block."""
        self.prepare(block)
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

    def gather(self, rows: Rows, out: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
        """Return a copy of `rows`, which must lie within the array."""
        if out is None:
            out = np.empty((len(rows), *self.layout.shape), dtype=self.layout.dtype)
        wanted = np.unique(rows // self.layout.block_rows) if len(rows) else ()
        for block in wanted:
            self.prepare(int(block))
        gather_rows(self, rows, out)
        return out


def _renew_locks() -> None:
    for mapping in list(_open_mappings):
        mapping.lock = threading.RLock()


_open_mappings: weakref.WeakSet[Mapping] = weakref.WeakSet()
os.register_at_fork(after_in_child=_renew_locks)
