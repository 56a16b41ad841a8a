"""The interface of a store: rows of one or more named columns, keyed by 32-byte digests. It knows none of its kinds.

    with store.writer() as writer:              # one at a time, across processes
        writer.append(keys, {"features": rows})
        writer.commit()                         # durable and visible, all of it or nothing
    with store.reader() as reader:              # a snapshot of what was committed
        rows = reader.find(keys)
        features = reader.gather("features", rows)

A row's number is its position in the order of appending. It changes only when rows are dropped (`StoreWriter.drop`).
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.errors import InputError

KEY_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,127}")
_DTYPES = ("float16", "float32")

Keys = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]
Values = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Column:
    """One stored quantity: its `name`, the `shape` of one row (``()`` for a number), and ``float16`` or ``float32``."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InputError(f"a column's name must be letters, digits or one of _.@+-, got {self.name!r}")
        if any(size < 1 for size in self.shape):
            raise InputError(f"every side of a column's shape must be at least 1, got {self.shape!r}")
        if self.dtype not in _DTYPES:
            raise InputError(f"a column's dtype must be one of {_DTYPES!r}, got {self.dtype!r}")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a check of every stored byte found.

    `rows`: intact rows (after a repair: rows left). `problems`: one line each, naming the file and what is wrong in it.
    `damaged`: (k, 32) uint8 keys, as read, of the rows that are lost; a damaged key is not the one that was stored.
    """

    rows: int
    problems: tuple[str, ...]
    damaged: Keys

    @property
    def ok(self) -> bool:
        """Whether nothing was wrong."""
        return not self.problems


class StoreReader(ABC):
    """A snapshot of the committed rows: a later commit does not change it.

    Use it in a ``with`` block. It survives fork and can be pickled to another process of the same machine, where it
    opens the same rows again. Threads may share it. Every block read is checked against its checksum on the first
    touch in a process; damage raises `CorruptError` naming the block.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows."""

    @property
    @abstractmethod
    def columns(self) -> tuple[Column, ...]:
        """The columns, in the order given when the store was made."""

    @abstractmethod
    def keys(self) -> Keys:
        """Return the keys (n, 32) uint8 in row order, read-only; mapped, not loaded, where the store is on disk."""

    @abstractmethod
    def find(self, keys: Keys) -> Rows:
        """Return the row (m,) int64 of each of `keys` (m, 32) uint8, or -1."""

    @abstractmethod
    def blocks(self, column: str) -> Iterator[tuple[int, Values]]:
        """Yield (first row, read-only view (k, *shape)) over all rows in order, without copying."""

    @abstractmethod
    def read(self, column: str, start: int, stop: int, *, out: Values | None = None) -> Values:
        """Return a copy (stop - start, *shape) of rows `start` to `stop`, in `out` where one is given."""

    @abstractmethod
    def gather(self, column: str, rows: Rows, *, out: Values | None = None) -> Values:
        """Return a copy (m, *shape) of `rows` (m,), in their order and with repeats, in `out` where one is given."""

    @abstractmethod
    def close(self) -> None:
        """Release the snapshot."""

    def __enter__(self) -> StoreReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class StoreWriter(ABC):
    """The one writer of a store, for one thread. Leaving its ``with`` block discards what was not committed."""

    @abstractmethod
    def append(self, keys: Keys, columns: Mapping[str, Values]) -> int:
        """Add rows, `keys` (m, 32) uint8 and every column (m, *shape) cast to its dtype; return how many were new.

        A key that is already present keeps its row (a row is a pure function of its key), also within `keys`.
        """

    @abstractmethod
    def drop(self, keys: Keys) -> int:
        """Remove the rows of `keys` (m, 32) at the next commit; return how many there were.

        The rows left keep their order but get new numbers; the space is given back to the disk.
        """

    @abstractmethod
    def find(self, keys: Keys) -> Rows:
        """Return the row (m,) int64 of each of `keys` (m, 32), or -1; pending rows count, dropped ones do not."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows, pending ones included and dropped ones not."""

    @abstractmethod
    def commit(self) -> None:
        """Make what was appended and dropped so far durable and visible at once; `StorageError` if the disk refuses."""

    @abstractmethod
    def close(self) -> None:
        """Discard what is pending and let another writer in."""

    def __contains__(self, key: bytes) -> bool:
        return bool(self.find(np.frombuffer(key, dtype=np.uint8).reshape(1, KEY_BYTES))[0] >= 0)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FeatureStore(ABC):
    """An open store. Close it, or use it as a context manager."""

    @property
    @abstractmethod
    def columns(self) -> tuple[Column, ...]:
        """The columns, in the order given when the store was made."""

    @abstractmethod
    def reader(self) -> StoreReader:
        """Return a snapshot of what is committed now."""

    @abstractmethod
    def writer(self, *, wait_seconds: float = 0) -> StoreWriter:
        """Return the writer; `LockedError` naming the holder's process and host if another one stays that long."""

    @abstractmethod
    def verify(self, *, repair: bool = False) -> VerifyReport:
        """Check every stored byte; with `repair`, drop exactly the damaged rows (that takes the writer's lock)."""

    @abstractmethod
    def nbytes(self) -> int:
        """Return the bytes the store occupies on disk."""

    @abstractmethod
    def close(self) -> None:
        """Release what the store holds; readers that are open stay usable."""

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
