"""One report: its input, its commands, its right outcome; and the way it is replayed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FEATCACHE = (sys.executable, "-c", "from featcache.cli import main; main()")
SMALL = ("--backbone", "featcache_nano", "--weights", "random:0", "--engine", "torch")  # no network, no compiling


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the last command left: its exit status, what it printed, and the folder it ran in."""

    status: int
    stdout: str
    stderr: str
    seconds: float
    folder: Path

    def json(self) -> Any:
        """Return what ``--json`` printed."""
        return json.loads(self.stdout)

    @property
    def lines(self) -> list[str]:
        """The lines on stderr."""
        return self.stderr.strip().splitlines()

    @property
    def refusal(self) -> str:
        """The one line of a refused command; raises `AssertionError` where it is something else."""
        assert self.status == 1, (self.status, self.stderr[-2000:])
        assert self.lines, "nothing was said"
        assert "Traceback" not in self.stderr, self.stderr[-2000:]
        assert self.lines[-1].startswith("featcache: "), self.stderr[-2000:]
        return self.lines[-1]


@dataclass(frozen=True, slots=True)
class Report:
    """`name` (unique); `complaint`: what people report; `right`: the outcome that is right, in words.

    `arrange(folder)` makes the input and returns the command lines, run in that order in that folder, each without the
    word featcache; all but the last must succeed. A function between them is called with the folder. `check(outcome)`
    of the last one asserts what is right. `environment` is added to the command's; `under` is what the last command is
    started by: ``("taskset", "-c", "0")``.
    """

    name: str
    complaint: str
    right: str
    arrange: Callable[[Path], Sequence[Sequence[object] | Callable[[Path], object]]]
    check: Callable[[Outcome], None]
    environment: Mapping[str, str] = field(default_factory=dict)
    under: Sequence[str] = ()


def run_in_process(arguments: Sequence[str], folder: Path, report: Report, *, last: bool) -> Outcome:
    """Run one command line of `report` in a process of its own."""
    started = time.perf_counter()
    done = subprocess.run(
        [*(report.under if last else ()), *FEATCACHE, *arguments],
        capture_output=True, encoding="utf-8", cwd=folder, check=False, env={**os.environ, **report.environment},
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout, done.stderr, time.perf_counter() - started, folder)


def replay(report: Report, folder: Path, run: Callable[..., Outcome] = run_in_process) -> Outcome:
    """Return the outcome of a report's last command; raises `AssertionError` where it is not right."""
    commands = report.arrange(folder)
    for position, arguments in enumerate(commands):
        if callable(arguments):
            arguments(folder)
            continue
        last = position == len(commands) - 1
        outcome = run([str(argument) for argument in arguments], folder, report, last=last)
        assert last or outcome.status == 0, f"{arguments}: {outcome.stderr[-2000:]}"
    report.check(outcome)
    return outcome


def draw(path: Path, *, seed: int = 0, size: tuple[int, int] = (40, 32)) -> Path:
    """Write a small photo of coarse coloured patches that differs by seed, in the format of the path's extension."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    patches = np.random.default_rng(seed).integers(0, 256, size=(5, 5, 3), dtype=np.uint8)
    Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def draw_classes(folder: Path, *names: str, each: int = 6, extension: str = "jpg") -> Path:
    """Write `each` photos into a folder for each name; photos of one class look alike."""
    for number, name in enumerate(names):
        for i in range(each):
            draw(folder / name / f"{i}.{extension}", seed=1000 * number + i)
    return folder
