"""What a writer was told and has not committed: the keys that are new, and the rows that are to go."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from featcache.store._index import KeyIndex
from featcache.store.interface import KEY_BYTES, Keys, Rows

Mask = npt.NDArray[np.bool_]
FindStored = Callable[[Keys, Mask | None], Rows]


class PendingRows:
    """The rows of a writer: `stored` ones that are committed, found by `find_stored`, then the new ones."""

    def __init__(self, stored: int, find_stored: FindStored) -> None:
        self.stored = stored
        self._find_stored = find_stored
        self._keys = np.empty((0, KEY_BYTES), dtype=np.uint8)
        self._index = KeyIndex()
        self._dropped = np.zeros(0, dtype=bool)

    def __len__(self) -> int:
        """Return how many rows there are, those to be dropped included."""
        return self.stored + len(self._index)

    @property
    def new_keys(self) -> Keys:
        """The keys (n, 32) of the new rows, those to be dropped included."""
        return self._keys[: len(self._index)]

    @property
    def any_dropped(self) -> bool:
        """Whether any row is to go."""
        return bool(self._dropped.any())

    @property
    def dropped(self) -> Mask:
        """(n,) which rows are to go."""
        return _grown(self._dropped, len(self))

    @property
    def left(self) -> int:
        """How many rows will be left."""
        return len(self) - int(self._dropped.sum())

    def rows_of(self, keys: Keys) -> Rows:
        """Return the row (m,) of each key, counted as nothing were dropped, or -1; dropped rows are passed over."""
        dropped = self._dropped if self._dropped.any() else None
        rows = self._find_stored(keys, None if dropped is None else _grown(dropped[: self.stored], self.stored))
        skip = None if dropped is None else _grown(dropped[self.stored :], len(self._index))
        new = self._index.find(keys, self._keys.__getitem__, rows=len(self._index), skip=skip)
        return np.where(rows < 0, np.where(new < 0, -1, new + self.stored), rows)

    def find(self, keys: Keys) -> Rows:
        """Return the row (m,) that each key will have, or -1."""
        rows = self.rows_of(keys)
        if self._dropped.any():  # rows after dropped ones move up
            moved = np.cumsum(self.dropped)
            rows[rows >= 0] -= moved[rows[rows >= 0]]
        return rows

    def add(self, keys: Keys) -> None:
        """Count new rows in; the keys are distinct, and none of them is there."""
        used = len(self._index)
        if used + len(keys) > len(self._keys):
            grown = np.empty((max(1024, 2 * (used + len(keys))), KEY_BYTES), dtype=np.uint8)
            grown[:used] = self._keys[:used]
            self._keys = grown
        self._keys[used : used + len(keys)] = keys
        self._index.add(keys)

    def drop(self, keys: Keys) -> Rows:
        """Mark the rows of `keys` as to go and return them, counted as `rows_of` does."""
        rows = np.unique(self.rows_of(keys))
        rows = rows[rows >= 0]
        self._dropped = _grown(self._dropped, len(self))
        self._dropped[rows] = True
        return rows


def _grown(mask: Mask, size: int) -> Mask:
    grown = np.zeros(size, dtype=bool)
    grown[: len(mask)] = mask
    return grown
