"""Checking an LMDB file without trusting it, and finding its blocks where its tree is damaged.

LMDB follows page numbers without checking them, so a damaged tree is never given to it: the file is walked by
`lmdb.verify`, which is Python, and blocks are then found by the mark and the name each one begins with.
"""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path

import lmdb.verify

from featcache.errors import CorruptError
from featcache.store._lmdb_pages import PAGE_HEADER_BYTES, Place
from featcache.store._record import KEYS, Record
from featcache.store._spare import read_layout
from featcache.system.json import parse_json

BLOCK_MARK = b"featcache"
_MARK_OFFSET = PAGE_HEADER_BYTES + 4
_MOST_BLOCKS = 1 << 20  # of keys: no damaged number makes a store of more
_RECORD = re.compile(rb'\{"arrays":\[[^\0]{1,65536}?"version":1\}')


def tree_problems(path: Path) -> list[str]:
    """Return one line if LMDB's own pages are not as it must have written them."""
    try:
        lmdb.verify.verify(str(path), subdir=False)  # type: ignore[no-untyped-call]
    except lmdb.verify.VerifyError as error:
        return [f"the tree of {str(path)!r} must be intact, it is not: {error}"]
    return []


def find_blocks(path: Path, page: int) -> dict[tuple[str, int], Place]:
    """Return {(array, block): place} of the rows of every block whose beginning can be read.

    Of several versions of a block, all of which begin with the same rows, the longest one.
    """
    places: dict[tuple[str, int], Place] = {}
    if not os.path.getsize(path):
        return places
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for start in range(0, len(data) - page, page):
            at = start + _MARK_OFFSET
            if data[at : at + len(BLOCK_MARK)] != BLOCK_MARK:
                continue
            header = bytes(data[at + len(BLOCK_MARK) : start + page])
            try:
                name = parse_json(header.rstrip())
                key, size = (str(name["array"]), int(name["block"])), int(name["bytes"])
            except (ValueError, KeyError, TypeError):
                continue
            if size <= len(data) - start - page and (key not in places or size > places[key].size):
                places[key] = Place(start + page, size)
    return places


def find_record(path: Path, page: int) -> Record:
    """Return the commit record with the most rows that lies anywhere in the file.

    Where there is none, the record of as many rows as its blocks have keys for. Raises `CorruptError` where not even
    the arrays are known.
    """
    best: Record | None = None
    if not os.path.getsize(path):
        return read_layout(path.parent, rows=path)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for match in _RECORD.finditer(data):
            try:
                record = Record.from_text(match[0], place=str(path))
            except CorruptError:
                continue
            if best is None or record.rows > best.rows:
                best = record
    return best or _record_of_blocks(path, page)


def _record_of_blocks(path: Path, page: int) -> Record:
    empty = read_layout(path.parent, rows=path)
    keys = empty.layout(KEYS)
    ends = [
        block * keys.block_rows + place.size // keys.row_bytes
        for (name, block), place in find_blocks(path, page).items()
        if name == KEYS and place.size <= keys.block_bytes and 0 <= block < _MOST_BLOCKS
    ]
    return empty.with_rows(max(ends, default=0))
