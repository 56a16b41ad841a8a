"""Early stopping: how far a learner's averaged weights are from the teacher's answers on held-out images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from featcache.distillation.replay import PixelSource
from featcache.distillation.schedule import Step
from featcache.distillation.targets import TargetSource
from featcache.distillation.trainer import Trainer

_BATCH = 64
_BEST = "best."


class Validation:
    """The loss on `n` held-out images each `every` steps, and the weights that had the smallest.

    `pixels`, `targets`: of the held-out images' plain views. `patience`: so many checks in a row that are no better
    than the best one end the training.
    """

    def __init__(self, n: int, pixels: PixelSource, targets: TargetSource, *, every: int, patience: int) -> None:
        self.n, self.every, self.patience = n, every, patience
        self._pixels, self._targets = pixels, targets
        self.history: list[tuple[int, float]] = []
        self.best: dict[str, Tensor] = {}

    @property
    def start(self) -> float:
        """Loss of the weights that training began with."""
        return self.history[0][1]

    @property
    def best_step(self) -> int:
        """The step with the smallest loss: 0 where training made nothing better."""
        return min(self.history, key=lambda entry: entry[1])[0]

    @property
    def least(self) -> float:
        """The smallest loss."""
        return min(loss for _, loss in self.history)

    @property
    def stops(self) -> bool:
        """Whether the loss has not fallen for `patience` checks, the first one after the start not counted.

        Steps at a full learning rate lead away from a solved start before they lead below it: where training began is
        what the result has to beat, not what each check has to.
        """
        trained = [loss for _, loss in self.history[1:]]
        return bool(trained) and len(trained) - 1 - trained.index(min(trained)) >= self.patience

    def check(self, trainer: Trainer) -> None:
        """Measure the averaged weights of `trainer`, and remember them where they are the best so far."""
        total = 0.0
        with trainer.averaged_weights():
            for first in range(0, self.n, _BATCH):
                positions = np.arange(first, min(self.n, first + _BATCH))
                step = Step(positions, np.zeros_like(positions))
                pixels = self._pixels.batch(step.positions, step.views)
                total += len(positions) * trainer.answer_loss(step, pixels, self._targets)
        self.history.append((trainer.number, total / self.n))
        if self.best_step == trainer.number:
            self.best = {name: tensor.detach().clone() for name, tensor in trainer.averaged.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return the best weights as part of a checkpoint."""
        return {f"{_BEST}{name}": tensor for name, tensor in self.best.items()}

    def restore(self, state: Mapping[str, Tensor], history: Any) -> None:
        """Take over what a checkpoint holds: the weights of `tensors`, and `history`."""
        self.history = [(int(step), float(loss)) for step, loss in history]
        self.best = {name.removeprefix(_BEST): value.clone() for name, value in state.items() if name.startswith(_BEST)}
