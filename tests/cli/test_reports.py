"""What people report of programs that do this job: each small input of scripts/reports/ ends as it should."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from multiprocessing import forkserver
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from reports import REPORTS
from reports.report import Outcome, Report, replay, run_in_process

FORKS = multiprocessing.get_context("forkserver")  # its processes begin where the imports are done
FORKS.set_forkserver_preload(["report_imports"])


def _main(arguments: Sequence[str], folder: Path, outputs: tuple[str, str]) -> None:
    """Be the command line in this process, which is a fork of its own."""
    os.chdir(folder)
    for descriptor, path in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv = ["featcache", *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from featcache.cli import main

    main()


def run_in_fork(arguments: Sequence[str], folder: Path, report: Report, *, last: bool) -> Outcome:
    """Run a command line in a fork; where what starts it is the point, in a process from nothing."""
    if report.environment or (report.under and last):
        return run_in_process(arguments, folder, report, last=last)
    outputs = (str(folder.parent / "stdout"), str(folder.parent / "stderr"))
    started = time.perf_counter()
    fork = FORKS.Process(target=_main, args=(arguments, folder, outputs))
    fork.start()
    fork.join()
    said = [Path(path).read_text(encoding="utf-8") for path in outputs]
    assert fork.exitcode is not None
    return Outcome(fork.exitcode, said[0], said[1], time.perf_counter() - started, folder)


@pytest.fixture(autouse=True, scope="module")
def _server_of_forks() -> None:
    """Start the process that forks, with this folder's modules to be found: it knows no path but its environment's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).resolve().parents[1]), *sys.path]))
        forkserver.ensure_running()


@pytest.mark.parametrize("report", REPORTS, ids=[report.name for report in REPORTS])
def test_a_report_ends_as_it_should(report: Report, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    replay(report, folder, run_in_fork)


def test_names_are_unique() -> None:
    names = [report.name for report in REPORTS]
    assert len(names) == len(set(names))
