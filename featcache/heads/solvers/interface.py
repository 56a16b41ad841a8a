"""The `Solver` interface: from a starting point to the penalised minimum of one prepared problem."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featcache.heads.solvers.penalty import Penalty
from featcache.heads.solvers.rows import Float32
from featcache.heads.solvers.state import State


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """Where a fit begins: `weight` ``(k, d)`` and `bias` ``(k,)``, float32.

    `screen` ``(d,)`` marks the columns that the strong rule keeps, for the solvers that leave columns out; None where
    no solution of a near penalty is at hand.
    """

    weight: Float32
    bias: Float32
    screen: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """Where a solver ended: the state, its gap relative to the objective, and whether that is within the tolerance."""

    state: State
    gap: float
    converged: bool


class Solver(ABC):
    """One way to the minimum. It is made from one `Prepared` problem, and keeps what helps the next fit of it.

    Which solver suits which problem is not its business: `featcache.heads.solvers.choice` says so for all.
    """

    @abstractmethod
    def minimise(self, start: Start, *, penalty: Penalty, tolerance: float, max_passes: float) -> Fit:
        """Return the fit at a relative gap of `tolerance`, or where about `max_passes` sweeps over the rows ended it.

        The gap is true in either case: it was evaluated at the state returned, on all columns.
        """
