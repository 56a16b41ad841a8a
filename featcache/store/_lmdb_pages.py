"""Reading LMDB's pages without LMDB: where each value lies in the file, every number checked before it is followed.

LMDB itself follows the numbers in its pages unchecked, so a flipped bit could end the process; and it does not tell
where in the file a value lies, which is what is mapped. The format (data version 1, LMDB 0.9) is that of Chu, "MDB: A
Memory-Mapped Database and Backend for OpenLDAP", 2011: pages 0 and 1 are meta pages, of which the one with the higher
transaction number counts; each names the root of a B+ tree; a large value has pages of its label.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from featcache.errors import CorruptError, FormatError

PAGE_HEADER_BYTES = 16
META_BYTES = 152  # of a meta page, up to the end of its transaction number
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_BRANCH, _LEAF, _OVERFLOW = 1, 2, 4
_KIND = _BRANCH | _LEAF | _OVERFLOW | 8 | 16 | 32
_BIG, _PLAIN = 1, 0
_NO_PAGE = (1 << 64) - 1
_DEEPEST = 32


@dataclass(frozen=True, slots=True)
class Meta:
    """A meta page: its transaction number and the root of the main database."""

    number: int
    transaction: int
    root: int
    pages: int


@dataclass(frozen=True, slots=True)
class Place:
    """A value: `size` bytes from `offset` of the file."""

    offset: int
    size: int


class LmdbPages:
    """The pages of an open LMDB file; `name` stands for it in errors, all of which are `CorruptError`."""

    def __init__(self, file: int, name: str) -> None:
        self._file = file
        self._name = name
        head = os.pread(file, META_BYTES, 0).ljust(META_BYTES, b"\0")
        magic, version, size = struct.unpack_from("<16xII16xI", head)
        if magic != _MAGIC:
            self._fail("its first page is not a meta page")
        if version != _VERSION:
            raise FormatError(f"{name} must be of LMDB's data version {_VERSION}, got {version!r}")
        if size < 512 or size > 1 << 16 or size & (size - 1):
            self._fail(f"its page size is {size}")
        self.page_bytes = int(size)

    def metas(self) -> list[Meta]:
        """Return both meta pages, the one that counts last; one without a transaction yet is left out."""
        metas = []
        for number in (0, 1):
            data = os.pread(self._file, META_BYTES, number * self.page_bytes)
            if len(data) < META_BYTES:
                self._fail(f"meta page {number} is missing")
            page, magic, version, psize, root, last, transaction = struct.unpack("<Q8xII16xI84xQQQ", data)
            if (page, magic, version) != (number, _MAGIC, _VERSION) or psize not in (0, self.page_bytes):
                self._fail(f"meta page {number} is damaged")
            if transaction:
                metas.append(Meta(number, transaction, root, last + 1))
        if not metas:
            self._fail("it has no transaction")
        metas.sort(key=lambda meta: meta.transaction)
        if (
            any(meta.transaction % 2 != meta.number for meta in metas)
            or metas[-1].transaction - metas[0].transaction > 1
        ):
            self._fail("its transaction numbers are damaged")
        if metas[-1].pages * self.page_bytes > os.fstat(self._file).st_size:
            self._fail("it is shorter than its meta page says")
        return metas

    def values(self, meta: Meta) -> dict[bytes, Place]:
        """Return where every value lies."""
        return dict(self._walk(meta, meta.root, 0))

    def value(self, meta: Meta, key: bytes) -> Place | None:
        """Return where the value of `key` lies, or None."""
        number: int | None = meta.root
        depth = 0
        while number is not None:
            child = None
            for name, target in self._nodes(meta, number, depth):
                if isinstance(target, Place):
                    if name == key:
                        return target
                elif child is None or name <= key:  # the first child has no key of its label
                    child = target
            number, depth = child, depth + 1
        return None

    def read(self, place: Place) -> bytes:
        """Return the bytes of a value."""
        return os.pread(self._file, place.size, place.offset)

    def _walk(self, meta: Meta, number: int, depth: int) -> Iterator[tuple[bytes, Place]]:
        for key, target in self._nodes(meta, number, depth):
            if isinstance(target, Place):
                yield key, target
            else:
                yield from self._walk(meta, target, depth + 1)

    def _nodes(self, meta: Meta, number: int, depth: int) -> Iterator[tuple[bytes, Place | int]]:
        """Yield (key, value's place) of a leaf page, or (key, child page) of a branch page."""
        if number == _NO_PAGE and depth == 0:
            return
        if not 2 <= number < meta.pages or depth >= _DEEPEST:
            self._fail(f"its tree leads to page {number}")
        page = os.pread(self._file, self.page_bytes, number * self.page_bytes)
        label, flags, lower, upper = struct.unpack_from("<Q2xHHH", page)
        if label != number or flags & _KIND not in (_BRANCH, _LEAF) or not 16 <= lower <= upper <= self.page_bytes:
            self._fail(f"page {number} is damaged")
        for (start,) in struct.iter_unpack("<H", page[PAGE_HEADER_BYTES : lower & ~1]):
            if not upper <= start <= self.page_bytes - 8:
                self._fail(f"page {number} is damaged")
            low, high, kind, length = struct.unpack_from("<HHHH", page, start)
            data = start + 8 + length
            if data > self.page_bytes:
                self._fail(f"page {number} is damaged")
            key = page[start + 8 : data]
            if flags & _BRANCH:
                yield key, low | high << 16 | kind << 32
                continue
            size = low | high << 16
            if kind == _PLAIN and data + size <= self.page_bytes:
                yield key, Place(number * self.page_bytes + data, size)
            elif kind == _BIG and data + 8 <= self.page_bytes:
                yield key, self._large(meta, struct.unpack_from("<Q", page, data)[0], size)
            else:
                self._fail(f"page {number} is damaged")

    def _large(self, meta: Meta, number: int, size: int) -> Place:
        needed = -(-(PAGE_HEADER_BYTES + size) // self.page_bytes)
        if not 2 <= number <= meta.pages - needed:
            self._fail(f"its tree leads to page {number}")
        label, flags, pages = struct.unpack("<Q2xHI", os.pread(self._file, PAGE_HEADER_BYTES, number * self.page_bytes))
        if (label, flags & _KIND, pages) != (number, _OVERFLOW, needed):
            self._fail(f"page {number} is damaged")
        return Place(number * self.page_bytes + PAGE_HEADER_BYTES, size)

    def _fail(self, what: str) -> NoReturn:
        raise CorruptError(f"{self._name} must be intact, {what}: featcache verify --repair keeps its intact rows")
