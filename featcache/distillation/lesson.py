"""The lesson: what is to be learned from which teacher, checked before anything is computed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache.cache import FeatureCache
from featcache.distillation.settings import Targets
from featcache.distillation.soft_source import LOGITS, SoftSource, find_soft_source
from featcache.errors import InputError
from featcache.heads.base import Head
from featcache.heads.io import load_head
from featcache.images.view_spec import ViewSpec
from featcache.recipe import Preprocessing, Recipe

FEATURES = "features"


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a student learns.

    `targets` of the run, the widths of each teacher's features, where soft labels come from, and the views.

    `recipe`: the first teacher's, whose plain view and view seed are followed. `fingerprints`: of the teachers.
    `head_digest`: sha256 of the teacher's head, None without one.
    """

    targets: Targets
    feature_widths: tuple[int, ...]
    soft: SoftSource | None
    views: tuple[int, ...]
    recipe: Recipe
    fingerprints: tuple[str, ...]
    head_digest: str | None

    def view_spec(self, input_size: int) -> ViewSpec:
        """Return how the student sees the teacher's views with an input of `input_size` pixels."""
        theirs = self.recipe.image_preprocessing
        square = theirs.crop_mode == "center" and theirs.height == theirs.width
        resize = round(input_size * theirs.resize / theirs.height) if square else input_size
        preprocessing = Preprocessing(
            input_size,
            input_size,
            resize,
            theirs.interpolation,
            "center" if square else "squash",
            theirs.mean,
            theirs.std,
        )
        return ViewSpec(preprocessing, self.views, self.recipe.view_seed, self.recipe.decoder)


def choose_lesson(
    teachers: Sequence[FeatureCache],
    teacher_head: str | Path | Head | None,
    *,
    requested: str | None,
    views: int | None,
    classes: tuple[str, ...],
) -> Lesson:
    """Return what the student learns; `InputError` where a teacher does not hold it.

    `requested`: ``features``, ``logits``, ``both``, or None for what there is. `views`: how many, None for as many as
    every teacher holds. `classes`: the images' own.
    """
    if requested not in (None, "features", "logits", "both"):
        raise InputError(f"targets must be 'features', 'logits' or 'both', got {requested!r}")
    head = teacher_head if teacher_head is None or isinstance(teacher_head, Head) else load_head(teacher_head)
    soft = find_soft_source(teachers, head, classes=classes) if requested != "features" else None
    if soft is None and requested in ("logits", "both"):
        raise InputError(
            f"targets={requested!r} need soft labels: name a teacher_head trained on the teacher's cache, or build "
            f"that with outputs features,{LOGITS}"
        )
    targets: Targets = "features" if soft is None else ("logits" if requested == "logits" else "both")
    widths = tuple(_width(teacher) for teacher in teachers) if targets != "logits" else ()
    first = teachers[0].recipe
    for teacher in teachers:
        if (teacher.recipe.view_seed, teacher.recipe.decoder) != (first.view_seed, first.decoder):
            raise InputError(
                f"all teachers must have seen the same views, {str(teacher.path)!r} has view_seed "
                f"{teacher.recipe.view_seed!r} and decoder {teacher.recipe.decoder!r}, {str(teachers[0].path)!r} has "
                f"{first.view_seed!r} and {first.decoder!r}: build it anew with these"
            )
    return Lesson(
        targets, widths, soft, _views(teachers, views), first,
        tuple(teacher.fingerprint for teacher in teachers), None if head is None else _digest(head),
    )  # fmt: skip


def _views(teachers: Sequence[FeatureCache], count: int | None) -> tuple[int, ...]:
    """Return the indices of the views to use."""
    fewest = min(teachers, key=lambda teacher: teacher.recipe.views)
    number = fewest.recipe.views if count is None else count
    if not 1 <= number <= fewest.recipe.views:
        raise InputError(
            f"views must be 1 to {fewest.recipe.views}, the number the teacher {str(fewest.path)!r} holds, got "
            f"{number!r}: build that cache anew with --views {max(1, number)}"
        )
    return tuple(range(number))


def _width(teacher: FeatureCache) -> int:
    for column in teacher.columns:
        if column.name == FEATURES:
            return math.prod(column.shape)
    raise InputError(
        f"the teacher {str(teacher.path)!r} must store 'features' to learn them, it has "
        f"{list(teacher.recipe.outputs)!r}: use targets='logits' or build another cache"
    )


def _digest(head: Head) -> str:
    state = hashlib.sha256(repr(head.classes).encode())
    for name, array in sorted(head.arrays().items()):
        state.update(name.encode())
        state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()
