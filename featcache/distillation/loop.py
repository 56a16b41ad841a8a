"""The loop over the steps that are left."""

from __future__ import annotations

import time
from collections.abc import Callable

from featcache.distillation.replay import PixelSource
from featcache.distillation.schedule import Schedule
from featcache.distillation.targets import TargetSource
from featcache.distillation.trainer import Trainer


def train(
    trainer: Trainer,
    schedule: Schedule,
    pixels: PixelSource,
    targets: TargetSource,
    *,
    after_step: Callable[[int, dict[str, float]], bool],
) -> float:
    """Take the steps that are left; return the seconds they took.

    `after_step`: called with the number of steps taken and the parts of the loss; false ends the training there.
    """
    started = time.perf_counter()
    while trainer.number < schedule.steps:
        batch = schedule.step(trainer.number)
        parts = trainer.step(schedule.steps, batch, pixels.batch(batch.positions, batch.views), targets)
        if not after_step(trainer.number, parts):
            break
    return time.perf_counter() - started
