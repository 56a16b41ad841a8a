"""How busy the machine is, and what follows for the threads of maths libraries."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from featcache.system import load, process
from featcache.system.load import ProcessorTimes, free_processors, read_processor_times
from featcache.system.process import SHORT_WAITS, prepare_process, use_free_processors


def _times(at: float, *, idle: float, own: float = 0.0) -> ProcessorTimes:
    return ProcessorTimes(at, idle, own)


@pytest.mark.parametrize(
    ("processors", "idle", "own", "free"),
    [
        (2, 1.0, 1.0, 2),  # nobody else is there
        (2, 2.0, 0.0, 2),  # nor do we compute
        (2, 0.0, 1.0, 1),  # one processor is another's
        (2, 0.0, 0.67, 1),  # two others on two processors, we get our third
        (2, 0.0, 0.1, 1),  # and where we are niced: one thread is the least
        (16, 13.0, 1.0, 14),  # two of sixteen are others'
        (16, 14.8, 1.0, 16),  # what comes and goes does not count
    ],
)
def test_free_processors_are_what_others_leave(
    monkeypatch: pytest.MonkeyPatch, processors: int, idle: float, own: float, free: int
) -> None:
    """Of one second: the time that was neither idle nor ours is others'."""
    monkeypatch.setattr(load, "affinity_count", lambda: processors)
    assert free_processors(_times(5.0, idle=10.0, own=3.0), _times(6.0, idle=10.0 + idle, own=3.0 + own)) == free


def test_all_processors_are_free_where_it_cannot_be_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two readings that are too near, or a system that does not tell."""
    monkeypatch.setattr(load, "affinity_count", lambda: 4)
    assert free_processors(_times(5.0, idle=10.0), _times(5.01, idle=10.0)) == 4
    assert read_processor_times(tmp_path / "absent") is None
    assert free_processors(None, _times(5.0, idle=10.0)) == 4


def test_times_are_of_the_processors_this_process_may_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Idle and waiting for the disk are idle; another processor's time does not count."""
    monkeypatch.setattr(load, "allowed_processors", lambda: frozenset({0, 2}))
    ticks = os.sysconf("SC_CLK_TCK")
    (tmp_path / "stat").write_text(
        "cpu  9 9 9 999 9 9\n"
        f"cpu0 1 1 1 {3 * ticks} {ticks} 0 0\ncpu1 1 1 1 {50 * ticks} 0 0\ncpu2 1 1 1 {5 * ticks} 0 0 0\nintr 5\n"
    )
    times = read_processor_times(tmp_path / "stat")
    assert times is not None
    assert times.idle == 9.0


@pytest.mark.parametrize(
    ("given", "free", "threads"), [({}, 1, "1"), ({}, 4, None), ({"OMP_NUM_THREADS": "4"}, 1, "4")]
)
def test_threads_of_maths_libraries_follow_what_is_free(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], free: int, threads: str | None
) -> None:
    """Where all is free they know by themselves; a number asked for by name stays."""
    monkeypatch.setattr(process, "affinity_count", lambda: 4)
    monkeypatch.setattr(process, "free_processors", lambda before, now: free)
    environment = dict(given)
    use_free_processors(None, environment)
    assert environment.get("OMP_NUM_THREADS") == threads


@pytest.mark.parametrize("given", [{"OPENBLAS_THREAD_TIMEOUT": "26"}, {"OMP_WAIT_POLICY": "ACTIVE"}])
def test_waits_that_were_asked_for_stay(given: dict[str, str]) -> None:
    """Otherwise threads without work sleep soon."""
    environment = dict(given)
    prepare_process(environment)
    assert {name: environment[name] for name in given} == given
    environment = {}
    prepare_process(environment)
    assert {name: environment[name] for name in SHORT_WAITS} == SHORT_WAITS


@pytest.mark.skipif(not load.STAT.exists(), reason="the system does not tell its processors' times")
def test_a_command_on_a_busy_machine_computes_with_one_thread(tmp_path: Path) -> None:
    """With a busy loop for each processor, maths libraries find one thread in their variable when they load."""
    code = (  # a fast machine loads the command before the system's clock has ticked: it takes a fifth of a second here
        "import os, sys, time\nimport featcache.cli as cli\nsys.argv = ['featcache', '--version']\nrun = cli._run\n"
        "def load_and_run(started):\n    end = time.monotonic() + 0.2\n    while time.monotonic() < end: pass\n"
        "    run(started)\n"
        "cli._run = load_and_run\n"
        "try: cli.main()\nexcept SystemExit: print(os.environ.get('OMP_NUM_THREADS'))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    loop = [sys.executable, "-c", "while True: pass"]
    loops = [subprocess.Popen(loop) for _ in os.sched_getaffinity(0)]
    try:
        time.sleep(0.3)  # until they have started
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
        )
    finally:
        for one in loops:
            one.kill()
            one.wait()
    expected = ["1"] if len(loops) > 1 else ["1", "None"]  # one processor is bounded by itself
    assert done.stdout.split()[-1] in expected
