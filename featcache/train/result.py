"""`FitResult`: what a fit returns, prints and saves."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
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
    """A head and everything that was measured on the way to it: what `train_head` returns.

    Attributes
    ----------
    head : Head
        The classifier itself.
    objective, gap, gap_kind, passes : float, float, str, float or None
        The certificate of a linear fit: the value at the solution, how far it can be from the best one (relative), how
        that is known, and how many passes over the rows it took. None for other kinds.
    train_accuracy, val_accuracy, test_accuracy : float or None
        In [0, 1]; None where there is no such split, and for regression. Train is the plain view.
    score : str
        The name of the figure that settings are chosen by; `train_score`, `val_score` and `test_score` are its values.
    selection : str or None
        What the free setting was chosen on (``val``, ``5 folds``); None where nothing was free.
    path : tuple of PathPoint
        The penalties that were looked at, from the strongest to the weakest.
    n_train : int
        Rows fitted on (images · views).
    settings : dict
        What `refit_head` makes this head of again, on this cache or another.
    notes : tuple of str
        One line each, what the user should know.
    wall_seconds : float
        From the call to the return.

    Examples
    --------
    >>> import featcache
    >>> result = featcache.train_head("cache", head=featcache.LinearOptions(l2=0.1))
    >>> result.l2, result.selection, result.settings["l2"]
    (0.1, None, 0.1)
    >>> featcache.load_head(result.save("trained")).classes
    ('cat', 'dog')
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
        """Return the directory `path`, made of the head with this result in it; of a penalty path, ``path.csv`` too.

        Raises `ExistsError` where `path` exists and `overwrite` is false.
        """
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
