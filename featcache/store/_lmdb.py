"""A generation in one LMDB file: each block is one value, whose rows begin on a page boundary and are mapped.

    commit                    the commit record (`_record.Record`), JSON; commit-copy holds the same
    ARRAY/00000007            block 7 of an array: a header of one page less 16 bytes, then the rows' bytes

LMDB puts 16 bytes of its own before a large value, so the header ends with the page. It begins with the crc32c
(uint32, little-endian) of the rows' bytes and names the block, so that blocks can be found without LMDB's tree.

The environment is open only for the moment of a commit or of taking a snapshot, under one lock of this process. So it
is never open twice in a process, never crosses a fork, and its map is sized for each commit and never resized. Full
blocks are not written again in a generation, so their pages stay what they are and need no read transaction.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from crc32c import crc32c

from featcache.errors import CorruptError, FeatcacheError, StorageError
from featcache.files import sync_directory
from featcache.recipe import canonical_json
from featcache.store._generation import Block, Committed, Extent, Generation
from featcache.store._lmdb_check import find_blocks, find_record, tree_problems
from featcache.store._record import Layout, Record, index_rows

_COMMIT, _COMMIT_COPY = b"commit", b"commit-copy"
_PAGE_HEADER_BYTES = 16
_SPARE_BYTES = 64 << 20
_BLOCK_MARK = b"featcache"
_META_BYTES = 152  # of a meta page, up to the end of the transaction's number

_one_environment = threading.Lock()
os.register_at_fork(
    before=_one_environment.acquire,
    after_in_parent=_one_environment.release,
    after_in_child=_one_environment.release,
)


class LmdbGeneration(Generation):
    """One LMDB file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = os.open(path, os.O_RDONLY)
        self._page = _page_bytes(self._file, path)
        self._offsets: dict[tuple[str, int], int] = {}
        self._places: dict[tuple[str, int], tuple[int, int]] = {}

    @classmethod
    def create(cls, path: Path, record: Record) -> None:
        """Make the file `path`, holding `record`."""
        with _environment(path, incoming=0, write=True) as env, env.begin(write=True) as transaction:
            _put_record(transaction, record)
        sync_directory(path.parent)

    def stamp(self) -> bytes:
        return os.pread(self._file, _META_BYTES, 0) + os.pread(self._file, _META_BYTES, self._page)

    def load(self) -> Committed:
        with self._transaction() as transaction:
            place = f"{self.path.name} of {str(self.path.parent)!r}"
            text = transaction.get(_COMMIT)
            record = Record.from_text(bytes(text) if text is not None else b"", place=place)
            tails: dict[str, memoryview] = {}
            index = index_rows(record)
            for layout, rows in [(a, record.rows) for a in record.arrays] + (
                [(index, record.indexed_rows)] if index else []
            ):
                last = layout.blocks(rows) - 1
                whole = rows // layout.block_rows
                for block in range(whole):
                    if (layout.name, block) not in self._offsets:
                        self._find(transaction, layout, block)
                if whole <= last:
                    tails[layout.name] = self._read_tail(transaction, layout, last, layout.rows_in(last, rows))
        return Committed(record, tails)

    def record(self) -> Record:
        if tree_problems(self.path):
            return find_record(self.path)
        with self._transaction() as transaction:
            texts = [bytes(transaction.get(key) or b"") for key in (_COMMIT, _COMMIT_COPY)]
        place = f"{self.path.name} of {str(self.path.parent)!r}"
        problem: FeatcacheError | None = None
        for text in texts:
            try:
                return Record.from_text(text, place=place)
            except CorruptError as error:
                problem = problem or error
        raise problem or AssertionError

    @contextlib.contextmanager
    def locate(self, layout: Layout, block: int) -> Iterator[Extent]:
        offset = self._offsets.get((layout.name, block))
        if offset is None:
            with self._transaction() as transaction:
                offset = self._find(transaction, layout, block)
        (stored,) = struct.unpack("<I", os.pread(self._file, 4, offset - self._header_bytes))
        yield Extent(self._file, offset, layout.block_bytes, stored)

    def write(self, blocks: Iterable[Block], record: Record | None) -> None:
        values = [
            (_block_key(b.layout, b.index), self._header(b.layout, b.index, b.payload) + bytes(b.payload))
            for b in blocks
        ]
        incoming = sum(len(value) + self._page for _, value in values)
        with _environment(self.path, incoming=incoming, write=True) as env, env.begin(write=True) as transaction:
            for key, value in values:
                transaction.put(key, value)
            if record is not None:
                self._drop_old_index(transaction, record)
                _put_record(transaction, record)

    def read_block(self, layout: Layout, block: int, rows: int) -> tuple[bytes, bool]:
        place = self._places.get((layout.name, block))
        if place is None:
            with self._transaction() as transaction:
                value = self._value(transaction, layout, block)
                place = self._offset(value, layout, block), len(value) - self._header_bytes
        offset, size = place
        if size < rows * layout.row_bytes or size % layout.row_bytes:
            raise self._damaged(layout, block, f"has {size} bytes of rows")
        data = os.pread(self._file, size, offset)
        header = os.pread(self._file, self._header_bytes, offset - self._header_bytes)
        return data, header == self._header(layout, block, data)

    def trim(self, record: Record) -> None:
        """Nothing to do: blocks never committed are overwritten by the next append, inside the file."""

    def check_structure(self, record: Record) -> list[str]:
        problems = tree_problems(self.path)
        if problems:
            self._places = find_blocks(self.path, _BLOCK_MARK, self._page)
            return problems
        with self._transaction() as transaction:
            for key in (_COMMIT, _COMMIT_COPY):
                if bytes(transaction.get(key) or b"") != record.to_text():
                    problems.append(f"{key.decode()!r} in {str(self.path)!r} must be the commit record, it is damaged")
        return problems

    def nbytes(self) -> int:
        return self.path.stat().st_blocks * 512

    def close(self) -> None:
        if getattr(self, "_file", -1) >= 0:
            os.close(self._file)
            self._file = -1
        super().close()

    @property
    def _header_bytes(self) -> int:
        return self._page - _PAGE_HEADER_BYTES

    def _header(self, layout: Layout, block: int, payload: bytes | bytearray | memoryview) -> bytes:
        name = {"array": layout.name, "block": block, "bytes": len(payload)}
        header = struct.pack("<I", crc32c(payload)) + _BLOCK_MARK + canonical_json(name).encode()
        return header.ljust(self._header_bytes)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[lmdb.Transaction[memoryview]]:
        with _environment(self.path, incoming=0, write=False) as env, env.begin(buffers=True) as transaction:
            yield transaction

    def _find(self, transaction: lmdb.Transaction[memoryview], layout: Layout, block: int) -> int:
        value = self._value(transaction, layout, block)
        if len(value) != self._header_bytes + layout.block_bytes:
            raise self._damaged(layout, block, f"has {len(value) - self._header_bytes} bytes of rows")
        offset = self._offset(value, layout, block)
        self._offsets[(layout.name, block)] = offset
        return offset

    def _offset(self, value: memoryview, layout: Layout, block: int) -> int:
        """Return where in the file a value's rows begin: LMDB writes a large value's page number just before it."""
        address = np.frombuffer(value, dtype=np.uint8).__array_interface__["data"][0]
        page = int(np.asarray(_Word(address - _PAGE_HEADER_BYTES))[0])
        header = os.pread(self._file, self._header_bytes, page * self._page + _PAGE_HEADER_BYTES)
        if header != bytes(value[: self._header_bytes]):
            raise self._damaged(layout, block, "is not where LMDB says")
        return page * self._page + self._page

    def _read_tail(
        self, transaction: lmdb.Transaction[memoryview], layout: Layout, block: int, rows: int
    ) -> memoryview:
        value = bytes(self._value(transaction, layout, block))
        payload = memoryview(value)[self._header_bytes :]
        if len(payload) < rows * layout.row_bytes:
            raise self._damaged(layout, block, f"has {len(payload)} bytes of rows")
        if crc32c(payload) != struct.unpack_from("<I", value)[0]:
            raise self._damaged(layout, block, "does not match its checksum")
        return payload[: rows * layout.row_bytes]

    def _value(self, transaction: lmdb.Transaction[memoryview], layout: Layout, block: int) -> memoryview:
        value = transaction.get(_block_key(layout, block))
        if value is None or len(value) < self._header_bytes:
            raise self._damaged(layout, block, "is missing")
        return value

    def _damaged(self, layout: Layout, block: int, what: str) -> CorruptError:
        return CorruptError(
            f"block {block} of {layout.name!r} in {str(self.path)!r} must be intact, it {what}: "
            "featcache verify --repair drops its damaged rows"
        )

    def _drop_old_index(self, transaction: lmdb.Transaction[bytes], record: Record) -> None:
        old = Record.from_text(transaction.get(_COMMIT) or b"", place=str(self.path))
        layout = index_rows(old)
        if layout is not None and old.indexed_rows != record.indexed_rows:
            for block in range(layout.blocks(old.indexed_rows)):
                transaction.delete(_block_key(layout, block))


