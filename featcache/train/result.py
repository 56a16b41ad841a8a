"""`FitResult`: what a fit returns, prints and saves, and the table that compares several."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.heads.base import Head
from featcache.heads.io import save_head


@dataclass(frozen=True, slots=True)
class PathPoint:
    """One penalty of a path: its solution's certificate and how it did.

    `value`, `standard_error`: mean score of held-out rows (val, or the folds) and its standard error. `loss`: their
    mean loss.
    """

    l1: float
    l2: float
    group_l1: float
    objective: float
    gap: float
    passes: float
    nonzero_fraction: float
    features_used: int
    value: float
    standard_error: float
    loss: float
    chosen: bool


@dataclass(frozen=True, slots=True)
class FitResult:
    """A fitted head and everything measured on the way.

    `objective`, `gap` (of kind `gap_kind`), `passes`: the certificate of a linear fit; None for other kinds.
    `train_accuracy`, `val_accuracy`, `test_accuracy`: in [0, 1], None where there is no such split, and for regression;
    train is the plain view. `score`: the name of the figure settings are chosen by, and `train_score`, `val_score`,
    `test_score` its values. `selection`: how the free setting was chosen (``val``, ``5 folds``) or None. `n_train`:
    rows fitted on (images · views). `settings`: what refits this head on another cache. `wall_seconds`: from the call
    to the return.
    """

    head: Head
    kind: str
    task: str
    dataset: str
    classes: tuple[str, ...]
    columns: tuple[str, ...]
    l1: float | None
    l2: float | None
    group_l1: float | None
    objective: float | None
    gap: float | None
    gap_kind: str | None
    passes: float | None
    nonzero_fraction: float | None
    features_used: int | None
    n_train: int
    n_unlabelled: int
    n_val: int
    n_test: int
    n_classes: int
    num_features: int
    train_accuracy: float | None
    val_accuracy: float | None
    test_accuracy: float | None
    score: str
    train_score: float
    val_score: float | None
    test_score: float | None
    selection: str | None
    path: tuple[PathPoint, ...]
    details: dict[str, Any]
    settings: dict[str, Any]
    seed: int
    fingerprint: str
    notes: tuple[str, ...]
    wall_seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return every field but the head as JSON values; calibration and unknown rule come from the head."""
        values = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in ("head",)
        }
        for name in ("classes", "columns", "notes"):
            values[name] = list(values[name])
        values["path"] = [dataclasses.asdict(point) for point in self.path]
        values["calibration"] = None if self.head.calibration is None else self.head.calibration.to_json()
        values["unknown"] = None if self.head.unknown is None else self.head.unknown.to_json()
        return values

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the head's directory with this result in it; where a path was followed, ``path.csv`` too."""
        files = {"path.csv": self.path_csv().encode()} if self.path else {}
        return save_head(self.head, path, fit=self.to_json(), files=files, overwrite=overwrite)

    def path_csv(self) -> str:
        """Return the path as CSV: a header and one line per penalty, from the strongest to the weakest."""
        text = io.StringIO()
        names = [field.name for field in dataclasses.fields(PathPoint)]
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(names)
        for point in self.path:
            values = [getattr(point, name) for name in names]
            writer.writerow([int(value) if isinstance(value, bool) else value for value in values])
        return text.getvalue()


def compare(results: Sequence[FitResult], *, names: Sequence[str] | None = None) -> str:
    """Return a plain-text table, one line per result, the best val score marked by ``*`` (the earliest of equals).

    `names`: what to call each; by default the kind, columns and penalties.
    """
    labels = list(names) if names is not None else [_describe(result) for result in results]
    header = ("head", "features", "used", "train", "val", "test", "seconds")
    scored = [result.val_score for result in results if result.val_score is not None]
    best = max(scored) if scored else None
    marked = False
    rows = []
    for label, result in zip(labels, results, strict=True):
        mark = not marked and best is not None and result.val_score == best
        marked |= mark
        used = "" if result.features_used is None else str(result.features_used)
        figures = [_percent(value) for value in (result.train_score, result.val_score, result.test_score)]
        figures[1] += "*" if mark else " "
        rows.append((label, str(result.num_features), used, *figures, f"{result.wall_seconds:.2f}"))
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _describe(result: FitResult) -> str:
    penalties = " ".join(
        f"{name}={value:.3g}"
        for name, value in (("l1", result.l1), ("l2", result.l2), ("group_l1", result.group_l1))
        if value
    )
    extra = [
        f"{name}={value}"
        for name, value in result.settings.items()
        if name not in ("kind", "l1", "l2", "group_l1", "outputs", "dataset", "seed")
    ]
    return " ".join(part for part in (result.kind, "+".join(result.columns), penalties, *extra) if part)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
