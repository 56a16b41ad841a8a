"""A run's directory: what it is a run of, and the checkpoints from which the same call goes on.

OUT.work/views.u8, views.json       the student's pixels, rendered once (`featcache.distillation.replay`)
OUT.work/progress.json, state-…     the last checkpoint (`featcache.distillation.state`)
OUT.work/constant/                  the checkpoint from before the learning rate fell: a longer run goes on from it
OUT.work/student.safetensors        the student so far, as `load_backbone` reads it
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from featcache.backbone.checkpoint import read_checkpoint
from featcache.distillation.join import Joined
from featcache.distillation.lesson import Lesson
from featcache.distillation.loop import train
from featcache.distillation.replay import PixelSource
from featcache.distillation.schedule import Schedule
from featcache.distillation.settings import DistillSettings
from featcache.distillation.state import load_tensors, read_notes, save_state
from featcache.distillation.student import write_student
from featcache.distillation.targets import CachedTargets
from featcache.distillation.trainer import Trainer
from featcache.errors import InputError
from featcache.images.view_spec import ViewSpec
from featcache.system.interrupts import deferred_interrupts

_FORGETTING = 0.98  # of the running means of the losses


class WorkDirectory:
    """A run's directory: what it is a run of, its checkpoints, and the running means of its losses.

    `classes`: of the classifier that goes into the student's file; empty for none.
    """

    def __init__(
        self,
        work: Path,
        settings: DistillSettings,
        joined: Joined,
        spec: ViewSpec,
        lesson: Lesson,
        *,
        classes: Sequence[str],
    ) -> None:
        self.work, self.settings, self.spec, self.classes = work, settings, spec, classes
        self.losses: dict[str, float] = {}
        fixed = settings.to_json()
        self._epochs = fixed.pop("epochs")
        self._identity = {
            **fixed,
            "images": joined.train.identity,
            "teachers": list(lesson.fingerprints),
            "teacher_head": lesson.head_digest,
            "views": list(spec.views),
        }

    def resume(self, trainer: Trainer, schedule: Schedule, *, start: Path | None, say: Callable[[str], None]) -> None:
        """Take over this directory's checkpoint, or the weights of the run in `start`.

        Raises `InputError` where the checkpoint is of a run with other settings, or past the step from which this one
        could go on; `CorruptError` where it was changed.
        """
        notes = read_notes(self.work)
        if notes is None:
            if start is not None:
                trainer.start_from(_weights_to_begin_with(start))
            return
        self._refuse_other(notes)
        folder = self.work
        if notes["epochs"] != self._epochs:
            cooldown = self.settings.cooldown_start(schedule.steps)
            limit = min(cooldown, self.settings.cooldown_start(notes["epochs"] * schedule.steps_per_epoch))
            if notes["step"] > limit:
                folder = self.work / "constant"
                notes = read_notes(folder)
                if notes is None or notes["step"] > cooldown:
                    raise InputError(
                        f"a run can be made longer, or shorter while its learning rate is constant; the one in "
                        f"{str(self.work)!r} is past that for epochs={self._epochs}: delete it to start again"
                    )
        trainer.restore(load_tensors(folder, notes), int(notes["step"]))
        self.losses.update(notes["losses"])
        say(f"going on from step {trainer.number} of {schedule.steps}")

    def _refuse_other(self, notes: Mapping[str, Any]) -> None:
        stored = notes.get("identity", {})
        differing = [
            f"{name}: {stored.get(name)!r} there, {value!r} here"
            for name, value in self._identity.items()
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
        source: CachedTargets,
        *,
        every: float,
        say: Callable[[str], None],
    ) -> float:
        """Take the steps that are left, with a checkpoint every so many seconds and on an interrupt."""
        saved_at, saved_step = time.perf_counter(), trainer.number
        cooldown = self.settings.cooldown_start(schedule.steps)
        with (
            deferred_interrupts() as interrupt,
            tqdm(total=schedule.steps, initial=saved_step, desc="distill", unit="step", disable=None) as bar,
        ):

            def after_step(number: int, parts: dict[str, float]) -> bool:
                nonlocal saved_at, saved_step
                for name, value in parts.items():
                    before = self.losses.get(name, value)
                    self.losses[name] = _FORGETTING * before + (1 - _FORGETTING) * value
                bar.update(1)
                if number == cooldown:
                    (self.work / "constant").mkdir(exist_ok=True)
                    self._save(self.work / "constant", trainer)
                now = time.perf_counter()
                stop = interrupt.is_set()
                if now - saved_at >= every or number == schedule.steps or stop:
                    self._save(self.work, trainer)
                    self.write(trainer, self.work / "student.safetensors", {})
                    rate = (number - saved_step) * schedule.batch / (now - saved_at)
                    epoch = number / schedule.steps_per_epoch
                    listed = ", ".join(f"{name} {value:.4f}" for name, value in self.losses.items())
                    say(f"step {number} of {schedule.steps}, epoch {epoch:.2f}: {listed}; {rate:.0f} images/s")
                    saved_at, saved_step = time.perf_counter(), number
                return not stop

            return train(trainer, schedule, pixels, source, after_step=after_step)

    def _save(self, folder: Path, trainer: Trainer) -> None:
        finite = {name: value for name, value in self.losses.items() if math.isfinite(value)}  # others are no JSON
        notes = {"epochs": self._epochs, "identity": self._identity, "losses": finite}
        save_state(folder, trainer.number, trainer.tensors(), notes)

    def write(self, trainer: Trainer, place: Path, notes: Mapping[str, Any]) -> int:
        """Write the averaged student to the file `place`; return its bytes."""
        metadata = {"featcache_distill": {"steps": trainer.number, **self._identity, **notes}}
        with trainer.averaged_weights() as student:
            return write_student(
                place,
                student,
                settings=self.settings,
                preprocessing=self.spec.preprocessing,
                classes=self.classes,
                notes=metadata,
            )


def _weights_to_begin_with(start: Path) -> Mapping[str, torch.Tensor]:
    """Return the averaged weights, by the names of `Trainer.tensors`, of a student's file or of a run's work directory.

    A file lacks what was dropped at the end, the projections and classifiers: those begin at random.
    """
    if start.is_file():
        tensors, _ = read_checkpoint(start)
        return {f"averaged.network.{name}": tensor.float() for name, tensor in tensors.items()}
    notes = read_notes(start)
    if notes is None:
        raise InputError(f"start must be a student's file or the work directory of another run, {str(start)!r} is none")
    return load_tensors(start, notes)
