"""Which solver fits which problem: the one table that says so. No solver knows another's limits, nor its own.

`CHOICES` is read from the top. Every solver that suits is tried, each from where the one before ended, until one has
converged: the first are quick where they suit, the last of a kind of penalty always ends at the minimum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from featcache.heads.solvers.active_set import ActiveSet
from featcache.heads.solvers.interface import Solver
from featcache.heads.solvers.newton import Newton
from featcache.heads.solvers.penalty import Penalty
from featcache.heads.solvers.prepared import Prepared
from featcache.heads.solvers.proximal import Proximal
from featcache.heads.solvers.quasi_newton import QuasiNewton
from featcache.heads.solvers.spectral import Spectral
from featcache.heads.solvers.two_classes import TwoClasses
from featcache.heads.solvers.two_level import LOOSE, TwoLevel

MOST_NUMBERS = 1 << 27  # n_rows * n_features above which the rows are not kept once more, column by column
MOST_LOGITS = 1 << 26  # n_rows * n_outputs above which the logits, kept several times, would take over a GiB
LEAST_WORK = 1 << 28  # n_rows * n_features * n_outputs below which finding the components costs more than it saves
TWO_LEVEL_PASSES = 60.0  # several times what two levels need where they suit; a flat spectrum is left to Newton


@dataclass(frozen=True, slots=True)
class Choice:
    """One row of the table: a solver, when it suits, and what it may cost.

    `suits`: of the problem, the penalty and the tolerance. `most_passes`: what it is given at most.
    `needs_passes`: it is left out where those before it have used up all passes; others are still asked to certify.
    """

    solver: Callable[[Prepared], Solver]
    suits: Callable[[Prepared, Penalty, float], bool]
    most_passes: float = inf
    needs_passes: bool = False


def choices(prepared: Prepared, penalty: Penalty, tolerance: float) -> list[Choice]:
    """Return the rows of `CHOICES` that suit, in their order: at least one for any problem."""
    return [choice for choice in CHOICES if choice.suits(prepared, penalty, tolerance)]


def _one_output(prepared: Prepared, penalty: Penalty, tolerance: float) -> bool:
    return penalty.is_sparse and prepared.n_outputs == 1 and _columns_fit(prepared)


def _two_classes(prepared: Prepared, penalty: Penalty, tolerance: float) -> bool:
    plain = prepared.loss.kind == "softmax" and prepared.problem.distillation is None
    return penalty.is_sparse and prepared.n_outputs == 2 and plain and _columns_fit(prepared)


def _sparse(prepared: Prepared, penalty: Penalty, tolerance: float) -> bool:
    return penalty.is_sparse


def _large_and_loose(prepared: Prepared, penalty: Penalty, tolerance: float) -> bool:
    worthwhile = _large(prepared, penalty, tolerance) or (prepared.turns and _logits_fit(prepared, penalty, tolerance))
    return worthwhile and tolerance >= LOOSE and prepared.loss.kind != "squared"


def _large(prepared: Prepared, penalty: Penalty, tolerance: float) -> bool:
    n, d, k = prepared.rows.n_rows, prepared.n_features, prepared.n_outputs
    return _logits_fit(prepared, penalty, tolerance) and d >= 256 and n >= 2 * d and n * d * k >= LEAST_WORK


def _logits_fit(prepared: Prepared, penalty: Penalty, tolerance: float) -> bool:
    small = prepared.rows.n_rows * prepared.n_outputs <= MOST_LOGITS
    return not penalty.is_sparse and penalty.l2 > 0 and prepared.rows.in_memory and small


def _the_rest(prepared: Prepared, penalty: Penalty, tolerance: float) -> bool:
    return not penalty.is_sparse and not _logits_fit(prepared, penalty, tolerance)


def _columns_fit(prepared: Prepared) -> bool:
    return prepared.rows.in_memory and prepared.rows.n_rows * prepared.n_features <= MOST_NUMBERS


CHOICES = (
    # L1 and group L1
    Choice(ActiveSet, _one_output),
    Choice(TwoClasses, _two_classes),
    Choice(Proximal, _sparse),
    # L2
    Choice(Spectral, _large_and_loose),
    Choice(TwoLevel, _large, most_passes=TWO_LEVEL_PASSES),
    Choice(Newton, _logits_fit, needs_passes=True),
    # L2 of streamed rows or of very many logits, and no penalty at all
    Choice(QuasiNewton, _the_rest),
)
