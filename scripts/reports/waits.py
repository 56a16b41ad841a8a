"""Waits that need not be, and what is said while one waits."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from reports.report import SMALL, Outcome, Report, draw, draw_classes

Commands = Sequence[Sequence[object] | Callable[[Path], object]]
BUILD = ("build", "pets", "--cache", "c", *SMALL)


def _run_without_test(folder: Path) -> Commands:
    draw_classes(folder / "pets", "train/cat", "train/dog", "val/cat", "val/dog", each=6)
    return [("run", "pets", "--out", "out", "--backbone", "test_efficientnet", "--weights", "random:0")]


def _named_val_and_timed(outcome: Outcome) -> None:
    assert outcome.status == 0, outcome.stderr
    header, *rows = outcome.stdout.splitlines()
    assert header.split() == ["model", "val", "accuracy", "bytes", "latency"], header
    assert "%" in rows[0], rows[0]
    timed = [line.split(":")[0] for line in outcome.lines if re.fullmatch(r"[a-z]+: +\d+\.\d s", line)]
    assert timed == ["build", "train", "merge", "prune", "quantize", "export", "report"], outcome.lines
    notes = [line for line in outcome.lines if line.startswith("note: ")]
    assert len(notes) == len(set(notes)), notes


def _three_more(folder: Path) -> Commands:
    draw_classes(folder / "pets", "cat", "dog")
    build = ("build", "pets", "--cache", "c", "--backbone", "featcache_nano", "--engine", "openvino")

    def add(place: Path) -> None:
        for number in range(3):
            draw(place / "pets" / "cat" / f"new{number}.jpg", seed=500 + number)

    return [build, add, (*build, "--json")]


def _from_the_kept_network(outcome: Outcome) -> None:
    assert outcome.status == 0, outcome.stderr
    report = outcome.json()
    assert (report["extracted"], report["reused"]) == (3, 12), report
    assert "import time" in outcome.stderr
    assert not re.search(r"\| +timm$", outcome.stderr, re.MULTILINE), "timm was imported"


def _unlabelled(folder: Path) -> Commands:
    draw_classes(folder / "pets", "cat", "dog")
    draw_classes(folder / "new", "cat", "dog", "bird", each=2)
    return [
        BUILD,
        ("train", "c", "--out", "h"),
        ("merge", "h", "c", "--out", "m"),
        ("evaluate", "m", "new"),
    ]


def _says_unlabelled(outcome: Outcome) -> None:
    assert outcome.status == 0, outcome.stderr
    assert re.search(r"unlabelled +2\b", outcome.stdout), outcome.stdout


REPORTS = (
    Report(
        "run-says-how-long",
        "run showed dashes for accuracy where there is no test split, and nobody knew which step took the time",
        "a column named val accuracy, a line of seconds for each step, each note once",
        _run_without_test,
        _named_val_and_timed,
    ),
    Report(
        "three-new-images",
        "adding three images to a cache took five seconds, most of it importing what was not used",
        "the network compiled before is opened; timm is not imported",
        _three_more,
        _from_the_kept_network,
        {"PYTHONPROFILEIMPORTTIME": "1"},
    ),
    Report(
        "unlabelled-are-shown",
        "evaluate passed over images of a class it does not know and said so only with --json",
        "their number stands among the figures",
        _unlabelled,
        _says_unlabelled,
    ),
)
