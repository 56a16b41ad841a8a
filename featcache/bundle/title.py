"""The title of a report: the data set's name and what the model does, in words for anybody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def report_title(dataset: str | None, classes: Sequence[str], *, task: str) -> str:
    """Return the title of a report: the data set's name, where it is known, and what the model does.

    Examples
    --------
    >>> report_title("clothing10", ["boots", "hats", "socks"], task="classification")
    'clothing10: tells 3 classes of photos apart'
    >>> report_title(None, ["age"], task="regression")
    'This model estimates age from a photo'
    """
    purpose = _purpose(classes, task)
    return f"{dataset}: {purpose}" if dataset else f"This model {purpose}"


def dataset_name(lineage: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the name of the data set that a model's head was trained on, None where its lineage does not say."""
    return next((str(step["dataset"]) for step in lineage if step.get("dataset")), None)


def _purpose(classes: Sequence[str], task: str) -> str:
    count = len(classes)
    if task == "classification":
        return f"tells {count:,} classes of photos apart"
    if task == "multilabel":
        return f"finds which of {count:,} labels a photo has"
    return f"estimates {count:,} values from a photo" if count > 1 else f"estimates {classes[0]} from a photo"
