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
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from featcache.errors import InputError

KEY_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,127}")
_DTYPES = ("float16", "float32")
_COPIED_ROWS = 1024  # of a block, where a store has no views

Keys = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]
Values = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Column:
    """One stored quantity.

    Parameters
    ----------
    name
        What it is called: letters, digits and any of ``_.@+-``.
    shape
        The shape of one row; ``()`` for a number.
    dtype
        ``float16`` or ``float32``.

    Raises
    ------
    InputError
        Where one of these is anything else.

    Examples
    --------
    >>> Column("features", (1280,), "float16").row_bytes
    2560
    """

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
    """The outcome of a check of every stored byte.

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
    touch in a process; damage raises `CorruptError` naming the block. A reader that was closed raises `InputError`.

    Examples
    --------
    >>> import numpy as np
    >>> from featcache.store import Column, create_store
    >>> store = create_store("scores", kind="zarr", columns=[Column("score", (), "float32")])
    >>> keys = np.arange(64, dtype=np.uint8).reshape(2, 32)
    >>> with store.writer() as writer:
    ...     count = writer.append(keys, {"score": np.array([1.5, 2.5])})
    ...     writer.commit()
    >>> with store.reader() as reader:
    ...     reader.find(keys[::-1]).tolist(), reader.gather("score", np.array([1, 0, 1])).tolist()
    ([1, 0], [2.5, 1.5, 2.5])
    """

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows."""

    def __contains__(self, key: bytes) -> bool:
        """Return whether the snapshot has a row with `key`."""
        return bool(self.find(np.frombuffer(key, dtype=np.uint8)[None])[0] >= 0)

    @property
    @abstractmethod
    def columns(self) -> tuple[Column, ...]:
        """The columns, in the order that the store was made with."""

    @abstractmethod
    def keys(self) -> Keys:
        """Return the keys (n, 32) uint8 in row order, read-only; mapped, not loaded, where the store is on disk."""

    @abstractmethod
    def find(self, keys: Keys) -> Rows:
        """Return the row of each key, or -1.

        Parameters
        ----------
        keys
            (m, 32) uint8.

        Returns
        -------
        Rows
            (m,) int64.

        Raises
        ------
        InputError
            Where `keys` have another shape or dtype.
        """

    @abstractmethod
    def gather(self, column: str, rows: Rows, *, out: Values | None = None) -> Values:
        """Return a copy of some rows of a column, in their order and with repeats.

        Parameters
        ----------
        column
            The column's name.
        rows
            (m,) whole numbers from 0 to ``len(reader) - 1``.
        out
            An array (m, *shape) of any float dtype to write to; None: a new one of the column's dtype.

        Returns
        -------
        Values
            `out`, or the new array.

        Raises
        ------
        InputError
            Where there is no such column or row, or `out` has another shape.
        CorruptError
            Where a row does not match its checksum.
        """

    def read(self, column: str, start: int, stop: int, *, out: Values | None = None) -> Values:
        """Return a copy (stop - start, *shape) of rows `start` to `stop`, in `out` where there is one.

        Raises as `gather`: `InputError`, `CorruptError`.
        """
        if not 0 <= start <= stop <= len(self):
            raise InputError(f"start and stop must lie within {len(self)} rows, got {start!r} and {stop!r}")
        return self.gather(column, np.arange(start, stop), out=out)

    def blocks(self, column: str) -> Iterator[tuple[int, Values]]:
        """Yield (first row, read-only block (k, *shape)) over all rows in order; without copying where they are mapped.

        Raises as `gather`: `InputError`, `CorruptError`.
        """
        for start in range(0, len(self), _COPIED_ROWS):
            block = self.read(column, start, min(start + _COPIED_ROWS, len(self)))
            block.flags.writeable = False
            yield start, block

    def close(self) -> None:  # noqa: B027 a store that holds nothing need not say so
        """Release the snapshot."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class StoreWriter(ABC):
    """The one writer of a store, for one thread. Leaving its ``with`` block discards what was not committed.

    A writer that was closed, or inherited by a forked process, raises `LockedError`.

    Examples
    --------
    >>> import numpy as np
    >>> from featcache.store import Column, create_store
    >>> store = create_store("more-scores", kind="lmdb", columns=[Column("score", (), "float32")])
    >>> keys = np.arange(96, dtype=np.uint8).reshape(3, 32)
    >>> with store.writer() as writer:
    ...     added = writer.append(keys, {"score": np.array([1.0, 2.0, 3.0])})
    ...     dropped = writer.drop(keys[:1])
    ...     writer.commit()
    ...     added, dropped, len(writer), bytes(keys[0]) in writer
    (3, 1, 2, False)
    """

    @abstractmethod
    def append(self, keys: Keys, columns: Mapping[str, Values]) -> int:
        """Add rows at the next commit; return how many were new.

        A key that is already present keeps its row (a row is a pure function of its key), also within `keys`.

        Parameters
        ----------
        keys
            (m, 32) uint8.
        columns
            For every column of the store its values (m, *shape), cast to its dtype.

        Returns
        -------
        int
            The rows whose keys were not there before.

        Raises
        ------
        InputError
            Where a column is missing, unknown, of another shape, or holds values too large for its dtype.
        LockedError
            Where the writer is not open in this process.
        StorageError
            Where the disk refuses.
        """

    @abstractmethod
    def drop(self, keys: Keys) -> int:
        """Remove the rows of `keys` (m, 32) at the next commit; return how many there were.

        The rows left keep their order but get new numbers; the space is given back to the disk. Raises `InputError`,
        `LockedError` as `append`.
        """

    @abstractmethod
    def find(self, keys: Keys) -> Rows:
        """Return the row (m,) int64 of each of `keys` (m, 32), or -1; pending rows count, dropped ones do not.

        Raises `InputError` where `keys` have another shape or dtype.
        """

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows, pending ones included and dropped ones not."""

    @abstractmethod
    def commit(self) -> None:
        """Make what was appended and dropped so far durable and visible, all of it at once or nothing.

        Raises `StorageError` where the disk refuses, `LockedError` where the writer is not open in this process.
        """

    @abstractmethod
    def close(self) -> None:
        """Discard what is pending and let another writer in."""

    def __contains__(self, key: bytes) -> bool:
        return bool(self.find(np.frombuffer(key, dtype=np.uint8).reshape(1, KEY_BYTES))[0] >= 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FeatureStore(ABC):
    """An open store. Close it, or use it as a context manager.

    A row's number is its position in the order of appending. It changes only when rows are dropped.

    Examples
    --------
    >>> import numpy as np
    >>> from featcache.store import Column, create_store
    >>> with create_store("rows", kind="lmdb", columns=[Column("features", (2,), "float16")]) as store:
    ...     with store.writer() as writer:                    # one at a time, across processes
    ...         count = writer.append(np.zeros((1, 32), np.uint8), {"features": np.ones((1, 2))})
    ...         writer.commit()                               # durable and visible, all of it or nothing
    ...     with store.reader() as reader:                    # a snapshot of what was committed
    ...         print(len(reader), reader.read("features", 0, 1).tolist())
    ...     print(store.verify().ok)
    1 [[1.0, 1.0]]
    True
    """

    @property
    @abstractmethod
    def columns(self) -> tuple[Column, ...]:
        """The columns, in the order that the store was made with."""

    @abstractmethod
    def reader(self) -> StoreReader:
        """Return a snapshot of what is committed now; raises `CorruptError` where that is damaged."""

    @abstractmethod
    def writer(self, *, wait_seconds: float = 0) -> StoreWriter:
        """Return the writer.

        Parameters
        ----------
        wait_seconds
            How long to wait for another one to end.

        Raises
        ------
        LockedError
            Naming the holder's process and host, where another writer stays that long.
        StorageError
            Where the store cannot be written to.
        """

    @abstractmethod
    def verify(self, *, repair: bool = False) -> VerifyReport:
        """Return what a check of every stored byte says.

        Parameters
        ----------
        repair
            Drop exactly the damaged rows; that takes the writer's lock.

        Raises
        ------
        LockedError
            Where a repair meets a writer.
        CorruptError
            Where nothing says any more which rows were committed.
        """

    @abstractmethod
    def nbytes(self) -> int:
        """Return the bytes that the store occupies."""

    def close(self) -> None:  # noqa: B027 a store that holds nothing need not say so
        """Release what the store holds; readers that are open stay usable."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
