"""`scripts/bench_prune.py --quick`: ours and Torch-Pruning's choice, at equal multiplications, in the same table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.mark.long
@pytest.mark.slow
def test_the_table_has_both_methods_at_equal_work(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    command = [sys.executable, str(ROOT / "scripts" / "bench_prune.py"), "--quick"]
    done = subprocess.run(
        [*command, "--json", str(file), "--work", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())["results"]
    assert [row["method"] for row in rows] == ["ours", "peer"]
    for row in rows:
        assert 0.68 < row["macs"][1] / row["macs"][0] < 0.72
        assert row["parameters"][1] < row["parameters"][0]
        assert len(row["torch_ms"]) == len(row["onnxruntime_ms"]) == 2
