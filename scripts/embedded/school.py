"""Photos, teachers and a student brought together for a run, short or long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedded.kept import KeptLessons
from embedded.loop import Lessons, Settings, Student
from embedded.photos import Photos, read_photos
from embedded.processes import summed
from embedded.targets import Scale, as_tensor, soft_head, standardised, whitened
from embedded.teachers import TEACHERS, answers
from embedded.views import crop_boxes
from featcache.backbone.checkpoint import read_checkpoint
from featcache.backbone.timm_import import import_timm
from featcache.distillation.state import read_notes

VIEWS = 4
WIDTH = 512  # of whitened targets
BOXES = 1  # seed of the crops
SOLVED, RIDGE = 40, 1e-3  # batches, of a pass at most, by which ends are solved for weights to begin with; their pull


@dataclass(frozen=True)
class School:
    """What is kept in a folder: photos, crops, and each teacher's answers to them."""

    photos: Photos
    val: Photos
    boxes: np.ndarray
    answered: dict[str, np.ndarray]
    val_answered: dict[str, np.ndarray]

    def of_classes(self, wanted: range) -> School:
        """Return the part of it that shows some classes."""
        mine, theirs = np.isin(self.photos.labels, wanted), np.isin(self.val.labels, wanted)
        return School(
            self.photos.of_classes(wanted), self.val.of_classes(wanted), self.boxes[:, mine],
            {name: np.ascontiguousarray(table[:, mine]) for name, table in self.answered.items()},
            {name: table[:, theirs] for name, table in self.val_answered.items()},
        )  # fmt: skip


def open_school(images: Path, weights: Path, home: Path, teachers: Sequence[str], say: Callable[[str], None]) -> School:
    """Return the school in `home`, its teachers having answered; what is there already is not computed again."""
    photos, val = read_photos(images / "train", home / "train.npz"), read_photos(images / "val", home / "val.npz")
    boxes, whole = crop_boxes(len(photos), VIEWS, BOXES), crop_boxes(len(val), 1, BOXES)
    answered, val_answered = {}, {}
    for name in teachers:
        teacher = TEACHERS[name]
        val_answered[name] = answers(teacher, val, whole, weights, home / f"val-{name}.npy", say)
        answered[name] = answers(teacher, photos, boxes, weights, home / f"train-{name}.npy", say)
    return School(photos, val, boxes, answered, val_answered)


def scale_of(features: Tensor, settings: Settings) -> Scale:
    """Return how a teacher's features become targets."""
    return standardised(features) if settings.whitened is None else whitened(features, WIDTH, power=settings.whitened)


def lessons_of(school: School, settings: Settings) -> KeptLessons:
    """Return what a student learns there, soft labels from a linear head on all of its teachers."""
    answered = [school.answered[name] for name in settings.teachers]
    scales = [scale_of(as_tensor(table[0]), settings) for table in answered]
    seen = [
        scale(as_tensor(table[:2].reshape(-1, table.shape[2]))) for scale, table in zip(scales, answered, strict=True)
    ]
    head = soft_head(seen, torch.from_numpy(school.photos.labels).repeat(2), int(school.photos.labels.max()) + 1)
    return KeptLessons(school.photos, school.boxes, answered, scales, head)


def new_student(settings: Settings, lessons: Lessons, home: Path, run: Path) -> Student:
    """Return a student whose weights follow from the settings: drawn, or of the file `begins` in the folder `home`.

    `run`: the folder of its checkpoints; where one lies there, `train` takes it up, and nothing is solved before.
    """
    torch.manual_seed(settings.seed)
    network = import_timm().create_model(settings.network, num_classes=0)
    with torch.no_grad():
        width = network.eval()(torch.zeros(1, 3, 64, 64)).shape[1]
    student = Student(network, width, lessons.widths, lessons.classes)
    if settings.begins is not None and read_notes(run) is None:
        tensors, _ = read_checkpoint(home / settings.begins)
        network.load_state_dict(tensors, strict=False)  # the counters of batch norm are not kept
        solve_ends(student, lessons, settings)
    return student


def solve_ends(student: Student, lessons: Lessons, settings: Settings) -> None:
    """Solve projections and classifier for the network's features as they are, by ridge regression, in place.

    Drawn ends would at first pull features that are good already to where the ends happen to look (Kumar et al. 2022,
    arXiv 2202.10054).
    """
    ends: list[Any] = [*student.projections, student.classifier]
    moments: list[Tensor] = []  # of features with features, and with what each end is to give
    with torch.no_grad():
        for step in range(min(SOLVED, lessons.count // settings.batch)):
            lesson = lessons.lesson(step, settings, settings.sides[0][1])
            network = student.network.to(lesson.images.device).train(not settings.frozen_norms)
            features = network(lesson.images.contiguous(memory_format=torch.channels_last))
            rows = torch.cat([features, torch.ones_like(features[:, :1])], 1)
            found = [rows.T @ one for one in (rows, *lesson.features, lesson.logits)]
            moments = [a + b for a, b in zip(moments, found, strict=True)] if moments else found
        whole = summed(moments)
        gram, *products = (flat.view_as(one).cpu() for flat, one in zip(whole, moments, strict=True))
        gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
        for end, product in zip(ends, products, strict=True):
            solved = torch.linalg.solve(gram, product)
            end.weight.copy_(solved[:-1].T)
            end.bias.copy_(solved[-1])
