"""`LabelledRows`: the standardised features of labelled images, kept from one head to the next.

To standardise takes longer than to train from the last head, and a label changes one row, or only its class. So rows go
on being standardised by the images that were labelled when that was last computed, until one in `_RENEWED` is another;
their spectrum, which only shapes the solver's steps, serves until there are twice as many.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from featcache.heads.solvers import Prepared, Problem, prepare

_RENEWED = 64
_SPARE = 32  # of so many rows, room for one more


class LabelledRows:
    """The rows that a head was trained on last. Not thread-safe; a `Prepared` of it serves until the next."""

    def __init__(self) -> None:
        self._features: npt.NDArray[np.float32] | None = None
        self._base: Prepared | None = None
        self._matrix = np.zeros((0, 0), dtype=np.float32)
        self._images = np.zeros(0, dtype=np.int64)  # of which image each row of the matrix is
        self._row_of: dict[int, int] = {}
        self._asked = np.zeros(0, dtype=np.int64)
        self._changed = 0
        self._decomposed = 0  # how many there were when the spectrum was last computed

    def prepare(
        self, features: npt.NDArray[np.float32], images: npt.NDArray[np.int64], labels: npt.NDArray[np.int32],
        classes: npt.NDArray[np.int32],
    ) -> Prepared:  # fmt: skip
        """Return what a head of `images`, their `features` (n, d) and `labels` (n,) among `classes` is solved from."""
        added, gone = self._difference(images)
        self._changed += len(added) + len(gone)
        new = sorted(added)
        most = len(images) // _RENEWED
        if self._base is None or self._features is not features or self._changed > most or not _finite(features[new]):
            self._begin(features, images)
        else:
            self._take_away(gone)
            self._add(new, self._base)
        count = len(images)
        assert self._base is not None
        targets = np.searchsorted(classes, labels[self._images[:count]]).astype(np.int64)
        problem = Problem(features=self._matrix[:count], targets=targets, n_classes=len(classes))
        self._base = self._base.continued(problem, self._matrix[:count])
        return self._base

    def _difference(self, images: npt.NDArray[np.int64]) -> tuple[set[int], set[int]]:
        """Return the images that are new, and those that are gone, since the last call."""
        before, self._asked = self._asked, images
        if np.array_equal(before, images):  # another class was given, as mostly
            return set(), set()
        wanted = set(images.tolist())
        return wanted - self._row_of.keys(), self._row_of.keys() - wanted

    def _begin(self, features: npt.NDArray[np.float32], images: npt.NDArray[np.int64]) -> None:
        alike = self._base is not None and self._features is features and len(images) < 2 * self._decomposed
        spectrum = self._base.known_spectrum if alike and self._base is not None else None
        self._base, self._matrix = None, np.zeros((0, 0), dtype=np.float32)  # freed first
        base = prepare(Problem(features=features[images], targets=np.arange(len(images)) % 2, n_classes=2))
        base.known_spectrum = spectrum
        if spectrum is None:
            self._decomposed = len(images)
        self._features, self._base, self._matrix = features, base, base.rows.matrix
        self._images, self._changed = images.copy(), 0
        self._row_of = {image: row for row, image in enumerate(images.tolist())}

    def _take_away(self, gone: set[int]) -> None:
        for image in gone:
            row, last = self._row_of.pop(image), len(self._row_of)
            if row != last:
                self._matrix[row] = self._matrix[last]
                self._images[row] = self._images[last]
                self._row_of[int(self._images[row])] = row

    def _add(self, added: list[int], base: Prepared) -> None:
        assert self._features is not None
        count = len(self._row_of)
        if count + len(added) > len(self._matrix):
            room = count + len(added) + count // _SPARE
            matrix = np.empty((room, self._matrix.shape[1]), dtype=np.float32)
            matrix[:count] = self._matrix[:count]
            self._matrix = matrix
            self._images = np.concatenate([self._images[:count], np.zeros(room - count, dtype=np.int64)])
        self._matrix[count : count + len(added)] = base.rows.standardise(self._features[added])
        self._images[count : count + len(added)] = added
        self._row_of |= {image: count + place for place, image in enumerate(added)}


def _finite(features: npt.NDArray[np.float32]) -> bool:
    """Return whether all are numbers: of those that are not, beginning anew says which."""
    return bool(np.isfinite(features).all())
