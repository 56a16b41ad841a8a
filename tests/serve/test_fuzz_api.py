"""`scripts/fuzz_api.py`: what it counts, and what it takes for a fault. The run itself needs schemathesis."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fuzz_api.py"


@pytest.fixture(scope="module")
def fuzz_api() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_api", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_api"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_a_fault_is_an_answer_of_5xx_a_bug_or_a_line_that_is_no_json(fuzz_api: ModuleType) -> None:
    def line(status: int, milliseconds: float = 1.0) -> str:
        told = {"event": "request", "method": "GET", "path": "/", "status": status, "milliseconds": milliseconds}
        return json.dumps(told)

    lines = [line(200), line(404, 7.5), line(200), line(503), json.dumps({"event": "bug"}), "Traceback", line(500)]
    seen = fuzz_api.read_log(lines).to_json()
    assert (seen["cases"], seen["statuses"]) == (5, {"200": 2, "404": 1, "500": 1, "503": 1})
    assert seen["slowest"] == {"method": "GET", "path": "/", "status": 404, "milliseconds": 7.5}
    assert [fault.get("status", fault.get("event", fault.get("line"))) for fault in seen["faults"]] == [
        503, "bug", "Traceback", 500,
    ]  # fmt: skip


def test_without_schemathesis_it_says_what_to_install() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--schemathesis", "there-is-none"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "pip install schemathesis" in done.stderr
