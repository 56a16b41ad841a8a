"""`scripts/bench_busy.py --quick`: each verb is timed alone, beside busy loops and niced."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.mark.long
@pytest.mark.slow
def test_each_verb_is_timed_in_each_setting(tmp_path: Path) -> None:
    """The figures are of this machine, so only that they are there and are of one another is right or wrong."""
    file = tmp_path / "figures.json"
    command = [sys.executable, str(ROOT / "scripts" / "bench_busy.py"), "--quick", "--verbs", "train,evaluate"]
    done = subprocess.run(
        [*command, "--json", str(file), "--work", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(file.read_text())
    assert document["machine"]["processor"] in done.stdout
    assert list(document["results"]) == ["train", "evaluate"]
    for figures in document["results"].values():
        assert list(figures) == ["alone", "busy", "niced"]
        alone = figures["alone"]
        for setting in ("busy", "niced"):
            one = figures[setting]
            assert one["wall_ratio"] == pytest.approx(one["wall_seconds"] / alone["wall_seconds"])
            assert one["processor_ratio"] == pytest.approx(one["processor_seconds"] / alone["processor_seconds"])


def test_a_verb_it_does_not_know_is_refused() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "bench_busy.py"), "--verbs", "dance"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "'dance'" in done.stderr
