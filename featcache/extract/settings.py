"""How an extraction goes about its work; the rows are the same whatever is chosen here."""

from __future__ import annotations

from dataclasses import dataclass

from featcache.errors import InputError


@dataclass(frozen=True, slots=True)
class ExtractSettings:
    """When rows are committed, and how many are computed in one go.

    `commit_rows`, `commit_seconds`: rows are committed once there are so many, or once so much time has passed since
    the last commit, whichever comes first: what a kill can cost. `burst`: images a worker computes one after another,
    at least.
    """

    commit_rows: int = 4096
    commit_seconds: float = 5.0
    burst: int = 32

    def __post_init__(self) -> None:
        if self.commit_rows < 1 or self.burst < 1 or self.commit_seconds < 0:
            raise InputError(f"commit_rows and burst must be at least 1 and commit_seconds at least 0, got {self!r}")
