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
from crc32c import crc32c

from featcache.errors import CorruptError, FeatcacheError, FormatError, StorageError
from featcache.store._generation import Block, Committed, Extent, Generation
from featcache.store._lmdb_check import BLOCK_MARK, find_blocks, find_record, tree_problems
from featcache.store._lmdb_pages import META_BYTES, PAGE_HEADER_BYTES, LmdbPages, Meta, Place
from featcache.store._record import Layout, Record
from featcache.store.settings import StoreSettings
from featcache.system.files import sync_directory
from featcache.system.json import canonical_json

_COMMIT, _COMMIT_COPY = b"commit", b"commit-copy"
_TRANSACTION_BYTES = 4 << 20  # LMDB keeps what a transaction writes in memory until its end
_FORMAT_0_9 = 0
_MAX_READERS = 1022
_LOCK_FILE_BYTES = 64 * (_MAX_READERS + 2)  # as LMDB makes it: a line of the processor's cache each, and a header
_STAT_BLOCK = 512  # bytes, in which a file's blocks are counted
_NO_LOCK_FILE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOSPC, errno.EDQUOT)

_one_environment = threading.Lock()
os.register_at_fork(
    before=_one_environment.acquire,
    after_in_parent=_one_environment.release,
    after_in_child=_one_environment.release,
)


