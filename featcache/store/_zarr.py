"""A generation as a Zarr v3 group of uncompressed chunks that any Zarr library reads and that are mapped as they are.

    rows-000001.zarr/zarr.json           group; attributes.featcache is the commit record, replaced last, atomically
    rows-000001.zarr/ARRAY/zarr.json     array; its attributes hold the same record, at most one commit older
    rows-000001.zarr/ARRAY/c.7.0         chunk 7: rows' bytes (zeros after the last), then their crc32c (Zarr's codec)

A chunk is written under a hidden name, synchronised and renamed, so every chunk file is whole at any instant. A last
chunk that already holds rows not yet committed still begins with the committed ones.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from crc32c import crc32c

from featcache.errors import CorruptError, FormatError, StorageError
from featcache.store._generation import Block, Committed, Extent, Generation
from featcache.store._record import COLUMN_PREFIX, KEYS, Layout, Record
from featcache.store._spare import read_layout
from featcache.store._zarr_text import ATTRIBUTE, CRC_BYTES, array_text, chunk_name, group_text
from featcache.store.settings import StoreSettings
from featcache.system.files import sync_directory
from featcache.system.json import parse_json

_ZEROS = bytes(1 << 20)


class ZarrGeneration(Generation):
    """One directory that is a Zarr group."""

    @classmethod
    def create(cls, path: Path, record: Record, settings: StoreSettings) -> None:
        with _storage_errors(path):
            path.mkdir()
            (path / COLUMN_PREFIX).mkdir()
            _replace(path / COLUMN_PREFIX / "zarr.json", group_text(None))
            for layout in record.arrays:
                _make_array(path, layout, record)
            _replace(path / "zarr.json", group_text(record))
            _sync_directories(path, {path, path / COLUMN_PREFIX})
        sync_directory(path.parent)

    def stamp(self) -> bytes:
        return (self.path / "zarr.json").read_bytes()

    def load(self) -> Committed:
        record = self._read_record("zarr.json")
        tails = {}
        for layout in record.arrays:
            partial = record.rows % layout.block_rows
            if partial:
                tails[layout.name] = self._read_tail(layout, record.rows // layout.block_rows, partial)
        return Committed(record, tails)

    def record(self) -> Record:
        try:
            return self._read_record("zarr.json")
        except CorruptError:
            with contextlib.suppress(CorruptError):
                return self._read_record(f"{KEYS}/zarr.json")
            return self._record_of_chunks()

    def _record_of_chunks(self) -> Record:
        """Return the record of as many rows as there are keys; rows never committed fail their checksums."""
        empty = read_layout(self.path.parent, rows=self.path)
        keys = empty.layout(KEYS)
        try:
            names = [name for name in os.listdir(self.path / KEYS) if re.fullmatch(r"c\.\d{1,6}\.0", name)]
            last = max((int(name.split(".")[1]) for name in names), default=-1)
            data = self._chunk(keys, last).read_bytes()[: keys.block_bytes] if names else b""
        except OSError:
            return empty
        whole = np.frombuffer(data[: len(data) // keys.row_bytes * keys.row_bytes], np.uint8).reshape(-1, *keys.shape)
        used = np.flatnonzero(whole.any(axis=1))  # the rest of the last chunk is zeros
        return empty.with_rows(max(last, 0) * keys.block_rows + (int(used[-1]) + 1 if len(used) else 0))

    @contextlib.contextmanager
    def locate(self, layout: Layout, block: int) -> Iterator[Extent]:
        path = self._chunk(layout, block)
        try:
            file = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise _damaged(path, "is missing") from error
        try:
            size = os.fstat(file).st_size
            if size != layout.block_bytes + CRC_BYTES:
                raise _damaged(path, f"has {size} bytes and not {layout.block_bytes + CRC_BYTES}")
            (stored,) = struct.unpack("<I", os.pread(file, CRC_BYTES, layout.block_bytes))
            yield Extent(file, 0, layout.block_bytes, stored)
        finally:
            os.close(file)

    def write(self, blocks: Iterable[Block], record: Record | None) -> None:
        with _storage_errors(self.path):
            touched: set[Path] = set()
            for block in blocks:
                path = self._chunk(block.layout, block.index)
                _write_chunk(path, block)
                touched.add(path.parent)
            _sync_directories(self.path, touched)
            if record is not None:
                self._publish(record)

    def read_block(self, layout: Layout, block: int, rows: int) -> tuple[bytes, bool]:
        with self.locate(layout, block) as extent:
            data = os.pread(extent.file, extent.size, 0)
        return data, crc32c(data) == extent.crc32c

    def trim(self, record: Record) -> None:
        with _storage_errors(self.path):
            expected = {layout.name: layout.blocks(record.rows) for layout in record.arrays}
            for name, blocks in expected.items():
                for file in os.listdir(self.path / name):
                    part = file.split(".")
                    if file.startswith(".") or (part[0] == "c" and int(part[1]) >= blocks):
                        os.unlink(self.path / name / file)
            for layout in record.arrays:
                _replace(self.path / layout.name / "zarr.json", array_text(layout, record))

    def check_structure(self, record: Record) -> list[str]:
        problems = []
        expected = {"zarr.json": group_text(record), f"{COLUMN_PREFIX}zarr.json": group_text(None)}
        for name, text in expected.items():
            if not _holds(self.path / name, text):
                problems.append(f"{str(self.path / name)!r} must be what was written, it is not")
        for layout in record.arrays:
            path = self.path / layout.name / "zarr.json"
            if not self._describes(path, layout, record):
                problems.append(f"{str(path)!r} must describe {record.rows} rows of {layout.name!r}, it does not")
        return problems

    def nbytes(self) -> int:
        return sum(
            os.lstat(os.path.join(folder, name)).st_blocks * 512
            for folder, _, names in os.walk(self.path)
            for name in names
        )

    def spare_bytes(self) -> int:
        return 0

    def _describes(self, path: Path, layout: Layout, record: Record) -> bool:
        """Return whether an array's description is the one of this commit, or of an earlier one after a kill."""
        try:
            text = path.read_bytes()
            earlier = _record_of(text, place=str(path))
        except (OSError, CorruptError, FormatError):
            return False
        known = earlier.arrays == record.arrays and earlier.rows <= record.rows
        return known and text == array_text(layout, earlier)

    def _publish(self, record: Record) -> None:
        _replace(self.path / "zarr.json", group_text(record))
        _sync_directories(self.path, {self.path})
        # From here on it is committed. What follows keeps plain Zarr readers of single arrays up to date.
        for layout in record.arrays:
            _replace(self.path / layout.name / "zarr.json", array_text(layout, record))

    def _read_record(self, name: str) -> Record:
        path = self.path / name
        try:
            text = path.read_bytes()
        except FileNotFoundError as error:
            raise _damaged(path, "is missing") from error
        return _record_of(text, place=str(path))

    def _read_tail(self, layout: Layout, block: int, rows: int) -> memoryview:
        data, intact = self.read_block(layout, block, rows)
        if not intact:
            raise _damaged(self._chunk(layout, block), "does not match its checksum")
        return memoryview(data)[: rows * layout.row_bytes]

    def _chunk(self, layout: Layout, block: int) -> Path:
        return self.path / chunk_name(layout, block)


