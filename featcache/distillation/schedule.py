"""Which images and views each step sees: a function of (seed, step), so that a resumed run sees the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featcache.distillation.settings import TrainingSettings


@dataclass(frozen=True, slots=True)
class Step:
    """The images (b,) of one step, as positions, and the view of each."""

    positions: npt.NDArray[np.int64]
    views: npt.NDArray[np.int64]


class Schedule:
    """Which images and views each step sees: every image once an epoch, its views in turn from a drawn first one."""

    def __init__(self, n: int, *, views: int, settings: TrainingSettings, steps: int | None = None) -> None:
        self.n, self.views, self.settings = n, views, settings
        self.batch = min(settings.batch_size, n)
        self.steps_per_epoch = n // self.batch
        self._steps = steps
        self._first = np.random.default_rng([settings.seed, 0]).integers(0, views, size=n)
        self._epoch = -1
        self._order: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    @property
    def steps(self) -> int:
        """Steps of the whole run: those asked for, else the settings' epochs."""
        return self.settings.epochs * self.steps_per_epoch if self._steps is None else self._steps

    def step(self, number: int) -> Step:
        """Return what step `number` sees."""
        epoch, inside = divmod(number, self.steps_per_epoch)
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.settings.seed, 1, epoch]).permutation(self.n)
            self._epoch = epoch
        positions = self._order[inside * self.batch : (inside + 1) * self.batch]
        return Step(positions, (self._first[positions] + epoch) % self.views)
