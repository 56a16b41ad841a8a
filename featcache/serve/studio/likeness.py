"""Groups of images that are equal, or nearly so in their features."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_BLOCK = 1024
_MOST_GROUPS = 1000
_MOST_COMPARED = 20_000  # pairwise; of more images only equal ones are found


def duplicates(
    features: npt.NDArray[np.float32], digests: npt.NDArray[np.uint8], *, likeness: float
) -> list[list[int]]:
    """Return groups of images with equal bytes or features of a cosine of at least `likeness`, the largest first.

    Likeness is passed on: one like a second that is like a third makes a group of three.
    """
    parent = np.arange(len(features))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = int(parent[index])
        return index

    def join(one: int, other: int) -> None:
        parent[root(one)] = root(other)

    first: dict[bytes, int] = {}
    for index, digest in enumerate(digests):
        join(index, first.setdefault(digest.tobytes(), index))
    if len(features) <= _MOST_COMPARED:
        norms = np.linalg.norm(features, axis=1, keepdims=True)
        unit = features / np.maximum(norms, np.float32(1e-12))
        for start in range(0, len(unit), _BLOCK):
            close = unit[start : start + _BLOCK] @ unit[start:].T >= likeness
            for row, column in np.argwhere(np.triu(close, 1)):
                join(start + int(row), start + int(column))
    groups: dict[int, list[int]] = {}
    for index in range(len(features)):
        groups.setdefault(root(index), []).append(index)
    return sorted((group for group in groups.values() if len(group) > 1), key=lambda g: (-len(g), g))[:_MOST_GROUPS]
