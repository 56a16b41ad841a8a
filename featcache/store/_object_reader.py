"""`ObjectReader`: a snapshot of a store on object storage; opening one reads no rows and no keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.errors import CorruptError, InputError
from featcache.store._fetch_ahead import fetch_ahead
from featcache.store._object_chunks import ChunkedArray
from featcache.store._object_directory import ObjectDirectory
from featcache.store._object_log import Snapshot
from featcache.store._record import CHECKSUMS, COLUMN_PREFIX, KEYS, row_checksums
from featcache.store.checks import check_column, check_keys, check_rows, output_array
from featcache.store.interface import Column, Keys, Rows, StoreReader, Values
from featcache.store.settings import DEFAULT_SETTINGS
from featcache.system.objects import ObjectPath

_SPARSE = 16  # a chunk of which less than one row in so many is wanted is not fetched whole
_AHEAD = 4  # chunks fetched before they are wanted


class ObjectReader(StoreReader):
    """The segments of one commit. They are never changed; those a later commit replaced are kept for a day at least.

    Many rows are read by whole chunks, each checked by its crc32c, the next ones under way meanwhile; few by requests
    of their own, each row checked by its. Pickled, it is the store's URL and the commit's number.
    """

    def __init__(self, directory: ObjectDirectory, snapshot: Snapshot) -> None:
        self._directory: ObjectDirectory | None = directory
        self._snapshot = snapshot
        self._rows = snapshot.rows
        self._columns = directory.columns
        self._segments = [directory.stored(segment) for segment in snapshot.segments]
        self._arrays: dict[str, ChunkedArray] = {}
        self._buffer = directory.chunks

    def __len__(self) -> int:
        return self._rows

    @property
    def columns(self) -> tuple[Column, ...]:
        return self._columns

    def keys(self) -> Keys:
        return self._open().keys_of(self._snapshot).keys(self._rows)

    def find(self, keys: Keys) -> Rows:
        directory, keys = self._open(), check_keys(keys)
        if not len(keys) or not self._rows:
            return np.full(len(keys), -1, dtype=np.int64)
        return directory.keys_of(self._snapshot).find(keys, rows=self._rows)

    def gather(self, column: str, rows: Rows, *, out: Values | None = None) -> Values:
        self._open()
        rows = check_rows(rows, len(self))
        out = output_array(check_column(self._columns, column), len(rows), out)
        array = self._array(COLUMN_PREFIX + column)
        chunks = array.chunks_of(rows)
        touched, counts = np.unique(chunks, return_counts=True)
        order = np.argsort(chunks, kind="stable")
        places = np.split(order, np.cumsum(counts)[:-1]) if len(touched) else []
        whole: list[tuple[int, Rows]] = []
        few: list[tuple[int, Rows]] = []
        for chunk, count, where in zip(touched.tolist(), counts.tolist(), places, strict=True):
            is_sparse = count * _SPARSE < array.rows_in(chunk) and not self._buffer.holds(array, chunk)
            (few if is_sparse else whole).append((chunk, where))
        self._gather_whole(array, whole, rows, out)
        self._gather_few(array, few, rows, out)
        return out

    def blocks(self, column: str) -> Iterator[tuple[int, Values]]:
        self._open()
        array = self._array(COLUMN_PREFIX + check_column(self._columns, column).name)
        for chunk, block in enumerate(fetch_ahead(array.fetch, range(len(array)), most=_AHEAD)):
            yield int(array.first_rows[chunk]), block

    def close(self) -> None:
        self._arrays.clear()
        self._directory = None

    def __reduce__(self) -> tuple[Callable[[str, int], StoreReader], tuple[str, int]]:
        return _reopen, (str(self._open().path), self._snapshot.number)

    def _open(self) -> ObjectDirectory:
        if self._directory is None:
            raise InputError("a reader must be open, this one was closed: use it inside its with block")
        return self._directory

    def _array(self, name: str) -> ChunkedArray:
        if name not in self._arrays:
            self._arrays[name] = ChunkedArray(name, self._segments)
        return self._arrays[name]

    def _gather_whole(self, array: ChunkedArray, parts: list[tuple[int, Rows]], rows: Rows, out: Values) -> None:
        """Copy rows out of whole chunks, a few of which are under way at any time."""
        if not parts:
            return
        wanted = [chunk for chunk, _ in parts]
        if 0 <= wanted[0] - self._buffer.last.get(array.name, -2) <= 1:  # so a pass over all rows goes on
            wanted += range(wanted[-1] + 1, min(wanted[-1] + 1 + _AHEAD, len(array)))
        self._buffer.last[array.name] = parts[-1][0]
        for position, (chunk, where) in enumerate(parts):
            futures = [self._buffer.order(array, one) for one in wanted[position : position + 1 + _AHEAD]]
            out[where] = futures[0].result()[rows[where] - array.first_rows[chunk]]

    def _gather_few(self, array: ChunkedArray, parts: list[tuple[int, Rows]], rows: Rows, out: Values) -> None:
        """Copy single rows, each checked against its own checksum."""
        position = [COLUMN_PREFIX + column.name for column in self._columns].index(array.name)

        def fetch(part: tuple[int, Rows]) -> npt.NDArray[Any]:
            chunk, where = part
            wanted, back = np.unique(rows[where], return_inverse=True)
            values = array.fetch_some(chunk, wanted)
            keys, sums = (self._few(self._array(name), wanted) for name in (KEYS, CHECKSUMS))
            wrong = row_checksums(keys, [values])[:, 0] != sums[:, position]
            if wrong.any():
                raise CorruptError(
                    f"row {int(wanted[wrong][0])} in {array.place_of(chunk)!r} must match its checksum, it does not: "
                    "featcache verify --repair drops it"
                )
            return values[back.reshape(-1)]

        for (_, where), values in zip(parts, fetch_ahead(fetch, parts, most=2 * _AHEAD), strict=True):
            out[where] = values

    def _few(self, array: ChunkedArray, rows: Rows) -> npt.NDArray[Any]:
        """Return `rows` (rising) of an array, unchecked."""
        chunks = array.chunks_of(rows)
        return np.concatenate([array.fetch_some(int(c), rows[chunks == c]) for c in np.unique(chunks)])


def _reopen(url: str, number: int) -> StoreReader:
    """Return the reader of the same commit in another process."""
    directory = ObjectDirectory(ObjectPath(url), DEFAULT_SETTINGS)
    return ObjectReader(directory, directory.log.at(number))