def _record_of(text: bytes, *, place: str) -> Record:
    try:
        values = parse_json(text)["attributes"][ATTRIBUTE]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(
            f"{place!r} must be zarr.json with a commit record, it is damaged: featcache verify --repair"
        ) from error
    return Record.from_json(values, place=repr(place))


def _make_array(path: Path, layout: Layout, record: Record) -> None:
    (path / layout.name).mkdir()
    _replace(path / layout.name / "zarr.json", array_text(layout, record))
    _sync_directories(path, {path / layout.name, (path / layout.name).parent})


def _write_chunk(path: Path, block: Block) -> None:
    """Write a chunk file whole or not at all; the zeros after the last row are a hole and take no room on the disk."""
    checksum = crc32c(block.payload)
    missing = block.layout.block_bytes - len(block.payload)
    while missing:
        part = min(missing, len(_ZEROS))
        checksum = crc32c(_ZEROS[:part], checksum)
        missing -= part
    temporary = path.with_name(f".{path.name}")
    with open(temporary, "wb") as file:
        file.write(block.payload)
        file.seek(block.layout.block_bytes)
        file.write(struct.pack("<I", checksum))
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)


def _replace(path: Path, data: bytes) -> None:
    """Replace a small file atomically; its directory is synchronised by the caller."""
    temporary = path.with_name(f".{path.name}")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)


def _sync_directories(path: Path, folders: set[Path]) -> None:
    for folder in sorted(folders):
        sync_directory(folder)


def _holds(path: Path, text: bytes) -> bool:
    try:
        return path.read_bytes() == text
    except OSError:
        return False


def _damaged(path: Path, what: str) -> CorruptError:
    return CorruptError(f"{str(path)!r} must be intact, it {what}: featcache verify --repair drops its damaged rows")


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (CorruptError, FormatError, StorageError):
        raise
    except OSError as error:
        raise StorageError(
            f"{str(path)!r} must be writable, got: {error.strerror or error}; free space or rights. "
            "Nothing committed is lost"
        ) from error
