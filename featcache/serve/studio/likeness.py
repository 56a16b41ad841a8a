"""How like images are in their features: one to all others; groups that are equal, or nearly so."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_BLOCK = 1024
_MOST_GROUPS = 1000
_MOST_COMPARED = 20_000  # pairwise; of more images only equal ones are found


class Likeness:
    """The cosines of `features` (n, d) float32, whose norms are computed once."""

    def __init__(self, features: npt.NDArray[np.float32]) -> None:
        self._features = features
        self._norms = np.sqrt(np.einsum("ij,ij->i", features, features))

    def of(self, sample: int) -> npt.NDArray[np.float32]:
        """Return the cosine (n,) of every image's features with those of `sample`."""
        products = self._features @ self._features[sample]
        return np.asarray(products / np.maximum(self._norms * self._norms[sample], np.float32(1e-12)))


def descending(values: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Return the positions of `values` (n,), the largest first, equal ones in their order; no NaN may be among them.

    >>> descending(np.array([0.5, -1.0, 0.75, 0.5], dtype=np.float32)).tolist()
    [2, 0, 3, 1]
    """
    bits = (values + np.float32(0)).view(np.int32).astype(np.int64)  # the sum makes -0.0 zero
    rank = bits ^ ((bits >> 63) & 0x7FFFFFFF)  # grows as the floats do
    keys = (-rank << 32) | np.arange(len(values))
    keys.sort()  # several times faster than a stable argsort of floats
    return keys & 0xFFFFFFFF


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
