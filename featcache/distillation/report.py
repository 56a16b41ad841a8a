"""What a distillation did, for people and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class DistillReport:
    """What a distillation did.

    `parameters`, `bytes`: of the student's file, without what was dropped. `losses`: running means at the end;
    ``features`` is the share of the teacher's variance not explained. `val_accuracy`: of the student's classifier on
    the val split's plain views; None without labels or split. `feature_bytes_per_view`, `soft_label_bytes_per_view`:
    what is read of the teachers for one view of one image. `view_bytes`: of the student's rendered pixels.
    `steps_now`, `train_seconds`: of this call, `resumed_from` being the step it began at.
    """

    out: str
    student: str
    parameters: int
    bytes: int
    num_features: int
    images: int
    views: int
    classes: int
    steps: int
    steps_now: int
    resumed_from: int
    losses: Mapping[str, float]
    val_accuracy: float | None
    n_val: int
    feature_bytes_per_view: int
    soft_label_bytes_per_view: int
    view_bytes: int
    precision: str
    device: str
    train_seconds: float
    images_per_second: float | None
    wall_seconds: float
    failures: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        failures = [{"path": path, "reason": reason} for path, reason in self.failures]
        return {**dataclasses.asdict(self), "failures": failures, "failed": len(self.failures)}
