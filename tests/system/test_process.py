"""What a process is told before libraries load: no telemetry, no more threads than its container may run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import featcache
from featcache.system import process
from featcache.system.process import prepare_process

PACKAGE = Path(featcache.__file__).parent


def _run(code: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "HF_", "XDG_"))}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**kept, "HOME": str(home), **variables},
    )  # fmt: skip


@pytest.mark.parametrize("library", ["onnxruntime", "openvino"])
def test_runtimes_leave_nothing_in_the_home(tmp_path: Path, library: str) -> None:
    """ONNX Runtime would make a device id and a database of events there, OpenVINO a client id."""
    done = _run(f"import featcache, {library}", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert (done.stdout, done.stderr) == ("", "")


def test_a_home_that_cannot_be_written_to_is_no_news(tmp_path: Path) -> None:
    """ONNX Runtime would say that it cannot persist its device id."""
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    assert _run("import featcache, onnxruntime", tmp_path / "file").stderr == ""


def test_telemetry_of_a_runtime_that_was_there_before_is_switched_off(tmp_path: Path) -> None:
    """By its own call: its environment variable is read when it is imported."""
    code = (
        "import onnxruntime\ncalled = []\nonnxruntime.disable_telemetry_events = lambda: called.append(1)\n"
        "import featcache\nprint(len(called))"
    )
    assert _run(code, tmp_path).stdout.strip() == "1"


@pytest.mark.parametrize(
    ("given", "quota", "affinity", "threads"),
    [({}, 2, 16, "2"), ({}, 16, 16, None), ({"OMP_NUM_THREADS": "5"}, 2, 16, "5")],
)
def test_threads_of_maths_libraries_follow_the_quota(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], quota: int, affinity: int, threads: str | None
) -> None:
    """They know the affinity by themselves, but not the container's quota; a number asked for by name stays."""
    monkeypatch.setattr(process, "processor_count", lambda: quota)
    monkeypatch.setattr(process, "affinity_count", lambda: affinity)
    environment = dict(given)
    prepare_process(environment)
    assert environment.get("OMP_NUM_THREADS") == threads
    assert environment["ORT_DISABLE_TELEMETRY"] == "1"


def test_processors_are_counted_in_one_file_only() -> None:
    """So that the limits of a container rule everywhere."""
    counting = re.compile(r"\bcpu_count\(|\bsched_getaffinity\(|\bmultiprocessing\b")
    found = [
        file.relative_to(PACKAGE).as_posix()
        for file in sorted(PACKAGE.rglob("*.py"))
        if counting.search(file.read_text(encoding="utf-8"))
    ]
    assert found == ["system/threads.py"]
