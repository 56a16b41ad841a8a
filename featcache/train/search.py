"""Choose a penalty: a coarse walk from the strongest value, then ever finer looks around the best one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from featcache.heads.base import Floats
from featcache.heads.solvers import Components, Prepared, Solution, solve
from featcache.train.data import Rows
from featcache.train.options import PenaltyName
from featcache.train.score import Score, score_rows

STRIDE = 4  # of the grid's values is one looked at in the walk
PATIENCE = 2  # worse looks in a row end the walk
TOLERANCE = 1e-3  # relative gap along the way: far below what held-out rows can tell; what is chosen is solved on
WALK_TOLERANCE = 1e-2  # of the walk where fits take long; around its best value `TOLERANCE` again
LONG_FITS = 1 << 28  # n_rows * n_features * n_outputs
ENOUGH = 0.9  # of the variance: where the leading components hold as much, looks are taken on them alone

ScoreAt = Callable[[float, float], Score]  # of a penalty solved to a relative gap


class Trial:
    """One problem, solved at any penalty it is asked for, and the held-out rows it is scored on.

    `is_long`: whether a fit takes seconds, so that looks are taken loosely and the last fit begins at the last look.

    Each fit starts from the solution of the nearest stronger penalty; the columns that are zero there and keep their
    optimality condition stay out of the fit until they break it (screening with a check).

    Where fits are long and L2 is free, looks are taken on the leading principal components of the features, if these
    hold `ENOUGH` of the variance: held-out scores are nearly those of all features, at a fifth of the products. Such a
    solution is a head on all features, whose gap is to the best head within the components.
    """

    def __init__(
        self,
        prepared: Prepared,
        *,
        free: PenaltyName,
        fixed: Mapping[str, float],
        held_out: Rows | None,
        task: str,
    ) -> None:
        self._free, self._fixed = free, dict(fixed)
        self._held_out, self._task = held_out, task
        self._solutions: dict[float, Solution] = {}
        self.is_long = prepared.rows.n_rows * prepared.n_features * prepared.n_outputs >= LONG_FITS
        self._components: Components | None = None
        if self.is_long and free == "l2" and not any(fixed.values()) and prepared.rows.in_memory:
            components = prepared.derive(Components)
            self._components = components if components.share >= ENOUGH else None
        self._prepared = prepared if self._components is None else self._components.problem()

    def solution(self, value: float, tolerance: float | None = None) -> Solution:
        """Return the solution at penalty `value`: to a relative gap of `tolerance`, or as it was found last."""
        known = self._solutions.get(value)
        if known is None or (tolerance is not None and known.gap > tolerance):
            stronger = [other for other in self._solutions if other >= value]
            penalties: dict[str, Any] = {**self._fixed, self._free: value}
            self._solutions[value] = solve(
                self._prepared.problem,
                **penalties,
                start=self._solutions[min(stronger)] if stronger else None,
                tolerance=TOLERANCE if tolerance is None else tolerance,
                prepared=self._prepared,
                exact_objective=False,
            )
        found = self._solutions[value]
        return found if self._components is None else self._components.lift(found)

    @property
    def components(self) -> int | None:
        """Return how many components looks are taken on; None where on all features."""
        return None if self._components is None else self._prepared.n_features

    def score(self, value: float, tolerance: float) -> Score:
        """Return how the head of penalty `value` does on the held-out rows."""
        solution, rows = self.solution(value, tolerance), self._held_out
        assert rows is not None
        weight, bias = solution.raw_weight().T, solution.raw_bias()
        return score_rows(partial(_logits, weight, bias), rows.features, rows.targets, task=self._task)


def _logits(weight: Floats, bias: Floats, block: Floats) -> Floats:
    return block @ weight + bias


def mean_score(trials: Sequence[Trial], value: float, tolerance: float) -> Score:
    """Return the mean score of penalty `value` over the folds; the standard error is that of this mean."""
    scores = [trial.score(value, tolerance) for trial in trials]
    values = np.array([score.value for score in scores])
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    loss = float(np.mean([score.loss for score in scores]))
    return Score(float(values.mean()), error, None, loss, sum(score.n for score in scores))


def search(
    values: Sequence[float],
    score: ScoreAt,
    *,
    one_standard_error: bool,
    walk_tolerance: float = TOLERANCE,
) -> tuple[dict[float, Score], float]:
    """Return the scores of the values looked at, strongest first, and the chosen value.

    `score` gives that of a value when it is solved to a relative gap: `walk_tolerance` along the walk, `TOLERANCE`
    around its best.

    `values`: the grid, strongest first; every fourth is looked at. Weak penalties cost most and, past the best one,
    only get worse, so the walk ends after two looks in a row that are a standard error below the best, or no better in
    score and worse in loss. Then the values half way to the best one's neighbours are tried, until these are the grid's
    own. `one_standard_error`: the strongest value within one standard error of the best is chosen.
    """
    grid = [float(value) for value in values]
    scores: dict[float, Score] = {}
    worse = 0
    for value in grid[::STRIDE]:
        here = score(value, walk_tolerance)
        if scores:
            best = scores[choose(scores, one_standard_error=False)]
            least = min(other.loss for other in scores.values())
            no_better = here.value <= best.value and here.loss >= least
            worse = worse + 1 if no_better or here.value < best.value - best.standard_error else 0
        scores[value] = here
        if worse >= PATIENCE:
            break
    closely = set(scores) if walk_tolerance <= TOLERANCE else set()

    def look(value: float) -> None:
        if value not in closely:
            scores[value] = score(value, TOLERANCE)
            closely.add(value)

    _refine(grid, scores, look, one_standard_error=False)
    if one_standard_error:
        _refine(grid, scores, look, one_standard_error=True)
    chosen = choose(scores, one_standard_error=one_standard_error)
    return {value: scores[value] for value in sorted(scores, reverse=True)}, chosen


def most_looks(n_values: int) -> int:
    """Return how many values of a grid `search` looks at, at most, without the rule of one standard error."""
    return -(-n_values // STRIDE) + 2 * (STRIDE // 2) + 1


@contextmanager
def looks_shown(score: ScoreAt, *, at_most: int, penalty: str) -> Iterator[ScoreAt]:
    """Give `score`, its calls counted by a bar on a terminal once they have taken a second."""
    if not sys.stderr.isatty():
        yield score
        return
    from tqdm import tqdm  # here, as it is loaded where there is someone to see it

    with tqdm(total=at_most, desc=f"train: {penalty}", unit="fit", delay=1.0, leave=False) as bar:

        def counted(value: float, tolerance: float) -> Score:
            bar.set_postfix_str(f"{value:.3g}", refresh=False)
            result = score(value, tolerance)
            bar.update()
            return result

        yield counted


def choose(scores: Mapping[float, Score], *, one_standard_error: bool) -> float:
    """Return the penalty with the best score; among equals that of the least loss, then the strongest.

    With `one_standard_error` it is the strongest penalty whose score is within one standard error of the best (Breiman
    et al., CART, 1984).
    """
    best = max(scores, key=lambda value: (scores[value].value, -scores[value].loss, value))
    if not one_standard_error:
        return best
    least = scores[best].value - scores[best].standard_error
    return max(value for value, score in scores.items() if score.value >= least)


def _refine(
    grid: Sequence[float], scores: Mapping[float, Score], look: Callable[[float], None], *, one_standard_error: bool
) -> None:
    """Look at values of `grid` around the chosen one, at half the distance each time, down to its own neighbours."""
    step = STRIDE // 2
    while step:
        at = grid.index(choose(scores, one_standard_error=one_standard_error))
        look(grid[at])
        for position in (at - step, at + step):
            if 0 <= position < len(grid) and grid[position] not in scores:
                look(grid[position])
        step //= 2
