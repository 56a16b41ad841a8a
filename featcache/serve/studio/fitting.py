"""`Fitted`: a linear head trained on the labels of a moment, from the head of the moment before; what it answers.

Only images of the train split are trained on. What it is worth is said by the labelled images of val, which it never
saw; test waits for what is shipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featcache.heads.base import softmax
from featcache.heads.solvers import Prepared, Solution, solve
from featcache.serve.studio.labelled_rows import LabelledRows
from featcache.train.folds import stratified_folds

TOLERANCE = 1e-3  # of the objective, relative: far below what moves a probability that is shown
L2 = 0.01  # of the first heads, until there are labels enough to choose it
_FOLDS = 5
MOST_PASSES = 3000  # beyond them a head is taken as it is
_Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A head and its answers.

    `classes` (k,): numbers of the classes it knows. `probabilities` (n, k) float32 of every image. `labels`: how many
    it was trained on. `correct` of `total` labelled val images are answered rightly.
    """

    classes: npt.NDArray[np.int32]
    solution: Solution
    probabilities: npt.NDArray[np.float32]
    labels: int
    correct: int
    total: int

    @property
    def settled(self) -> bool:
        """Whether the head is within `TOLERANCE` of the best there is."""
        return self.solution.converged

    @property
    def predicted(self) -> npt.NDArray[np.int32]:
        """The number of the likeliest class of each image."""
        return np.asarray(self.classes[self.probabilities.argmax(axis=1)])

    def probability_of(self, labels: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """Return what the head gives to each image's own label: NaN without one, 0 for a class it does not know."""
        columns = np.full(max(int(labels.max(initial=0)), int(self.classes.max())) + 2, -1)
        columns[self.classes] = np.arange(len(self.classes))
        column = columns[labels]
        found = self.probabilities[np.arange(len(labels)), column]
        return np.where(labels < 0, np.float32(np.nan), np.where(column < 0, np.float32(0), found))


def fit(
    features: npt.NDArray[np.float32], labels: npt.NDArray[np.int32], *, train: npt.NDArray[np.bool_],
    val: npt.NDArray[np.bool_], before: Fitted | None = None, l2: float = L2, kept: LabelledRows | None = None,
    passes: int = MOST_PASSES,
) -> Fitted | None:  # fmt: skip
    """Return the head of the labelled images of `train`, or None while they show fewer than two classes.

    Parameters
    ----------
    features
        (n, d), of every image.
    labels
        (n,), -1 for none.
    train, val
        (n,), which images may be trained on, and which it is judged by.
    before
        An earlier head of these features to begin from.
    l2
        The penalty.
    kept
        Of the heads before, where there are further ones to come: what they share is computed once.
    passes
        Over the rows, at most: a head that is not at its end then is not `settled`, and can be gone on from.
    """
    rows = np.flatnonzero(train & (labels >= 0))
    classes = np.unique(labels[rows])
    if len(classes) < 2:
        return None
    prepared = (kept or LabelledRows()).prepare(features, rows, labels, classes)
    start = None if before is None else _moved(before, classes, prepared)
    solution = solve(
        prepared.problem, l2=l2, start=start, prepared=prepared, tolerance=TOLERANCE, max_passes=passes,
        exact_objective=False,
    )  # fmt: skip
    probabilities = softmax(features @ solution.raw_weight().T + solution.raw_bias())
    judged = np.flatnonzero(val & (labels >= 0))
    correct = int((classes[probabilities[judged].argmax(axis=1)] == labels[judged]).sum())
    return Fitted(classes.astype(np.int32), solution, probabilities, len(rows), correct, len(judged))


def _moved(before: Fitted, classes: npt.NDArray[np.int32], prepared: Prepared) -> Solution:
    """Return the solution of `before` with a row for each of `classes`: of a new one, zeros and the least bias."""
    old = before.solution
    known = {int(number): row for row, number in enumerate(before.classes)}
    weight = np.zeros((len(classes), old.weight.shape[1]), dtype=np.float32)
    bias = np.full(len(classes), old.bias.min(), dtype=np.float32)
    for row, number in enumerate(classes.tolist()):
        if number in known:
            weight[row], bias[row] = old.weight[known[number]], old.bias[known[number]]
    rows = prepared.rows
    return Solution(
        weight=weight, bias=bias, mean=rows.mean, std=rows.std, l1=0.0, l2=old.l2, group_l1=0.0, objective=math.inf,
        gap=math.inf, gap_kind="duality", passes=0.0, converged=False,
    )  # fmt: skip


def interval(correct: int, total: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share (1927, "Probable inference").

    >>> [round(end, 3) for end in interval(9, 10)]
    [0.596, 0.982]
    """
    if not total:
        return 0.0, 1.0
    share, z2 = correct / total, _Z * _Z
    middle = share + z2 / (2 * total)
    half = _Z * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    return max((middle - half) / (1 + z2 / total), 0.0), min((middle + half) / (1 + z2 / total), 1.0)


def folds_of(
    rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int32], groups: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the fold of each of `rows`: classes spread evenly, equal images together; -1 where a class has but one.

    `labels`, `groups` (n,) of every image: its class, and a number that equal images share.
    """
    _, first = np.unique(groups[rows], return_index=True)
    counts = np.bincount(labels[rows[first]], minlength=1)
    fold = np.full(len(rows), -1, dtype=np.int64)
    several = counts[labels[rows]] > 1
    if several.any():
        kept = rows[several]
        fold[several] = stratified_folds(
            groups[kept], labels[kept], task="classification", classes=(), folds=_FOLDS, seed=0
        )
    return fold


def out_of_fold(
    features: npt.NDArray[np.float32], labels: npt.NDArray[np.int32], groups: npt.NDArray[np.int64], *,
    train: npt.NDArray[np.bool_], fitted: Fitted,
) -> npt.NDArray[np.float32]:  # fmt: skip
    """Return probabilities (n, k) of `fitted`'s classes by heads that did not see the image in training.

    Labelled train images: by a head of the other four fifths; all others, and the one image of a class: by `fitted`.
    """
    probabilities = fitted.probabilities.copy()
    rows = np.flatnonzero(train & (labels >= 0))
    fold = folds_of(rows, labels, groups)
    for number in range(int(fold.max(initial=-1)) + 1):
        kept = np.zeros(len(labels), dtype=bool)
        kept[rows[fold != number]] = True
        one = fit(features, labels, train=kept, val=np.zeros(len(labels), bool), before=fitted, l2=fitted.solution.l2)
        left = rows[fold == number]
        if one is None:
            continue
        probabilities[left] = 0.0
        columns = np.searchsorted(fitted.classes, one.classes)
        probabilities[np.ix_(left, columns)] = one.probabilities[left]
    return probabilities


def likely_errors(
    probabilities: npt.NDArray[np.float32], labels: npt.NDArray[np.int32], classes: npt.NDArray[np.int32]
) -> npt.NDArray[np.int64]:
    """Return the images whose label is probably wrong, the surest first: confident learning (Northcutt et al. 2021).

    `probabilities` (n, k): of `classes`, by heads that did not see the image. A class's threshold is the mean
    probability of itself among the images labelled with it; an image counts as another class's where it exceeds that
    class's threshold and, of those that it exceeds, most likely is that.
    """
    known = np.flatnonzero(np.isin(labels, classes))
    column = np.searchsorted(classes, labels[known])
    own = probabilities[known, column]
    counts = np.bincount(column, minlength=len(classes))
    means = np.bincount(column, weights=own, minlength=len(classes)) / np.maximum(counts, 1)
    thresholds = np.where(counts > 0, means, np.inf)
    sure = np.where(probabilities[known] >= thresholds, probabilities[known], -1.0)
    confident = sure.argmax(axis=1)
    wrong = np.flatnonzero((sure.max(axis=1) >= 0) & (confident != column))
    margin = own[wrong] - probabilities[known[wrong]].max(axis=1)
    return known[wrong[np.argsort(margin, kind="stable")]]
