"""Rows of Parquet files, on a disk or in a storage, and of Arrow files on a disk, that hold whole inputs as bytes.

A member is called ``ROW``, from 0, or ``COLUMN/ROW`` where several columns hold bytes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from featcache.errors import DependencyError, FeatcacheError, FormatError, InputError, ReadError
from featcache.system.sources.interface import MAX_FILE_BYTES, Container, FileStat
from featcache.system.sources.parts import LocalParts, PartedFile, PartsFile, open_parts

_BATCH_ROWS = 16
_KEPT_BATCHES = 32
_LEAST_BATCHES = 4  # more rows than threads read at once, else they would send each other back
_KEPT_BYTES = 128 << 20
_BUFFER = 4 << 20


class ParquetContainer(Container):
    """A Parquet file. Rows read about in their order are decoded once each, whatever the size of its row groups."""

    def __init__(self, path: str) -> None:
        self._file = open_parts(path)
        self._lock = threading.Lock()
        with _pyarrow_errors():
            self._parquet = open_parquet(self._file)
            self._schema = self._parquet.schema_arrow
            counts = [self._parquet.metadata.row_group(g).num_rows for g in range(self._parquet.num_row_groups)]
        self._starts = [sum(counts[:g]) for g in range(len(counts) + 1)]
        self._windows: dict[str, _Window] = {}

    def read(self, name: str) -> tuple[bytes, FileStat]:
        """Return the bytes in a row; raises `ReadError` as `Container.read`."""
        column, row = member_row(name, self._schema)
        if row >= self._starts[-1]:
            raise ReadError(f"cannot be read: the file has {self._starts[-1]} rows")
        with self._lock:
            window = self._windows.setdefault(column, _Window(self._parquet, column, self._starts))
            try:
                with _pyarrow_errors():
                    value = window.value(row)
            except FormatError as error:
                raise ReadError(f"cannot be read: the file {error}") from error
            finally:
                if not window.goes_on:
                    del self._windows[column]
        return _bytes(value), row_stat(self._file, column, row)

    def is_current(self) -> bool:
        """Return whether the file is as it was."""
        return self._file.is_current()


class ArrowContainer(Container):
    """An Arrow file, a stream or one with a footer, looked at where it lies."""

    def __init__(self, path: str) -> None:
        self._file = open_parts(path)
        with _pyarrow_errors():
            self._table = open_arrow(path, self._file)

    def read(self, name: str) -> tuple[bytes, FileStat]:
        """Return the bytes in a row; raises `ReadError` as `Container.read`."""
        column, row = member_row(name, self._table.schema)
        if row >= self._table.num_rows:
            raise ReadError(f"cannot be read: the file has {self._table.num_rows} rows")
        if not self._file.is_current():
            raise ReadError("is being written to")
        value = self._table.column(column)[row].as_py()
        return _bytes(value), row_stat(self._file, column, row)

    def is_current(self) -> bool:
        """Return whether the file is as it was."""
        return self._file.is_current()


class _Window:
    """The rows of one column of a Parquet file around the one that was asked for last."""

    def __init__(self, parquet: Any, column: str, starts: list[int]) -> None:
        self._parquet, self._column, self._starts = parquet, column, starts
        self._batches: deque[tuple[int, Any]] = deque()
        self._next, self._rest = -1, iter(())
        self.goes_on = True  # False: a read failed, which ends the iterator

    def value(self, row: int) -> Any:
        """Return the value in a row, decoding up to it."""
        for start, values in self._batches:
            if start <= row < start + len(values):
                return values[row - start].as_py()
        group = max(g for g in range(len(self._starts) - 1) if self._starts[g] <= row)
        if not self._starts[group] <= self._next <= row:
            self._next, self._rest = self._starts[group], self._from(group)
            self._batches.clear()
        while True:
            self.goes_on = False
            values = next(self._rest)
            self.goes_on = True
            self._batches.append((self._next, values))
            self._next += len(values)
            while self._holds_too_much():
                self._batches.popleft()
            if row < self._next:
                return values[row - self._next + len(values)].as_py()

    def _from(self, group: int) -> Iterator[Any]:
        groups = list(range(group, len(self._starts) - 1))
        columns = [self._column]
        for batch in self._parquet.iter_batches(_BATCH_ROWS, row_groups=groups, columns=columns, use_threads=False):
            yield batch.column(0)

    def _holds_too_much(self) -> bool:
        kept = len(self._batches)
        if kept <= _LEAST_BATCHES:
            return False
        return kept > _KEPT_BATCHES or sum(values.nbytes for _, values in self._batches) > _KEPT_BYTES


def open_parquet(file: PartedFile) -> Any:
    """Return the Parquet file in `file`, opened; `FormatError` where it is none, or cut off."""
    pyarrow = _pyarrow()
    from pyarrow.parquet import ParquetFile

    with _pyarrow_errors():
        return ParquetFile(pyarrow.PythonFile(PartsFile(file), "r"), buffer_size=_BUFFER, pre_buffer=False)


def open_arrow(path: str, file: PartedFile) -> Any:
    """Return the table in the Arrow file at `path`, mapped; `InputError` where it lies in a storage."""
    if not isinstance(file, LocalParts):
        raise InputError(f"an Arrow file must lie on a disk, got {path!r}: copy it, or write it as Parquet")
    pyarrow = _pyarrow()
    with _pyarrow_errors():
        mapped = pyarrow.memory_map(path)
        if file.read_part(0, min(6, file.size)) == b"ARROW1":
            return pyarrow.ipc.open_file(mapped).read_all()
        return pyarrow.ipc.open_stream(mapped).read_all()


def byte_columns(schema: Any) -> list[str]:
    """Return the names of the columns that hold bytes: binary ones, and structs with a binary field ``bytes``."""
    pyarrow = _pyarrow()

    def holds_bytes(kind: Any) -> bool:
        types = pyarrow.types
        if types.is_struct(kind):
            index = kind.get_field_index("bytes")
            return index >= 0 and holds_bytes(kind.field(index).type)
        return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))

    return [field.name for field in schema if holds_bytes(field.type)]


def member_name(column: str, row: int, *, count: int, schema: Any) -> str:
    """Return what row `row` of `count` is called; names sort as their rows do."""
    number = f"{row:0{len(str(max(0, count - 1)))}d}"
    return number if byte_columns(schema) == [column] else f"{column}/{number}"


def member_row(name: str, schema: Any) -> tuple[str, int]:
    """Return the column and the row that a member's name means; `ReadError` where it means none."""
    column, _, number = name.rpartition("/")
    columns = byte_columns(schema)
    if not column and len(columns) == 1:
        column = columns[0]
    if column not in columns or not (number.isascii() and number.isdecimal()):
        raise ReadError(f"cannot be read: there is no row {name!r} of bytes")
    return column, int(number)


def row_stat(file: PartedFile, column: str, row: int) -> FileStat:
    """Return what names the content of a row, whose size is not known before it is read: the file's is taken."""
    return file.stat(file.size, column, row)


def _bytes(value: Any) -> bytes:
    if isinstance(value, dict):
        value = value.get("bytes")
    if value is None:
        raise ReadError("holds no bytes")
    if len(value) > MAX_FILE_BYTES:
        raise ReadError(f"is larger than {MAX_FILE_BYTES} bytes")
    return bytes(value)


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise DependencyError(
            "Parquet and Arrow files need the package pyarrow, it is not installed: pip install 'featcache[parquet]'"
        ) from error
    return pyarrow


@contextmanager
def _pyarrow_errors() -> Iterator[None]:
    try:
        yield
    except FeatcacheError:
        raise
    except (_pyarrow().ArrowException, OSError, ValueError, StopIteration) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FormatError(f"must be whole, it cannot be read: {reason}") from error