class _Word:
    """Eight bytes of memory, as numpy sees them."""

    def __init__(self, address: int) -> None:
        self.__array_interface__ = {"version": 3, "data": (address, True), "shape": (1,), "typestr": "=u8"}


def _block_key(layout: Layout, block: int) -> bytes:
    return f"{layout.name}/{block:08d}".encode()


def _put_record(transaction: lmdb.Transaction[bytes], record: Record) -> None:
    for key in (_COMMIT, _COMMIT_COPY):
        transaction.put(key, record.to_text())


def _page_bytes(file: int, path: Path) -> int:
    """Return the page size in the file's first meta page (its first database's `md_pad`)."""
    (magic, _, _, _, size) = struct.unpack_from("<16xIIQQI", os.pread(file, _META_BYTES, 0).ljust(_META_BYTES, b"\0"))
    if magic != 0xBEEFC0DE or size < 512 or size & (size - 1):
        raise CorruptError(f"{str(path)!r} must begin with LMDB's meta page, it does not: featcache verify --repair")
    return int(size)


@contextlib.contextmanager
def _environment(path: Path, *, incoming: int, write: bool) -> Iterator[lmdb.Environment]:
    """Open the environment for a moment; errors of LMDB and of the disk become the package's own."""
    used = path.stat().st_size if path.exists() else 0
    with _one_environment:
        try:
            env = _open(path, map_size=used + 2 * incoming + _SPARE_BYTES, write=write)
            try:
                if write:
                    env.reader_check()  # slots of readers that were killed
                yield env
            finally:
                env.close()
        except (lmdb.DiskError, lmdb.MemoryError) as error:
            raise _storage_error(path, error) from error
        except (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.VersionMismatchError) as error:
            raise CorruptError(f"{str(path)!r} must be an intact LMDB file, got: {error}") from error
        except (lmdb.Error, OSError) as error:
            if isinstance(error, FeatcacheError):
                raise
            raise _storage_error(path, error) from error


def _open(path: Path, *, map_size: int, write: bool) -> lmdb.Environment:
    settings: dict[str, Any] = {"map_size": map_size, "max_readers": 1022, "mode": 0o644, "readonly": not write}
    try:
        return lmdb.Environment(str(path), subdir=False, **settings)
    except (lmdb.Error, OSError) as error:
        if write or getattr(error, "code", getattr(error, "errno", 0)) not in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise
        # Nobody may write here, or not we: no lock file can be made. What is read is checked all the same.
        return lmdb.Environment(str(path), subdir=False, lock=False, **settings)


def _storage_error(path: Path, error: Exception) -> StorageError:
    return StorageError(
        f"{str(path)!r} must be writable, got: {error}; free space or rights. Nothing committed is lost"
    )
