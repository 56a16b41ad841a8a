"""One array of a store as one piece of address space: its blocks mapped side by side, wherever they lie on disk.

Blocks of whole pages then form a single (n, *shape) numpy array over files that are never loaded, so a gather is one
`numpy.take`, as fast as on a `numpy.memmap`. The mapping lives as long as any view of it does.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.errors import StorageError
from featcache.store._generation import Extent
from featcache.store._record import Layout

_PAGE = mmap.PAGESIZE
_PROT_NONE, _PROT_READ, _PROT_WRITE = 0, 1, 2
_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED = 1, 2, 0x10
_MAP_ANONYMOUS = mmap.MAP_ANONYMOUS
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0)
_DONTNEED = mmap.MADV_DONTNEED
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def _map(address: int | None, size: int, protection: int, flags: int, file: int, offset: int) -> int:
    mapped: int | None = _libc.mmap(address, size, protection, flags, file, offset)
    if mapped is None or mapped == _FAILED:
        reason = os.strerror(ctypes.get_errno())
        raise StorageError(
            f"{size} bytes of a store must fit into this process's address space, got: {reason}; "
            "raise ulimit -v and vm.max_map_count, or close other stores"
        )
    return mapped


class _Window:
    """What numpy needs to see memory as an array; the array keeps it, and so the region, alive."""

    def __init__(self, region: Region, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._region = region
        self.__array_interface__ = {
            "version": 3,
            "data": (address, True),
            "shape": shape,
            "typestr": dtype.str,
        }


class Region:
    """Room for `capacity` blocks of one array; a slot holds nothing, a mapped full block or a copied partial one."""

    def __init__(self, layout: Layout, capacity: int) -> None:
        self.layout = layout
        self.capacity = capacity
        self._stride = -(-layout.block_bytes // _PAGE) * _PAGE
        self._dtype = np.dtype(layout.dtype).newbyteorder("<")
        size = max(1, capacity) * self._stride
        self._address = _map(None, size, _PROT_NONE, _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE, -1, 0)
        weakref.finalize(self, _libc.munmap, self._address, size).atexit = False
        self.mapped = np.zeros(capacity, dtype=bool)
        self.checked = np.zeros(capacity, dtype=bool)
        self.stored = np.zeros(capacity, dtype=np.uint32)
        self._tail_bytes: dict[int, int] = {}

    @property
    def contiguous(self) -> bool:
        """Whether rows of neighbouring blocks are neighbours in memory."""
        return self._stride == self.layout.block_bytes

    def map_block(self, block: int, extent: Extent) -> None:
        """Map full block `block` from where it lies in a file (from a whole page on)."""
        address = self._address + block * self._stride
        _map(address, self._stride, _PROT_READ, _MAP_SHARED | _MAP_FIXED, extent.file, extent.offset)
        self.stored[block] = extent.crc32c
        self.mapped[block] = True

    def fill_tail(self, block: int, payload: memoryview) -> None:
        """Copy the rows of partial block `block`; the ones that are there already are the same, and stay."""
        if self.mapped[block]:
            return
        address = self._address + block * self._stride
        present = self._tail_bytes.get(block)
        if present is None:
            flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_FIXED
            _map(address, self._stride, _PROT_READ | _PROT_WRITE, flags, -1, 0)
            present = 0
        if len(payload) > present:
            ctypes.memmove(address + present, bytes(payload[present:]), len(payload) - present)
            self._tail_bytes[block] = len(payload)

    def let_go(self, start: int, stop: int) -> None:
        """Give back the memory of mapped blocks `start` to `stop`; they stay mapped, and are read again when used."""
        for block in np.flatnonzero(self.mapped[start:stop]) + start:
            _libc.madvise(self._address + int(block) * self._stride, self._stride, _DONTNEED)

    def block(self, block: int, rows: int) -> npt.NDArray[Any]:
        """Return the first `rows` rows of a block, (rows, *shape), read-only."""
        return self._view(self._address + block * self._stride, rows)

    def all(self, rows: int) -> npt.NDArray[Any]:
        """Return the first `rows` rows of the array, (rows, *shape), read-only; only for `contiguous` regions."""
        return self._view(self._address, rows)

    def _view(self, address: int, rows: int) -> npt.NDArray[Any]:
        return np.asarray(_Window(self, address, (rows, *self.layout.shape), self._dtype))
