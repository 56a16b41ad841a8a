"""What a kind of head hands back from its fit, before scores and artefacts are added."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from featcache.heads.base import Head
from featcache.train.result import PathPoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """How good a linear solution is: see `featcache.heads.solvers.problem.Solution`."""

    l1: float
    l2: float
    group_l1: float
    objective: float
    gap: float
    gap_kind: str
    passes: float
    nonzero_fraction: float
    features_used: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadFit:
    """`chosen`: the options of the kind that a value was chosen for. `selection`: by what.

    `details`: figures of the kind. `notes`: one line each, what the user should know about the fit.
    """

    head: Head
    chosen: dict[str, Any] = field(default_factory=dict)
    selection: str | None = None
    certificate: Certificate | None = None
    path: tuple[PathPoint, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
