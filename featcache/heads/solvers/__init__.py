"""Exact solvers for linear heads: one problem, any penalty, whole paths, a certificate with every answer."""

from featcache.heads.solvers.components import Components
from featcache.heads.solvers.paths import penalty_grid, solve, solve_path
from featcache.heads.solvers.prepared import Prepared, prepare
from featcache.heads.solvers.problem import BlockSource, Distillation, Problem, Solution

__all__ = [
    "BlockSource",
    "Components",
    "Distillation",
    "Prepared",
    "Problem",
    "Solution",
    "penalty_grid",
    "prepare",
    "solve",
    "solve_path",
]
