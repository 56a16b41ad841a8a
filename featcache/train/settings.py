"""`TrainSettings`: all that a head is made by, and the flat JSON object in which a head keeps it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from featcache.errors import InputError
from featcache.heads.base import Head
from featcache.system.objects import ObjectPath, place_of
from featcache.train.options import (
    DistillationOptions,
    HeadOptions,
    LinearOptions,
    SupervisedOptions,
    TrainOptions,
    options_of_kind,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """The kind of head with its options, those of every kind, and the teacher, if any; refuses what excludes another.

    Of which data set a head is made is not among them: the same settings refit it on another cache.
    """

    head: HeadOptions = field(default_factory=LinearOptions)
    options: TrainOptions = field(default_factory=TrainOptions)
    distillation: DistillationOptions | None = None

    def __post_init__(self) -> None:
        if self.distillation is None:
            return
        head = self.head
        if not isinstance(head, SupervisedOptions):
            raise InputError(f"a teacher needs kind 'linear' or 'mlp', got kind {head.kind!r}: leave the teacher out")
        if head.label_smoothing > 0:
            raise InputError("label_smoothing and a teacher cannot go together: the teacher's targets are soft already")
        if isinstance(head, LinearOptions) and head.mixup > 0:
            raise InputError("mixup and a teacher cannot go together in a linear head: use kind 'mlp'")

    def to_json(self) -> dict[str, Any]:
        """Return the settings that differ from their defaults, as JSON values under their own names.

        Caches and heads that are open stand there as their paths; a teacher's head in memory as its own settings.
        """
        values: dict[str, Any] = {}
        if self.head.kind != LinearOptions.kind:
            values["kind"] = self.head.kind
        for options in (self.head, self.options):
            for name, value in differing(options):
                values[name] = list(value) if isinstance(value, tuple) else value
        if self.distillation is not None:
            values["teacher"] = _path_of(self.distillation.teacher)
            values |= dict(differing(self.distillation))
            if self.distillation.teacher_head is not None:
                values["teacher_head"] = _reference_to(self.distillation.teacher_head)
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainSettings:
        """Return the settings that `to_json` wrote; raises `InputError` for a name that the kind does not have."""
        rest = {name: value for name, value in values.items() if name != "kind"}
        head = options_of_kind(values.get("kind", LinearOptions.kind))
        parts = {
            part: {field.name: rest.pop(field.name) for field in dataclasses.fields(part) if field.name in rest}
            for part in (head, TrainOptions, DistillationOptions)
        }
        if rest:
            raise InputError(f"a head of kind {head.kind!r} has no setting {next(iter(rest))!r}: leave it out")
        distillation = parts[DistillationOptions]
        if distillation and "teacher" not in distillation:
            raise InputError(
                f"{next(iter(distillation))} needs a teacher, got none: name the cache to distil from as 'teacher'"
            )
        return cls(
            head=head(**parts[head]),
            options=TrainOptions(**parts[TrainOptions]),
            distillation=DistillationOptions(**distillation) if distillation else None,
        )


def differing(options: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name and value of each field of a dataclass that differs from its default."""
    for one in dataclasses.fields(options):
        value = getattr(options, one.name)
        if one.default is not dataclasses.MISSING and value != one.default:
            yield one.name, value


def _path_of(cache: Any) -> str:
    place = place_of(cache if isinstance(cache, str | os.PathLike | ObjectPath) else cache.path)
    return str(place) if isinstance(place, ObjectPath) else os.path.abspath(place)


def _reference_to(head: Any) -> str | dict[str, Any]:
    """Return what a later fit can find the teacher's head by: a path, or the settings it was trained with."""
    if isinstance(head, str | os.PathLike):
        return os.path.abspath(head)
    return dict(head.settings if isinstance(head, Head) else head)
