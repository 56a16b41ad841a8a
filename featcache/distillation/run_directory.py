"""A training run's directory: what it is a run of, and the checkpoint from which the same call goes on.

RUN.work/views.u8, views.json       the network's pixels, rendered once (`featcache.distillation.replay`)
RUN.work/progress.json, state-…     the last checkpoint (`featcache.distillation.state`)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from featcache.distillation.loop import train
from featcache.distillation.replay import PixelSource
from featcache.distillation.schedule import Schedule
from featcache.distillation.state import load_tensors, read_notes, save_state
from featcache.distillation.targets import TargetSource
from featcache.distillation.trainer import Trainer
from featcache.distillation.validation import Validation
from featcache.errors import InputError
from featcache.system.interrupts import deferred_interrupts

_FORGETTING = 0.98  # of the running means of the losses


class RunDirectory:
    """A run's directory: what it is a run of, its checkpoints, and the running means of its losses.

    `identity`: JSON of everything the weights depend on; a checkpoint of another one is refused. `epochs`: how long.
    `validation`: for early stopping, or None. `name`: on the progress bar.
    """

    def __init__(
        self,
        work: Path,
        *,
        identity: Mapping[str, Any],
        epochs: float,
        name: str,
        validation: Validation | None = None,
    ) -> None:
        self.work, self.epochs, self.name, self.validation = work, epochs, name, validation
        self.losses: dict[str, float] = {}
        self.identity = dict(identity)

    def resume(self, trainer: Trainer, schedule: Schedule, *, say: Callable[[str], None]) -> bool:
        """Take over this directory's checkpoint; return whether there is one.

        Raises `InputError` where it is of a run with other settings; `CorruptError` where it was changed.
        """
        notes = read_notes(self.work)
        if notes is None:
            return False
        self._refuse_other(notes)
        folder, notes = self.place_to_go_on_from(notes, schedule)
        state = load_tensors(folder, notes)
        trainer.restore(state, int(notes["step"]))
        self.losses.update(notes["losses"])
        if self.validation is not None:
            self.validation.restore(state, notes["validation"])
        say(f"going on from step {trainer.number} of {schedule.steps}")
        return True

    def place_to_go_on_from(self, notes: dict[str, Any], schedule: Schedule) -> tuple[Path, dict[str, Any]]:
        """Return the folder with the checkpoint to take, and its notes; `notes` are those of the last one."""
        return self.work, notes

    def _refuse_other(self, notes: Mapping[str, Any]) -> None:
        stored = notes.get("identity", {})
        differing = [
            f"{name}: {stored.get(name)!r} there, {value!r} here"
            for name, value in self.identity.items()
            if stored.get(name) != value
        ]
        if differing:
            raise InputError(
                f"the unfinished run in {str(self.work)!r} must be gone on with as it was begun, got other settings "
                f"({'; '.join(differing)}): repeat them, or delete that directory to start again"
            )

    def train(
        self,
        trainer: Trainer,
        schedule: Schedule,
        pixels: PixelSource,
        targets: TargetSource,
        *,
        every: float,
        say: Callable[[str], None],
    ) -> float:
        """Take the steps that are left, with a checkpoint every so many seconds and on an interrupt."""
        validation = self.validation
        if validation is not None and not validation.history:
            validation.check(trainer)
        if validation is not None and validation.stops:
            return 0.0
        saved_at, saved_step = time.perf_counter(), trainer.number
        with (
            deferred_interrupts() as interrupt,
            tqdm(total=schedule.steps, initial=saved_step, desc=self.name, unit="step", disable=None) as bar,
        ):

            def after_step(number: int, parts: dict[str, float]) -> bool:
                nonlocal saved_at, saved_step
                for name, value in parts.items():
                    before = self.losses.get(name, value)
                    self.losses[name] = _FORGETTING * before + (1 - _FORGETTING) * value
                bar.update(1)
                done = number == schedule.steps
                if validation is not None and (done or number % validation.every == 0):
                    validation.check(trainer)
                    bar.set_postfix(val=f"{validation.history[-1][1]:.4f}", refresh=False)
                    done = done or validation.stops
                self.after_step(number, trainer, schedule)
                now = time.perf_counter()
                stop = interrupt.is_set()
                if now - saved_at >= every or done or stop:
                    self.save(self.work, trainer)
                    self.after_save(trainer)
                    rate = (number - saved_step) * schedule.batch / (now - saved_at)
                    say(f"step {number} of {schedule.steps}, {self._state(number, schedule)}; {rate:.0f} images/s")
                    saved_at, saved_step = time.perf_counter(), number
                return not (stop or done)

            return train(trainer, schedule, pixels, targets, after_step=after_step)

    def _state(self, number: int, schedule: Schedule) -> str:
        listed = [f"{name} {value:.4f}" for name, value in self.losses.items()]
        if self.validation is not None:
            listed.append(f"val {self.validation.history[-1][1]:.4f} (at first {self.validation.start:.4f})")
        return f"epoch {number / schedule.steps_per_epoch:.2f}: {', '.join(listed)}"

    def after_step(self, number: int, trainer: Trainer, schedule: Schedule) -> None:
        """Do what a kind of run does after step `number`: nothing here."""

    def after_save(self, trainer: Trainer) -> None:
        """Do what a kind of run does after a checkpoint: nothing here."""

    def save(self, folder: Path, trainer: Trainer) -> None:
        """Make a checkpoint in `folder`."""
        finite = {name: value for name, value in self.losses.items() if math.isfinite(value)}  # others are no JSON
        notes: dict[str, Any] = {"epochs": self.epochs, "identity": self.identity, "losses": finite}
        tensors = trainer.tensors()
        if self.validation is not None:
            notes["validation"] = self.validation.history
            tensors |= self.validation.tensors()
        save_state(folder, trainer.number, tensors, notes)
