"""What the user meant by a folder or a table."""

from __future__ import annotations

from pathlib import Path

from reports.report import SMALL, Outcome, Report, draw_classes


def _training_and_testing(folder: Path) -> list[list[object]]:
    for split in ("training", "testing"):
        draw_classes(folder / "pets" / split, "cat", "dog", each=4)
    return [["build", "pets", "--cache", "c", *SMALL, "--json"]]


def _two_splits(outcome: Outcome) -> None:
    assert outcome.status == 0, outcome.stderr
    assert outcome.json()["classes"] == ["cat", "dog"]


REPORTS = (
    Report(
        "training-testing",
        "folders named training/ and testing/ were read as two classes",
        "they are the splits train and test",
        _training_and_testing,
        _two_splits,
    ),
)
