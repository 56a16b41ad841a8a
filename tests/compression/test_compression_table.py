"""`scripts/compression_table.py`: what the benchmarks wrote, as one table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

MEASURED = {
    "dataset": "photos", "method": "ours", "n": 1000, "float_accuracy": 0.9, "accuracy": 0.89, "lost": 14, "gained": 4,
    "p": 0.0309, "bytes": [8_000_000, 4_000_000], "onnxruntime_ms": [10.0, 6.0], "openvino_ms": None,
}  # fmt: skip
FOUND = {
    "max_drop": 0.01, "target": "size", "chosen": {"steps": ["channel 30% of parameters", "int8"]}, "split": "test",
    "n": 100, "accuracy_float": 0.9, "accuracy_after_refit": 0.91, "gained": 2, "lost": 1, "bytes_before": 8_000_000,
    "bytes_after": 1_000_000, "latency_ms_before": 4.0, "latency_ms_after": 2.0,
}  # fmt: skip


def test_rows_of_both_kinds_of_files(tmp_path: Path) -> None:
    pruned = {**MEASURED, "name": "ours-0.5-4min", "macs": [100, 50], "random_weights": False}
    nothing = {**pruned, "dataset": "noise", "random_weights": True}
    files = [tmp_path / "bench.json", tmp_path / "compress.json"]
    files[0].write_text(json.dumps({"processor": "some processor", "results": [MEASURED, pruned, nothing]}))
    files[1].write_text(json.dumps(FOUND))
    command = [sys.executable, str(ROOT / "scripts" / "compression_table.py"), *map(str, files)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "Measured on some processor."
    assert lines[4:] == [
        "| ours | photos, 1,000 | 90.00 → 89.00 | 14, 4 (0.031) | 8.00 → 4.00 | 0.60, - |",
        "| 50% of the multiplications, 4 minutes of training | photos, 1,000 | 90.00 → 89.00 | 14, 4 (0.031) "
        "| 8.00 → 4.00 | 0.60, - |",
        "| compress --max-drop 0.01 --target size: channel 30% of parameters + int8 | test, 100 | 90.00 → 91.00 "
        "| 1, 2 (1) | 8.00 → 1.00 | 0.50, - |",
    ]
