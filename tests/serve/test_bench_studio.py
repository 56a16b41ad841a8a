"""`scripts/bench_studio.py --quick`: each key's new predictions are seen in the browser; no figure is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from featcache.formats.web.browser import find_chromium


@pytest.mark.slow
@pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium here")
def test_a_key_is_followed_to_the_screen(tmp_path: Path) -> None:
    file = tmp_path / "studio.json"
    script = ROOT / "scripts" / "bench_studio.py"
    done = subprocess.run(
        [sys.executable, str(script), "--quick", "--json", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(file.read_text())["rows"]
    stages = [row[f"{name}_ms"]["median"] for name in ("sent", "answered", "head", "described", "shown")]
    assert stages == sorted(stages) and stages[0] > 0
    assert (row["images"], row["keys"], row["problems"]) == (600, 3, [])
    assert row["fit_ms"]["median"] < row["shown_ms"]["median"]
