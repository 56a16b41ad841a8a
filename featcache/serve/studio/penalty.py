"""`choose_penalty`: which L2 penalty the head of the moment is to have, by the search that `featcache train` makes.

It is looked for beside the work, never within it: who calls is asked before each look, and may hold it up or end it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from featcache.heads.solvers import Prepared, Problem, penalty_grid, prepare
from featcache.serve.studio.fitting import folds_of
from featcache.train.data import Rows
from featcache.train.score import Score
from featcache.train.search import Trial, mean_score, search

ENOUGH_VAL = 50  # labelled val images to choose by; with fewer, folds of train say more
_MOST_ROWS = 20_000  # of each side, spread evenly: more change the choice little, and make every look long


@dataclass(frozen=True, slots=True)
class Choice:
    """The penalty, by which held-out rows it was chosen, ``val`` or ``folds``, and among how many labels."""

    l2: float
    by: str
    labels: int


def is_due(labels: int, last: Choice | None) -> bool:
    """Return whether the labels are a quarter more than when the penalty was chosen last.

    >>> is_due(7, None), is_due(8, None), is_due(124, Choice(0.1, "val", 100)), is_due(125, Choice(0.1, "val", 100))
    (False, True, False, True)
    """
    return labels >= 8 if last is None else labels >= 1.25 * last.labels


def choose_penalty(
    features: npt.NDArray[np.float32], labels: npt.NDArray[np.int32], groups: npt.NDArray[np.int64], *,
    train: npt.NDArray[np.bool_], val: npt.NDArray[np.bool_], before_look: Callable[[], object] = lambda: None,
) -> Choice | None:  # fmt: skip
    """Return the penalty under which a head of the labelled `train` images does best on images it has not seen.

    Those are the labelled ones of `val` where there are `ENOUGH_VAL`, else folds of `train`. None where there are
    fewer than two classes of two images. `groups` (n,): equal for equal images, which stay in one fold. `before_look`
    is called before each head is trained; what it raises ends the search.
    """
    every = np.flatnonzero(train & (labels >= 0))
    rows = _thinned(every)
    fold = folds_of(rows, labels, groups)
    rows, fold = rows[fold >= 0], fold[fold >= 0]
    classes = np.unique(labels[rows])
    if len(classes) < 2:
        return None
    targets = np.searchsorted(classes, labels[rows])
    judged = _thinned(np.flatnonzero(val & np.isin(labels, classes)))

    def trial(kept: npt.NDArray[np.int64], held_out: npt.NDArray[np.int64]) -> Trial:
        right = np.searchsorted(classes, labels[held_out]).astype(np.int64)
        return Trial(
            _prepared(features[rows[kept]], targets[kept], len(classes)), free="l2", fixed={"l1": 0.0, "group_l1": 0.0},
            held_out=Rows(features[held_out], right, held_out), task="classification",
        )  # fmt: skip

    if len(judged) >= ENOUGH_VAL:
        trials, by = [trial(np.arange(len(rows)), judged)], "val"
    else:
        trials = [trial(np.flatnonzero(fold != one), rows[fold == one]) for one in range(int(fold.max()) + 1)]
        by = "folds"
    score = partial(mean_score, trials)

    def look(value: float, tolerance: float) -> Score:
        before_look()
        return score(value, tolerance)

    grid = penalty_grid(_prepared(features[rows], targets, len(classes)), penalty="l2").tolist()
    return Choice(search(grid, look, one_standard_error=False)[1], by, len(every))


def _prepared(features: npt.NDArray[np.float32], targets: npt.NDArray[np.int64], classes: int) -> Prepared:
    return prepare(Problem(features=features, targets=targets.astype(np.int64), n_classes=classes))


def _thinned(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), _MOST_ROWS)).astype(np.int64)]
