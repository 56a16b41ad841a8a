"""`scripts/bench_serve.py --quick`: all servers answer, with the same labels; no figure is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_the_table_has_every_server_with_the_same_labels(pets: Path, photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "scripts" / "bench_serve.py"), "--quick", "--clients", "1,8", "--memory", "200",
            "--bundle", str(pets), "--images", str(photos), "--json", str(file),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    found = {(row["server"], row["clients"]) for row in report["rows"]}
    assert {("featcache", 1), ("featcache", 8), ("fastapi", 1), ("fastapi", 8)} <= found
    assert "litserve" in {name for name, _ in found} | set(report["skipped"])
    assert report["other_labels"] == {}
    assert all(row["requests"] > 0 and row["p50_ms"] <= row["p99_ms"] for row in report["rows"])
    assert report["memory"]["requests"] == 200
