"""`run`: the whole job, also where a step does not lead on."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import featcache
from featcache.errors import BudgetError, InputError, VerificationError

ROOT = Path(__file__).resolve().parent.parent.parent


def draw_shades(folder: Path) -> None:
    """Write two classes that are easily told apart, 12 images of each to train on, 6 for val, 6 for test."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6), ("test", 6)):
        for label, shade in (("dark", 40), ("light", 200)):
            place = folder / split / label
            place.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(generator.normal(shade, 20, (40, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")


def test_an_int8_file_that_answers_otherwise_here_leaves_the_model_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_shades(tmp_path / "images")
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
    assert (
        json.loads(Path(report.report_json).read_text(encoding="utf-8"))["title"]
        == "images: tells 2 classes of photos apart"
    )
    assert [row["bytes"] is None for row in report.table] == [False, True]
    assert any(note.startswith("int8: ") and note.endswith("the bundle holds the float model") for note in report.notes)
    assert featcache.evaluate(report.bundle, tmp_path / "images").n == 12


def test_a_run_with_minutes_ships_the_smallest_that_keeps_up(tmp_path: Path) -> None:
    draw_shades(tmp_path / "images")
    report = featcache.run(
        tmp_path / "images", out=tmp_path / "out", backbone="test_efficientnet", weights="random:0", max_drop=0.3,
        budget_minutes=0.001,
    )  # fmt: skip
    assert [row["model"] for row in report.table] == ["float", "small"]
    assert report.compress is not None and report.prune is None and report.quantize is None
    assert report.shipped == "int8"
    whole, small = (row["bytes"] for row in report.table)
    assert small < 0.6 * whole
    assert "What was tried" in Path(report.report_html).read_text(encoding="utf-8")
    assert featcache.evaluate(report.bundle, tmp_path / "images").n == 12


def test_a_val_split_too_small_to_search_by_is_said_and_the_run_goes_on(tmp_path: Path) -> None:
    draw_shades(tmp_path / "images")
    report = featcache.run(
        tmp_path / "images", out=tmp_path / "out", backbone="test_efficientnet", weights="random:0", prune_amount=0.0,
        max_drop=0.01, budget_minutes=1,
    )  # fmt: skip
    assert report.compress is None and report.quantize is not None
    assert any("at least 100 labelled images" in note for note in report.notes)


def test_a_budget_that_nothing_meets_ships_the_float_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BudgetError("no model stays within --max-drop", best={"name": "int8"})

    monkeypatch.setattr("featcache.pipeline.compressing.compress", refuse)
    draw_shades(tmp_path / "images")
    report = featcache.run(
        tmp_path / "images", out=tmp_path / "out", backbone="test_efficientnet", weights="random:0", max_drop=0.3,
        budget_minutes=1,
    )  # fmt: skip
    assert report.shipped == "float" and [row["model"] for row in report.table] == ["float"]
    assert "the float model ships: no model stays within --max-drop" in report.notes


def test_minutes_must_be_above_zero(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--budget-minutes must be above 0, got 0"):
        featcache.run(tmp_path / "images", out=tmp_path / "out", budget_minutes=0)


@pytest.mark.long
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


def test_run_without_a_test_split_shows_val_and_how_long_each_step_took(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The column is named so; a line for each step in order; a note that several steps have is said once."""
    from featcache.cli.verbs import app

    draw_shades(tmp_path / "images")
    shutil.rmtree(tmp_path / "images" / "test")
    arguments = [str(tmp_path / "images"), "--out", str(tmp_path / "out"), "--backbone", "test_efficientnet"]
    app(["run", *arguments, "--weights", "random:0", "--prune-amount", "0"], standalone_mode=False)
    said = capsys.readouterr()
    rows = said.out.splitlines()
    assert rows[0].split() == ["model", "val", "accuracy", "bytes", "latency"]
    assert [row.split()[0] for row in rows[1:3]] == ["float", "int8"]
    assert all("%" in row for row in rows[1:3])
    lines = said.err.splitlines()
    steps = [line.split(":")[0] for line in lines if re.fullmatch(r"[a-z]+: +\d+\.\d s", line)]
    assert steps == ["build", "train", "merge", "quantize", "export", "report"]
    notes = [line for line in lines if line.startswith("note: ")]
    assert len(notes) == len(set(notes))
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert [row["accuracy"] for row in report["table"]] == [None, None]
    assert report["table"][0]["val_accuracy"] == report["run"]["train"]["val_accuracy"]
    assert report["table"][1]["val_accuracy"] == report["run"]["quantize"]["val_accuracy_after_refit"]


def test_each_note_of_a_run_is_there_once_and_each_step_has_its_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps that note the same are one note; the seconds are of the verbs that ran, in their order."""
    compression = importlib.import_module("featcache.compression")
    usual = compression.quantize

    def quantize(*arguments, **options):
        result = usual(*arguments, **options)
        return dataclasses.replace(result, notes=("twice", "twice", *result.notes))

    monkeypatch.setattr(compression, "quantize", quantize)
    draw_shades(tmp_path / "images")
    report = featcache.run(
        tmp_path / "images", out=tmp_path / "out", backbone="test_efficientnet", weights="random:0", prune_amount=0.0
    )
    assert report.notes.count("twice") == 1
    assert list(report.seconds_by_step) == ["build", "train", "merge", "quantize", "export", "report"]
    assert all(seconds > 0 for seconds in report.seconds_by_step.values())
    assert report.to_json()["seconds_by_step"] == report.seconds_by_step
