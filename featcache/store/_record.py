"""What a store holds and how it is cut into blocks: the commit record, the same JSON in both kinds of store.

Every array (the keys, the rows' checksums, each column) is cut into blocks of `block_rows` rows. All blocks are full
but the last, so row → block is arithmetic, and a full block never changes again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from featcache.errors import CorruptError, FormatError
from featcache.store.interface import KEY_BYTES, Column, Keys, Values
from featcache.store.settings import StoreSettings
from featcache.system.json import canonical_json, has_checksum, parse_json, with_checksum

FORMAT = "featcache-store"
VERSION = 1
KEYS = "keys"
CHECKSUMS = "row_crc32c"
COLUMN_PREFIX = "columns/"

_BLOCK_BYTES = 4 << 20
_LARGEST_BLOCK_BYTES = 16 << 20
_BLOCK_ROWS = 1 << 16
_PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Layout:
    """One array of a store: `shape` of a row, little-endian `dtype`, and rows per block."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    block_rows: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def block_bytes(self) -> int:
        """Bytes of a full block."""
        return self.row_bytes * self.block_rows

    def blocks(self, rows: int) -> int:
        """Return the number of blocks that hold `rows` rows."""
        return -(-rows // self.block_rows)

    def rows_in(self, block: int, rows: int) -> int:
        """Return how many of `rows` rows lie in `block`."""
        return max(0, min(self.block_rows, rows - block * self.block_rows))


@dataclass(frozen=True, slots=True)
class Record:
    """What is committed: the first `rows` rows of every array."""

    arrays: tuple[Layout, ...]
    rows: int

    @property
    def columns(self) -> tuple[Column, ...]:
        """The user's columns."""
        return tuple(
            Column(layout.name.removeprefix(COLUMN_PREFIX), layout.shape, layout.dtype)
            for layout in self.arrays
            if layout.name.startswith(COLUMN_PREFIX)
        )

    def layout(self, name: str) -> Layout:
        """Return the layout of array `name`."""
        return next(layout for layout in self.arrays if layout.name == name)

    def with_rows(self, rows: int) -> Record:
        """Return the record of the same arrays with another number of rows."""
        return dataclasses.replace(self, rows=rows)

    def to_json(self, **more: int) -> dict[str, Any]:
        """Return the record as JSON values, and `more`, with a crc32c over the canonical JSON of all of it."""
        body: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "rows": self.rows,
            "arrays": [
                {"name": a.name, "shape": list(a.shape), "dtype": a.dtype, "block_rows": a.block_rows}
                for a in self.arrays
            ],
            **more,
        }
        return with_checksum(body)

    @classmethod
    def from_json(cls, values: Any, *, place: str) -> Record:
        """Return the record that `to_json` wrote; `place` names it in errors.

        Raises `FormatError` where it is of a newer version, `CorruptError` where it is anything but what was written.
        """
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise CorruptError(f"{place} must hold a commit record, it does not: run featcache verify --repair")
        version = values.get("version")
        if version != VERSION:
            raise FormatError(
                f"{place} must be of store format version {VERSION}, got {version!r}: use the featcache that wrote it"
            )
        if not has_checksum(values):
            raise CorruptError(f"the commit record in {place} must match its checksum, it does not: it was damaged")
        arrays = tuple(Layout(a["name"], tuple(a["shape"]), a["dtype"], a["block_rows"]) for a in values["arrays"])
        return cls(arrays, values["rows"])

    @classmethod
    def from_text(cls, text: bytes, *, place: str) -> Record:
        """Return the record in the JSON `text`; raises as `from_json`."""
        try:
            values = parse_json(text)
        except ValueError as error:
            raise CorruptError(f"the commit record in {place} must be JSON, it is not: it was damaged") from error
        return cls.from_json(values, place=place)

    def to_text(self, **more: int) -> bytes:
        """Return the record, and `more`, as JSON text."""
        return canonical_json(self.to_json(**more)).encode()


def new_record(columns: tuple[Column, ...], settings: StoreSettings, *, block_bytes: int = _BLOCK_BYTES) -> Record:
    """Return the record of an empty store of `columns`; blocks hold about `block_bytes` where `settings` do not say."""
    arrays = (
        Layout(KEYS, (KEY_BYTES,), "uint8", settings.key_block_rows),
        Layout(CHECKSUMS, (len(columns),), "uint32", settings.key_block_rows),
        *(Layout(COLUMN_PREFIX + c.name, c.shape, c.dtype, _rows_of_block(c, settings, block_bytes)) for c in columns),
    )
    return Record(arrays, 0)


def row_checksums(keys: Keys, values: Sequence[Values]) -> npt.NDArray[np.uint32]:
    """Return (m, n_columns) uint32: the crc32c over a row's key and its bytes in each column."""
    sums = np.empty((len(keys), len(values)), dtype=np.uint32)
    starts = [crc32c(key.data) for key in keys]
    for position, column in enumerate(values):
        rows = np.ascontiguousarray(column).reshape(len(keys), -1).view(np.uint8)
        for row, (start, data) in enumerate(zip(starts, rows, strict=True)):
            sums[row, position] = crc32c(data.data, start)
    return sums


def _rows_of_block(column: Column, settings: StoreSettings, block_bytes: int) -> int:
    return settings.block_rows or _choose_block_rows(column.row_bytes, block_bytes)


def _choose_block_rows(row_bytes: int, block_bytes: int) -> int:
    """Return the rows of a block: a power of two, at most 65536, of at most `block_bytes` where a row allows.

    Blocks that are whole pages let a column be mapped as one array, so that is worth up to 16 MiB.
    """
    rows = _BLOCK_ROWS
    while rows > 1 and rows * row_bytes > block_bytes:
        rows //= 2
    whole = rows
    while whole * row_bytes % _PAGE_BYTES and whole * row_bytes * 2 <= _LARGEST_BLOCK_BYTES:
        whole *= 2
    return rows if whole * row_bytes % _PAGE_BYTES else min(whole, _BLOCK_ROWS)
