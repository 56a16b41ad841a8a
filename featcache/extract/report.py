"""What a build did, for people and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did. Times in seconds; `images_per_second` is extracted / extract_seconds, None where nothing was.

    `extracted`: rows computed now. `reused`: images whose row was there already (equal images count here too).
    `failed`: images without a row, each with a recorded reason. `seconds_by_stage`: busy time of decode, network, ….
    `notes`: one line each, how the images were read where that is not plain, and what `train` would refuse.
    """

    cache: str
    dataset: str
    images: int
    ignored: int
    extracted: int
    reused: int
    failed: int
    pruned: int
    rows: int
    num_features: int
    fingerprint: str
    weights: str
    random_weights: bool
    startup_seconds: float
    extract_seconds: float
    wall_seconds: float
    images_per_second: float | None
    seconds_by_stage: Mapping[str, float] = field(default_factory=dict)
    failures: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            **dataclasses.asdict(self),
            "seconds_by_stage": dict(self.seconds_by_stage),
            "failures": [{"path": path, "reason": reason} for path, reason in self.failures],
            "notes": list(self.notes),
        }
