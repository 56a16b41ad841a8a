"""What a training is told: how long, at which rate, what each part of the loss weighs; for `distill`, the student."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from featcache.errors import InputError

Targets = Literal["features", "logits", "both"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """How a network is trained on cached targets, whichever it is.

    `temperature` softens teacher and network alike; `alpha`: share of the soft labels beside hard ones, in [0, 1];
    `feature_weight`: of the regression beside both. `epochs`, `batch_size`, `learning_rate` (peak), `weight_decay`: of
    AdamW (Loshchilov and Hutter 2019). `warmup_steps`: with a rising rate; `cooldown`: share of all steps with a
    falling one.
    `average`: decay of the averaged weights that are evaluated and saved, 0 for none. `jitter`: strength of contrast,
    brightness and sharpness changes on the network's side, 0 for none. `precision`: ``auto``, ``fp32`` or ``bf16``.
    """

    temperature: float = 2.0
    alpha: float = 0.5
    feature_weight: float = 1.0
    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    warmup_steps: int = 200
    cooldown: float = 0.3
    average: float = 0.999
    jitter: float = 0.0
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.precision not in ("auto", "fp32", "bf16"):
            raise InputError(f"precision must be 'auto', 'fp32' or 'bf16', got {self.precision!r}")
        for name, least in (("epochs", 1), ("batch_size", 2)):  # batch norm needs two
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)!r}")
        for name in ("alpha", "cooldown"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must be in [0, 1], got {getattr(self, name)!r}")
        if self.warmup_steps < 0:
            raise InputError(f"warmup_steps must be at least 0, got {self.warmup_steps!r}")
        if not 0 <= self.average < 1:
            raise InputError(f"average must be at least 0 and below 1, got {self.average!r}")
        for name in ("temperature", "learning_rate"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InputError(f"{name} must be a finite number above 0, got {getattr(self, name)!r}")
        for name in ("feature_weight", "weight_decay", "jitter"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise InputError(f"{name} must be a finite number of at least 0, got {getattr(self, name)!r}")

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)

    def cooldown_start(self, steps: int) -> int:
        """Return the first of `steps` steps at which the learning rate falls."""
        return steps - max(1, round(self.cooldown * steps))

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of `step` of `steps`: rising, constant, then falling as 1 - √(share of the fall).

        Until it falls nothing depends on the number of steps, so a run may be made longer from there (Hägele et al.
        2024, "Scaling laws and compute-optimal training beyond fixed training durations").
        """
        start = self.cooldown_start(steps)
        rate = self.learning_rate * min(1.0, (step + 1) / (self.warmup_steps + 1))
        if step < start:
            return rate
        return rate * (1 - math.sqrt((step - start + 1) / (steps - start + 1)))


@dataclass(frozen=True, slots=True)
class DistillSettings(TrainingSettings):
    """How a student learns; every field enters the run's identity but `epochs`, which may grow on resuming.

    `student`, `model_kwargs`: for ``timm.create_model``. `input_size`: side of the student's square input in pixels.
    `targets`: ``features`` (regression through a projection), ``logits`` (soft labels) or ``both``.
    """

    student: str
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    input_size: int = 96
    targets: Targets = "both"

    def __post_init__(self) -> None:
        if self.targets not in ("features", "logits", "both"):
            raise InputError(f"targets must be 'features', 'logits' or 'both', got {self.targets!r}")
        if self.input_size < 1:
            raise InputError(f"input_size must be at least 1, got {self.input_size!r}")
        TrainingSettings.__post_init__(self)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**dataclasses.asdict(self), "model_kwargs": dict(self.model_kwargs)}
