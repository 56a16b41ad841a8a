"""The texts of a table's label column as classes, or as numbers to predict."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from featcache.datasets.listing import Task, counted
from featcache.errors import InputError

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
_LARGEST = float(np.finfo(np.float32).max)
_NO_NUMBER = frozenset({"nan", "na", "n/a", "null", "none", "-", "?", "inf", "infinity", "missing"})


class LabelledRow(Protocol):
    """A row of a table: its `line` in the file, from 1, and what stands in its column of labels."""

    @property
    def line(self) -> int: ...
    @property
    def label(self) -> str: ...


@dataclass(frozen=True, slots=True)
class TableLabels:
    """`labels` (n,) int32, -1 for none, and `targets` as in a `Listing`; `notes`: what was read in one of two ways."""

    task: Task
    classes: tuple[str, ...]
    labels: npt.NDArray[np.int32]
    targets: npt.NDArray[np.float32] | None
    notes: tuple[str, ...]


def read_labels(rows: Sequence[LabelledRow], task: Task | None) -> TableLabels:
    """Return the labels of `rows`, in their order; `task` None: several classes where a label holds a ``;``.

    A number that is missing or not finite is no label. Raises `InputError`, with the row, for labels that the task does
    not allow.
    """
    values = [[part.strip() for part in row.label.split(";") if part.strip()] for row in rows]
    return labels_of(rows, values, task)


def labels_of(rows: Sequence[LabelledRow], values: list[list[str]], task: Task | None) -> TableLabels:
    """Return the labels `values`, of each of `rows` none, one or several; raises `InputError` as `read_labels`."""
    if task == "regression":
        return _numbers(rows, values)
    notes = []
    several = [row for row, value in zip(rows, values, strict=True) if len(value) > 1]
    if task is None and several:
        notes.append(
            f"the labels are read as multi-label: {len(several)} of {counted(len(rows), 'row')} with several between "
            f"';', first row {several[0].line} ({several[0].label!r}): mend it, or say so with --task multilabel"
        )
        task = "multilabel"
    classes = tuple(sorted({part for value in values for part in value}))
    index = {name: i for i, name in enumerate(classes)}
    first = np.array([index[value[0]] if value else -1 for value in values], dtype=np.int32)
    if task == "multilabel":
        targets = np.zeros((len(rows), len(classes)), dtype=np.float32)
        for i, value in enumerate(values):
            targets[i, [index[part] for part in value]] = 1.0
        return TableLabels("multilabel", classes, first, targets, tuple(notes))
    if several:
        raise InputError(
            f"a label must be one class with task 'classification', got {several[0].label!r} in row {several[0].line}: "
            "pass --task multilabel, or write the class without ';'"
        )
    if len(classes) > 1 and all(map(_is_number, classes)) and not all(name.isdecimal() for name in classes):
        notes.append(f"the labels are numbers, read as {len(classes)} classes: --task regression predicts the number")
    return TableLabels("classification", classes, first, None, tuple(notes))


def _numbers(rows: Sequence[LabelledRow], values: Sequence[list[str]]) -> TableLabels:
    width = max((len(value) for value in values), default=0)
    labels = np.full(len(rows), -1, dtype=np.int32)
    targets = np.full((len(rows), width), np.nan, dtype=np.float32)
    without: list[LabelledRow] = []
    for i, (row, value) in enumerate(zip(rows, values, strict=True)):
        numbers = [_number(text, row) for text in value]
        if not value or any(number is None for number in numbers):
            without.append(row)
        elif len(value) != width:
            raise InputError(f"each label must hold {width} numbers, got {row.label!r} in row {row.line}")
        else:
            targets[i], labels[i] = numbers, 0
    notes = []
    if without:
        shown = f"row {without[0].line} has {without[0].label!r}"
        notes.append(
            f"{len(without)} of {counted(len(rows), 'row')} unlabelled, without a finite number: first {shown}"
        )
    names = tuple(f"target{j}" if width > 1 else "target" for j in range(width))
    return TableLabels("regression", names, labels, targets, tuple(notes))


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None


def _number(text: str, row: LabelledRow) -> float | None:
    """Return a text as a number, None where it is missing, not finite as float32 or written as only programs do."""
    if _is_number(text):
        value = float(text)
        return value if abs(value) <= _LARGEST else None
    if text.lstrip("+-").lower() in _NO_NUMBER or not text.lstrip("+-"):
        return None
    try:
        float(text)  # 1_000, or digits of another script
    except ValueError as error:
        raise InputError(f"regression labels must be numbers such as 1.5, got {text!r} in row {row.line}") from error
    return None
