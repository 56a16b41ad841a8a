"""Finding the row of a key: sorted runs of key prefixes, merged as they grow, 8 bytes of memory a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featcache.store.checks import check_keys
from featcache.store.interface import Keys, Rows

_PREFIX_BYTES = 4
Prefixes = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class _Run:
    prefixes: Prefixes
    rows: npt.NDArray[np.uint32]


class KeyIndex:
    """An index over keys added in row order: the first 4 bytes of each, and its row. Keys are digests: they spread."""

    def __init__(self) -> None:
        self._runs: list[_Run] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, keys: Keys) -> None:
        """Add the keys (m, 32) of the next m rows."""
        if not len(keys):
            return
        prefixes = key_prefixes(keys)
        order = np.argsort(prefixes, kind="stable")
        run = _Run(prefixes[order], (order + self._size).astype(np.uint32))
        self._size += len(keys)
        while self._runs and len(self._runs[-1].rows) <= 2 * len(run.rows):
            run = _merge(self._runs.pop(), run)
        self._runs.append(run)

    def find(
        self, keys: Keys, fetch: Callable[[Rows], Keys], *, rows: int, skip: npt.NDArray[np.bool_] | None = None
    ) -> Rows:
        """Return the row (m,) int64 of each key (m, 32) among the first `rows` rows, or -1.

        `fetch(rows (k,) int64)` must return the keys (k, 32) of candidates. Rows marked in `skip` are passed over.
        """
        keys = check_keys(keys)
        matches = np.full(len(keys), -1, dtype=np.int64)
        wanted = key_prefixes(keys)
        for run in self._runs:
            positions = np.searchsorted(run.prefixes, wanted)
            undecided = np.flatnonzero((matches < 0) & (positions < len(run.rows)))
            while len(undecided):
                here = positions[undecided]
                undecided = undecided[run.prefixes[here] == wanted[undecided]]
                candidates = run.rows[positions[undecided]].astype(np.int64)
                equal = candidates < rows
                equal[equal] = (fetch(candidates[equal]) == keys[undecided[equal]]).all(axis=1)
                if skip is not None:
                    equal[equal] = ~skip[candidates[equal]]
                matches[undecided[equal]] = candidates[equal]
                undecided = undecided[~equal]  # another key with the same 4 bytes: look at the next one
                positions[undecided] += 1
                undecided = undecided[positions[undecided] < len(run.rows)]
        return matches


def key_prefixes(keys: Keys) -> Prefixes:
    """Return the first 4 bytes of keys (m, 32) as numbers (m,) uint32 that sort as the keys do."""
    return np.ascontiguousarray(keys[:, :_PREFIX_BYTES]).view(">u4").ravel().astype(np.uint32)


def _merge(left: _Run, right: _Run) -> _Run:
    prefixes = np.concatenate((left.prefixes, right.prefixes))
    order = np.argsort(prefixes, kind="stable")
    return _Run(prefixes[order], np.concatenate((left.rows, right.rows))[order])