class LmdbGeneration(Generation):
    """One LMDB file."""

    _file = -1

    def __init__(self, path: Path, settings: StoreSettings) -> None:
        super().__init__(path, settings)
        self._file = os.open(path, os.O_RDONLY)
        self._name = repr(str(path))
        self._places: dict[tuple[str, int], Place] = {}
        self._page = os.sysconf("SC_PAGE_SIZE")
        with contextlib.suppress(CorruptError):  # what is damaged is said by what needs it
            self._page = LmdbPages(self._file, self._name).page_bytes

    @classmethod
    def create(cls, path: Path, record: Record, settings: StoreSettings) -> None:
        with (
            _environment(path, incoming=0, growth=settings.map_growth_bytes, write=True) as env,
            env.begin(write=True) as transaction,
        ):
            _put_record(transaction, record)
        sync_directory(path.parent)

    def stamp(self) -> bytes:
        return os.pread(self._file, META_BYTES, 0) + os.pread(self._file, META_BYTES, self._page)

    def load(self) -> Committed:
        with self._snapshot() as (pages, metas):
            for meta in metas:  # both, or a damaged number could make an older commit count
                record = self._committed_by(pages, meta)
            values = pages.values(metas[-1])
            tails: dict[str, memoryview] = {}
            for layout in record.arrays:
                for block in range(layout.blocks(record.rows)):
                    if block < record.rows // layout.block_rows:
                        if (layout.name, block) not in self._places:
                            self._places[layout.name, block] = self._rows_of(values, layout, block)
                    else:
                        tails[layout.name] = self._read_tail(values, layout, block, layout.rows_in(block, record.rows))
        return Committed(record, tails)

    def record(self) -> Record:
        try:
            with self._snapshot() as (pages, metas):
                for key in (_COMMIT, _COMMIT_COPY):
                    place = pages.value(metas[-1], key)
                    with contextlib.suppress(CorruptError):
                        return Record.from_text(pages.read(place) if place else b"", place=self._name)
        except CorruptError:
            return find_record(self.path, self._page)
        return find_record(self.path, self._page)

    @contextlib.contextmanager
    def locate(self, layout: Layout, block: int) -> Iterator[Extent]:
        place = self._places.get((layout.name, block))
        if place is None:  # written, not committed: asked for by the writer itself
            with self._snapshot() as (pages, metas):
                place = self._rows_of(pages.values(metas[-1]), layout, block)
        (stored,) = struct.unpack("<I", os.pread(self._file, 4, place.offset - self._header_bytes))
        yield Extent(self._file, place.offset, layout.block_bytes, stored)

    def write(self, blocks: Iterable[Block], record: Record | None) -> None:
        values: list[tuple[bytes, bytes]] = []
        size = 0
        for block in blocks:
            header = self._header(block.layout, block.index, block.payload)
            values.append((_block_key(block.layout, block.index), b"".join((header, block.payload))))
            size += len(values[-1][1]) + self._page
            if size > _TRANSACTION_BYTES:  # before the last, the record stays: nobody sees these rows yet
                self._put(values, self.record(), incoming=size)
                values, size = [], 0
        self._put(values, record or self.record(), incoming=size)

    def _put(self, values: list[tuple[bytes, bytes]], record: Record, *, incoming: int) -> None:
        growth = self.settings.map_growth_bytes
        with (
            _environment(self.path, incoming=incoming, growth=growth, write=True) as env,
            env.begin(write=True) as transaction,
        ):
            for key, value in values:
                transaction.put(key, value)
            _put_record(transaction, record)

    def read_block(self, layout: Layout, block: int, rows: int) -> tuple[bytes, bool]:
        place = self._places.get((layout.name, block))
        if place is None:
            raise self._damaged(layout, block, "is missing")
        if place.size < rows * layout.row_bytes or place.size % layout.row_bytes:
            raise self._damaged(layout, block, f"has {place.size} bytes of rows")
        data = os.pread(self._file, place.size, place.offset)
        header = os.pread(self._file, self._header_bytes, place.offset - self._header_bytes)
        return data, header == self._header(layout, block, data)

    def trim(self, record: Record) -> None:
        """Nothing to do: blocks never committed are overwritten by the next append, inside the file."""

    def check_structure(self, record: Record) -> list[str]:
        problems: list[str] = []
        self._places = {}
        try:
            with self._snapshot() as (pages, metas):
                for meta in metas:
                    self._committed_by(pages, meta)
                values = pages.values(metas[-1])
                copy = values.get(_COMMIT_COPY)
                if copy is None or pages.read(copy) != _record_text(record, metas[-1].transaction):
                    problems.append(f"'commit-copy' in {self._name} must be as the commit record, it is damaged")
                problems += tree_problems(self.path)
                for layout in record.arrays:
                    for block in range(layout.blocks(record.rows)):
                        with contextlib.suppress(CorruptError):  # `read_block` says so
                            self._places[layout.name, block] = self._rows_of(values, layout, block, whole=False)
        except CorruptError as error:
            problems.append(str(error))
            self._places = find_blocks(self.path, self._page)
        return problems

    def nbytes(self) -> int:
        return self.path.stat().st_blocks * 512

    def spare_bytes(self) -> int:
        with self._snapshot() as (pages, metas):
            used = sum(-(-(PAGE_HEADER_BYTES + place.size) // self._page) for place in pages.values(metas[-1]).values())
        return max(0, self.nbytes() - used * self._page)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        super().close()

    @property
    def _header_bytes(self) -> int:
        return self._page - PAGE_HEADER_BYTES

    def _header(self, layout: Layout, block: int, payload: bytes | bytearray | memoryview) -> bytes:
        name = {"array": layout.name, "block": block, "bytes": len(payload)}
        header = struct.pack("<I", crc32c(payload)) + BLOCK_MARK + canonical_json(name).encode()
        return header.ljust(self._header_bytes)

    @contextlib.contextmanager
    def _snapshot(self) -> Iterator[tuple[LmdbPages, list[Meta]]]:
        """Give the pages and meta pages inside a read transaction, which keeps what they lead to from being reused."""
        LmdbPages(self._file, self._name).metas()  # before LMDB sees them
        growth = self.settings.map_growth_bytes
        with _environment(self.path, incoming=0, growth=growth, write=False) as env, env.begin():
            pages = LmdbPages(self._file, self._name)
            yield pages, pages.metas()

    def _committed_by(self, pages: LmdbPages, meta: Meta) -> Record:
        """Return the record that transaction `meta` committed."""
        place = pages.value(meta, _COMMIT)
        text = pages.read(place) if place else b""
        record = Record.from_text(text, place=self._name)
        if text != _record_text(record, meta.transaction):
            raise CorruptError(f"{self._name} must be intact, its meta page {meta.number} leads to another commit")
        return record

    def _rows_of(self, values: dict[bytes, Place], layout: Layout, block: int, *, whole: bool = True) -> Place:
        """Return where the rows of a block lie."""
        value = values.get(_block_key(layout, block))
        if value is None or (value.offset + self._header_bytes) % self._page:
            raise self._damaged(layout, block, "is missing")
        place = Place(value.offset + self._header_bytes, value.size - self._header_bytes)
        if whole and place.size != layout.block_bytes:
            raise self._damaged(layout, block, f"has {place.size} bytes of rows")
        return place

    def _read_tail(self, values: dict[bytes, Place], layout: Layout, block: int, rows: int) -> memoryview:
        place = self._rows_of(values, layout, block, whole=False)
        data = os.pread(self._file, place.size + self._header_bytes, place.offset - self._header_bytes)
        payload = memoryview(data)[self._header_bytes :]
        if len(payload) < rows * layout.row_bytes:
            raise self._damaged(layout, block, f"has {len(payload)} bytes of rows")
        if crc32c(payload) != struct.unpack_from("<I", data)[0]:
            raise self._damaged(layout, block, "does not match its checksum")
        return payload[: rows * layout.row_bytes]

    def _damaged(self, layout: Layout, block: int, what: str) -> CorruptError:
        return CorruptError(
            f"block {block} of {layout.name!r} in {self._name} must be intact, it {what}: "
            "featcache verify --repair drops its damaged rows"
        )


def _block_key(layout: Layout, block: int) -> bytes:
    return f"{layout.name}/{block:08d}".encode()


def _record_text(record: Record, transaction: int) -> bytes:
    """Return the record as JSON, with the transaction that committed it: that ties it to its meta page."""
    return record.to_text(transaction=transaction)


def _put_record(transaction: lmdb.Transaction[bytes], record: Record) -> None:
    for key in (_COMMIT, _COMMIT_COPY):
        transaction.put(key, _record_text(record, transaction.id()))


@contextlib.contextmanager
def _environment(path: Path, *, incoming: int, growth: int, write: bool) -> Iterator[lmdb.Environment]:
    """Open the environment for a moment; errors of LMDB and of the disk become the package's own.

    Its map has room for `incoming` bytes to be written, twice over, and for `growth` more, which another process
    may commit between the look at the file's size and LMDB's own.
    """
    with _one_environment:
        used = path.stat().st_size if path.exists() else 0
        try:
            env = _open(path, map_size=used + 2 * incoming + growth, write=write)
            try:
                if write:
                    env.reader_check()  # slots of readers that were killed
                yield env
            finally:
                env.close()
        except FeatcacheError:
            raise
        except (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError) as error:
            raise CorruptError(f"{str(path)!r} must be an intact LMDB file, got: {error}") from error
        except lmdb.VersionMismatchError as error:
            raise FormatError(f"{str(path)!r} must be of LMDB's data version 1, got: {error}") from error
        except (lmdb.Error, OSError) as error:
            reason = "No space left on device" if _disk_is_full(path, incoming) else str(error)
            raise StorageError(
                f"{str(path)!r} must be readable, and writable to build, got: {reason}; free space or rights. "
                "Nothing committed is lost"
            ) from error


def _disk_is_full(path: Path, incoming: int) -> bool:
    """Return whether that is why LMDB, which reports any short write as an input/output error, could not commit."""
    room = os.statvfs(path.parent)
    return room.f_bavail * room.f_frsize < max(incoming, room.f_frsize)


def _reserve_lock_file(path: Path) -> None:
    """Give LMDB's file of readers its bytes on the disk: it is mapped, and touching a page without ends the process.

    Raises `OSError` where the disk has no room for it, or nobody may write there.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    handle = os.open(f"{path}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if os.fstat(handle).st_blocks * _STAT_BLOCK < _LOCK_FILE_BYTES:
            os.posix_fallocate(handle, 0, _LOCK_FILE_BYTES)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that cannot reserve
            raise
    finally:
        os.close(handle)


def _open(path: Path, *, map_size: int, write: bool) -> lmdb.Environment:
    settings: dict[str, Any] = {"map_size": map_size, "max_readers": _MAX_READERS, "mode": 0o666, "readonly": not write}
    try:
        _reserve_lock_file(path)
        return lmdb.Environment(str(path), subdir=False, lib_version=_FORMAT_0_9, **settings)
    except (lmdb.Error, OSError) as error:
        if write or getattr(error, "code", getattr(error, "errno", 0)) not in _NO_LOCK_FILE:
            raise
        # Nobody may write here, or not we, or no more: no lock file can be made. What is read is checked all the same.
        return lmdb.Environment(str(path), subdir=False, lock=False, lib_version=_FORMAT_0_9, **settings)
