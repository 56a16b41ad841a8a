"""A distillation's run directory: a run may be made longer, and what is learned so far is there to be used.

OUT.work/constant/                  the checkpoint from before the learning rate fell: a longer run goes on from it
OUT.work/student.safetensors        the student so far, as `load_backbone` reads it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from featcache.backbone.checkpoint import read_checkpoint
from featcache.distillation.join import Joined
from featcache.distillation.lesson import Lesson
from featcache.distillation.run_directory import RunDirectory
from featcache.distillation.schedule import Schedule
from featcache.distillation.settings import DistillSettings
from featcache.distillation.state import load_tensors, read_notes
from featcache.distillation.student import Student, write_student
from featcache.distillation.trainer import Trainer
from featcache.errors import InputError
from featcache.images.view_spec import ViewSpec


class WorkDirectory(RunDirectory):
    """A distillation's directory: what it is a run of, its checkpoints, and the running means of its losses.

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
        fixed = settings.to_json()
        epochs = fixed.pop("epochs")
        identity = {
            **fixed,
            "images": joined.train.identity,
            "teachers": list(lesson.fingerprints),
            "teacher_head": lesson.head_digest,
            "views": list(spec.views),
        }
        super().__init__(work, identity=identity, epochs=epochs, name="distill")
        self.settings, self.spec, self.classes = settings, spec, classes

    def begin(self, trainer: Trainer, schedule: Schedule, *, start: Path | None, say: Callable[[str], None]) -> None:
        """Take over this directory's checkpoint, or the weights of the run in `start`.

        Raises `InputError` where the checkpoint is of a run with other settings, or past the step from which this one
        could go on; `CorruptError` where it was changed.
        """
        if not self.resume(trainer, schedule, say=say) and start is not None:
            trainer.start_from(_weights_to_begin_with(start))

    def place_to_go_on_from(self, notes: dict[str, Any], schedule: Schedule) -> tuple[Path, dict[str, Any]]:
        """Return the last checkpoint, or for a run of another length the one from before the learning rate fell."""
        if notes["epochs"] == self.epochs:
            return self.work, notes
        cooldown = self.settings.cooldown_start(schedule.steps)
        limit = min(cooldown, self.settings.cooldown_start(notes["epochs"] * schedule.steps_per_epoch))
        if notes["step"] <= limit:
            return self.work, notes
        folder = self.work / "constant"
        before = read_notes(folder)
        if before is None or before["step"] > cooldown:
            raise InputError(
                f"a run can be made longer, or shorter while its learning rate is constant; the one in "
                f"{str(self.work)!r} is past that for epochs={self.epochs}: delete it to start again"
            )
        return folder, before

    def after_step(self, number: int, trainer: Trainer, schedule: Schedule) -> None:
        """Keep the last checkpoint with a constant learning rate."""
        if number == self.settings.cooldown_start(schedule.steps):
            (self.work / "constant").mkdir(exist_ok=True)
            self.save(self.work / "constant", trainer)

    def after_save(self, trainer: Trainer) -> None:
        """Write the student as it is now."""
        self.write(trainer, self.work / "student.safetensors", {})

    def write(self, trainer: Trainer, place: Path, notes: Mapping[str, Any]) -> int:
        """Write the averaged student to the file `place`; return its bytes."""
        metadata = {"featcache_distill": {"steps": trainer.number, **self.identity, **notes}}
        with trainer.averaged_weights() as student:
            assert isinstance(student, Student)
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
