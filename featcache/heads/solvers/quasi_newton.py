"""L2-penalised heads by limited-memory BFGS (Nocedal 1980) on float32 products: the solver for streams and small sets.

A pass is two products with all rows, and nothing else counts. What saves passes is a preconditioner: the Gram matrix
with the curvature at even predictions, ``(1 - 1/k)/k`` for softmax, in place of the bound ``(I - 11'/k)/2 (x) Z'Z/n``
of Boehning (1992), which holds everywhere and is far too large where probabilities are spread over many classes. With
few classes, forming and inverting it costs more than the passes it saves.
"""

from __future__ import annotations

import numpy as np

from featcache.heads.solvers.certificate import relative_gap
from featcache.heads.solvers.history import History, kronecker
from featcache.heads.solvers.interface import Fit, Solver, Start
from featcache.heads.solvers.penalty import Penalty
from featcache.heads.solvers.prepared import Prepared
from featcache.heads.solvers.rows import Float32, dot
from featcache.heads.solvers.state import ROUNDING, State


class QuasiNewton(Solver):
    """The descent of one prepared problem: what it keeps from fit to fit is the preconditioner."""

    def __init__(self, prepared: Prepared) -> None:
        """Begin without a preconditioner."""
        self._prepared = prepared
        self._inverse: tuple[float, Float32] | None = None  # l2, (d, d)

    def _preconditioner(self, curvature: float, l2: float) -> Float32:
        """Return ``(curvature * gram + l2)^-1`` ``(d, d)`` float32; the last is kept while its ridge is near."""
        if self._inverse is not None:
            old_l2, inverse = self._inverse
            if 0.3 < l2 / old_l2 < 3.0:
                return inverse
        system = (curvature * self._prepared.gram).astype(np.float32)
        system[np.diag_indices(len(system))] += np.float32(l2)
        inverse = np.linalg.inv(system)
        inverse += inverse.T.copy()
        inverse *= np.float32(0.5)
        self._inverse = (l2, inverse)
        return inverse

    def _history(self, l2: float) -> History:
        """Return an empty history, preconditioned where that is expected to pay."""
        prepared = self._prepared
        curvature = prepared.loss.typical_curvature
        n, d = prepared.rows.n_rows, prepared.n_features
        # Gram matrix and inverse cost d (n + 2 d) against n k of a pass: about thirty passes are what they save
        if l2 > 0 and d * (n + 2 * d) <= 30 * n * prepared.n_outputs:
            return History(1.0, kronecker(self._preconditioner(curvature, l2), curvature))
        return History(scale=1.0 / (8.0 * curvature + l2))

    def minimise(self, start: Start, *, penalty: Penalty, tolerance: float, max_passes: float) -> Fit:
        """Return the minimum of data term + l2/2 |W|^2, reached in at most `max_passes` steps."""
        prepared, ridge = self._prepared, np.float32(penalty.l2)
        state = State.at(prepared, start.weight, start.bias)
        objective = state.objective(penalty)
        certified = failed = False
        history = self._history(penalty.l2)
        for _ in range(int(max_passes)):
            gap = relative_gap(prepared, state, penalty)
            if gap <= tolerance:
                return Fit(state, gap, True)
            total = state.gradient + ridge * state.weight
            if not certified and dot(total, total) <= 1.8 * penalty.l2 * tolerance * abs(objective):
                # float32 logits leave a bias gradient that, where the objective is small, no certificate can bear
                state = State.certified(prepared, state.weight, state.bias, exact=failed)
                failed = True
                objective = state.objective(penalty)
                certified = True
                continue
            certified = False
            bias_total = state.bias_gradient.astype(np.float32)
            direction, bias_direction = history.direction(total, bias_total)
            slope = dot(total, direction) + dot(bias_total, bias_direction)
            step = np.float32(1.0)
            while True:
                trial = State.at(prepared, state.weight - step * direction, state.bias - step * bias_direction)
                value = trial.objective(penalty)
                if value <= objective - 1e-4 * float(step) * slope or step < 1e-5:
                    break
                slope_ahead = dot(trial.gradient + ridge * trial.weight, direction)
                slope_ahead += dot(trial.bias_gradient.astype(np.float32), bias_direction)
                if value <= objective + ROUNDING * abs(objective) and slope_ahead >= -0.8 * slope:
                    break
                step *= np.float32(0.4)
            s, sb = trial.weight - state.weight, trial.bias - state.bias
            y = trial.gradient - state.gradient + ridge * s
            yb = (trial.bias_gradient - state.bias_gradient).astype(np.float32)
            history.add(s, sb, y, yb)
            state, objective = trial, value
        return Fit(state, relative_gap(prepared, state, penalty), False)
