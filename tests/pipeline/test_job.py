"""`run`: the whole job, also where a step does not lead on."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import featcache
from featcache.errors import VerificationError

ROOT = Path(__file__).resolve().parent.parent.parent


def test_an_int8_file_that_answers_otherwise_here_leaves_the_model_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6), ("test", 6)):
        for label, shade in (("dark", 40), ("light", 200)):
            place = tmp_path / "images" / split / label
            place.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(generator.normal(shade, 20, (40, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    formats = importlib.import_module("featcache.bundle.exporting")
    usual = formats.export

    def export(model, **options):
        if Path(model).name == "int8":
            raise VerificationError("format 'onnx' must give the reference's first class, it gives another")
        return usual(model, **options)

    monkeypatch.setattr(formats, "export", export)
    report = featcache.run(
        tmp_path / "images", out=tmp_path / "out", backbone="test_efficientnet", weights="random:0", prune_amount=0.0
    )
    assert report.shipped == "float"
    assert json.loads(Path(report.report_json).read_text())["title"] == "images: tells 2 classes of photos apart"
    assert [row["bytes"] is None for row in report.table] == [False, True]
    assert any(note.startswith("int8: ") and note.endswith("the bundle holds the float model") for note in report.notes)
    assert featcache.evaluate(report.bundle, tmp_path / "images").n == 12


@pytest.mark.slow
def test_run_of_the_demo_ships_what_val_allows(tmp_path: Path) -> None:
    """What scripts/demo does once .venv is there: each step goes on only if it cost at most two points on val.

    How much INT8 costs on digits hangs on the processor's integer kernels; scripts/bench_compress.py measures it.
    """
    pytest.importorskip("sklearn", reason="scikit-learn's digits are what the demo sees")
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from make_digits import write_digits
    finally:
        sys.path.pop(0)
    write_digits(tmp_path / "digits")
    report = featcache.run(tmp_path / "digits", out=tmp_path / "run")
    assert report.prune is not None
    pruning, quantization = (
        step["val_accuracy_float"] - step["val_accuracy_after_refit"] for step in (report.prune, report.quantize)
    )
    source = "pruned" if pruning <= 0.02 else "float"
    assert report.shipped == (f"int8 of {source}" if quantization <= 0.02 else source)
    assert len([note for note in report.notes if note.startswith("the loss of")]) == (pruning > 0.02) + (
        quantization > 0.02
    )
    rows = {row["model"]: row for row in report.table}
    assert rows["float"]["accuracy"] >= 0.96
    assert report.export["formats"]["onnx"]["bytes"] == rows[report.shipped.partition(" ")[0]]["bytes"]
    assert rows["int8"]["bytes"] < 0.5 * rows["pruned"]["bytes"] < 0.5 * rows["float"]["bytes"]
