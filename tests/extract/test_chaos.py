"""Builds killed at random instants lose nothing; `scripts/chaos_cache.py --kills 100` is the long form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "chaos_cache.py"


def test_killed_builds_lose_nothing(tmp_path: Path) -> None:
    file = tmp_path / "chaos.json"
    command = [sys.executable, str(SCRIPT), "--kills", "6", "--seed", "4", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert (result["ok"], result["kills"], result["by_store"]) == (True, 6, {"lmdb": 3, "zarr": 3})
    assert result["partial"] >= 1
