"""A segment: rows that one writer put together, an immutable Zarr v3 group of uncompressed chunks in object storage.

    segments/NAME/keys/c.0.0                 a chunk: rows' bytes, then their crc32c (Zarr's codec)
    segments/NAME/columns/features/c.0.0
    segments/NAME/zarr.json                  put last: the group, with the descriptions of its arrays (consolidated)

Chunks are the same bytes as on a disk. A segment's chunks are equally large, so that hardly any of them is padding.
"""

from __future__ import annotations

import dataclasses
import struct
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from featcache.errors import CorruptError, MissingError
from featcache.store._object_log import Segment
from featcache.store._record import Layout, Record
from featcache.store._zarr_text import CRC_BYTES, chunk_name, consolidated_text
from featcache.store.interface import Rows
from featcache.system.objects import ObjectPath

_REQUESTS_AT_ONCE = 8


class StoredSegment:
    """One segment as it lies at `place`; `record`: its arrays, cut as they are here, and its rows."""

    def __init__(self, segments: ObjectPath, segment: Segment, empty: Record) -> None:
        self.path = segments / segment.name
        self.record = segment_record(empty, segment.rows)

    def read_block(self, layout: Layout, block: int, rows: int) -> tuple[bytes, bool]:
        """Return the bytes of a chunk, without their crc32c, and whether they match it.

        Raises `CorruptError` where there is no such chunk, or not of that size.
        """
        path = self.path / chunk_name(layout, block)
        try:
            data = path.read_bytes()
        except MissingError as error:
            raise _damaged(path, "is missing") from error
        if len(data) != layout.block_bytes + CRC_BYTES:
            raise _damaged(path, f"has {len(data)} bytes and not {layout.block_bytes + CRC_BYTES}")
        payload = data[:-CRC_BYTES]
        return payload, struct.unpack("<I", data[-CRC_BYTES:])[0] == crc32c(payload)

    def rows_of_block(self, layout: Layout, block: int) -> npt.NDArray[Any]:
        """Return the rows (k, *shape) of a chunk, read-only; raises `CorruptError` where it is damaged."""
        rows = layout.rows_in(block, self.record.rows)
        data, intact = self.read_block(layout, block, rows)
        if not intact:
            raise _damaged(self.path / chunk_name(layout, block), "does not match its checksum")
        return _array(data, layout)[:rows]

    def some_rows(self, layout: Layout, block: int, rows: Rows) -> npt.NDArray[Any]:
        """Return `rows` (m,) of a chunk, unchecked, by requests of their own; `CorruptError` where it is gone."""
        path = self.path / chunk_name(layout, block)
        starts = (rows * layout.row_bytes).tolist()
        try:
            parts = path.read_ranges(starts, [start + layout.row_bytes for start in starts])
        except MissingError as error:
            raise _damaged(path, "is missing") from error
        return _array(b"".join(parts), layout)

    def whole(self, name: str) -> npt.NDArray[Any]:
        """Return all rows of array `name`; raises `CorruptError` where a chunk is damaged."""
        layout = self.record.layout(name)
        return np.concatenate([self.rows_of_block(layout, block) for block in range(layout.blocks(self.record.rows))])

    def check_structure(self) -> list[str]:
        """Return one line where its description is not what was put."""
        path = self.path / "zarr.json"
        try:
            intact = path.read_bytes() == consolidated_text(self.record)
        except MissingError:
            intact = False
        return [] if intact else [f"{str(path)!r} must be what was written, it is not"]

    def put_description(self) -> None:
        """Put its zarr.json, which ends the segment."""
        (self.path / "zarr.json").write_bytes(consolidated_text(self.record))


def put_segment(segments: ObjectPath, empty: Record, arrays: Mapping[str, npt.NDArray[Any]]) -> Segment:
    """Put rows (one or more, each array of `empty` by its name) as a new segment, which nobody knows of yet.

    Raises `StorageError` where the storage refuses.
    """
    rows = len(next(iter(arrays.values())))
    name = uuid.uuid4().hex
    stored = StoredSegment(segments, Segment(name, rows, 0), empty)
    chunks = [(layout, block) for layout in stored.record.arrays for block in range(layout.blocks(rows))]

    def put(chunk: tuple[Layout, int]) -> int:
        layout, block = chunk
        data = _chunk_bytes(layout, arrays[layout.name][block * layout.block_rows : (block + 1) * layout.block_rows])
        (stored.path / chunk_name(layout, block)).write_bytes(data)
        return len(data)

    with ThreadPoolExecutor(min(len(chunks), _REQUESTS_AT_ONCE)) as pool:
        size = sum(pool.map(put, chunks))
    stored.put_description()
    return Segment(name, rows, size + len(consolidated_text(stored.record)))


def segment_record(empty: Record, rows: int) -> Record:
    """Return the record of a segment of `rows` rows: chunks as few as the store's blocks allow, and equally large."""
    arrays = []
    for layout in empty.arrays:
        chunks = -(-rows // layout.block_rows)
        arrays.append(dataclasses.replace(layout, block_rows=-(-rows // chunks)))
    return Record(tuple(arrays), rows)


def _chunk_bytes(layout: Layout, rows: npt.NDArray[Any]) -> bytes:
    payload = np.ascontiguousarray(rows, dtype=np.dtype(layout.dtype).newbyteorder("<")).tobytes()
    payload += bytes(layout.block_bytes - len(payload))
    return payload + struct.pack("<I", crc32c(payload))


def _array(data: bytes, layout: Layout) -> npt.NDArray[Any]:
    return np.frombuffer(data, dtype=np.dtype(layout.dtype).newbyteorder("<")).reshape(-1, *layout.shape)


def _damaged(path: ObjectPath, what: str) -> CorruptError:
    return CorruptError(f"{str(path)!r} must be intact, it {what}: featcache verify --repair drops its damaged rows")
