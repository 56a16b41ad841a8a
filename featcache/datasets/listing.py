"""What is in a data set before any byte of an input was read: paths, stats, labels, and the splits that it names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, overload

import numpy as np
import numpy.typing as npt

Task = Literal["classification", "multilabel", "regression"]


@dataclass(frozen=True, slots=True)
class Listing:
    """What a scan found, before any byte of an image was read; all arrays are in the order of `paths`, sorted.

    `root`: the folder that `paths` (``/``-separated, undecodable bytes as surrogates) are relative to. `stats` (n, 4)
    int64: size, mtime_ns, ctime_ns, inode. `labels` (n,) int32: index into `classes`, -1 for none. `targets`: None, or
    (n, n_classes) float32 0/1 for ``multilabel``, (n, n_targets) float32 for ``regression``. `given_splits` (n,) uint8:
    index into `SPLITS` or 255. `ignored`: files without an image extension. `failures`: what could not even be listed,
    as (path, reason). `scanned_ns`: the clock before the first file was looked at. `notes`: one line each, how the data
    set was read where that is not plain; they are said, not stored. `input`: the kind of what is listed, as in Recipes.
    """

    root: str
    task: Task
    classes: tuple[str, ...]
    paths: list[str]
    stats: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int32]
    targets: npt.NDArray[np.float32] | None
    given_splits: npt.NDArray[np.uint8]
    ignored: int
    failures: tuple[tuple[str, str], ...]
    scanned_ns: int
    notes: tuple[str, ...] = ()
    input: str = "image"

    def __len__(self) -> int:
        return len(self.paths)

    def absolute(self, index: int) -> str:
        """Return the path to open for sample `index`."""
        path = self.paths[index]
        return path if "://" in path else os.path.join(self.root, path)  # a list may name other places too

    def absolute_paths(self, indices: npt.NDArray[np.int64]) -> Sequence[str]:
        """Return the paths to open for the samples at `indices`, each made when it is asked for."""
        return _AbsolutePaths(self, indices)


class _AbsolutePaths(Sequence[str]):
    """Paths joined on demand: a million of them at once would be 150 MB."""

    def __init__(self, listing: Listing, indices: npt.NDArray[np.int64]) -> None:
        self._listing, self._indices = listing, indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        """Return one path, or those of a slice, as lazily."""
        if isinstance(index, slice):
            return _AbsolutePaths(self._listing, self._indices[index])
        return self._listing.absolute(int(self._indices[index]))


def counted(count: int, what: str) -> str:
    """Return ``1 image``, ``2 images``."""
    return f"{count} {what}{'s' * (count != 1)}"


def printable(path: str) -> str:
    """Return `path` fit for a terminal and for JSON: bytes that are not UTF-8 as ``\\xNN``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
