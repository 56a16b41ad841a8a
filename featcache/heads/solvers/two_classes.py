"""L1-penalised heads of two classes by their difference, which is a problem of one output.

The softmax of two classes is the sigmoid of the difference of their logits, and of all weights with one difference w
those of least L1, L2 or group norm are -w/2 and w/2.
"""

from __future__ import annotations

import numpy as np

from featcache.heads.solvers.active_set import ActiveSet
from featcache.heads.solvers.certificate import relative_gap
from featcache.heads.solvers.interface import Fit, Solver, Start
from featcache.heads.solvers.penalty import Penalty
from featcache.heads.solvers.prepared import Prepared
from featcache.heads.solvers.problem import Problem
from featcache.heads.solvers.state import State

HALVES = np.array([[-0.5], [0.5]], dtype=np.float32)


class TwoClasses(Solver):
    """The problem of one output behind a softmax of two classes, on the same rows."""

    def __init__(self, prepared: Prepared) -> None:
        """State the difference as a problem of its own."""
        self._prepared = prepared
        self._difference = prepared.with_targets(
            Problem(
                features=prepared.problem.features,
                targets=prepared.loss.targets(0, prepared.rows.n_rows)[:, 1:],
                loss="sigmoid",
                sample_weight=prepared.problem.sample_weight,
            )
        )
        self._solver = ActiveSet(self._difference)

    def minimise(self, start: Start, *, penalty: Penalty, tolerance: float, max_passes: float) -> Fit:
        """Return the penalised minimum over all columns, or where few steps did not suffice."""
        prepared, difference = self._prepared, self._difference
        before = difference.passes
        inner = self._solver.minimise(
            Start(start.weight[1:] - start.weight[:1], start.bias[1:] - start.bias[:1], start.screen),
            penalty=Penalty(l1=penalty.l1 + penalty.group_l1 / np.sqrt(2.0), l2=0.5 * penalty.l2),
            tolerance=0.5 * tolerance,
            max_passes=max_passes,
        ).state
        prepared.passes += difference.passes - before
        state = State.at(prepared, HALVES * inner.weight, HALVES[:, 0] * inner.bias)
        gap = relative_gap(prepared, state, penalty)
        return Fit(state, gap, gap <= tolerance)
