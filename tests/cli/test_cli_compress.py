"""`compress` on the command line: what it prints, and how it says no."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_models import merged, write_split_photos
from typer.testing import CliRunner

from featcache.cli import app
from featcache.errors import BudgetError, InputError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compress")
    photos = write_split_photos(folder, {"train": 8, "val": 6, "test": 4}, size=(80, 80))
    return merged(photos, folder, "test_efficientnet")


@pytest.mark.long
def test_what_was_chosen_and_tried_is_one_json_object(place: Path, tmp_path: Path) -> None:
    command = ["compress", str(place / "model"), "--cache", str(place / "cache"), "--out", str(tmp_path / "small")]
    done = CliRunner().invoke(app, [*command, "--max-drop", "0.5", "--max-minutes", "0.01", "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["candidates"] == len(result["tried"]) >= 2
    assert set(result["chosen"]) >= {"steps", "bytes", "latency_ms"}
    assert Path(result["candidates_csv"]).is_file()
    keys = {"parameters", "macs", "bytes_before", "bytes_after", "split", "n", "accuracy_float", "accuracy_after_refit"}
    assert set(result) >= keys
    page = (tmp_path / "small" / "compression" / "report.html").read_text(encoding="utf-8")
    assert "What was tried" in page and "<circle" in page


def test_a_split_too_small_is_said_before_anything_is_computed(place: Path, tmp_path: Path) -> None:
    command = ["compress", str(place / "model"), "--cache", str(place / "cache"), "--out", str(tmp_path / "small")]
    done = CliRunner().invoke(app, [*command, "--max-drop", "0.01"])
    assert isinstance(done.exception, InputError)
    assert "at least 100 labelled images" in str(done.exception)
    assert not (tmp_path / "small.work").exists()


def test_a_budget_that_cannot_be_met_prints_the_best(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BudgetError("no model", best={"name": "int8", "drop": 0.2})

    monkeypatch.setattr("featcache.pipeline.compressing.compress", refuse)
    command = ["compress", str(place / "model"), "--cache", str(place / "cache"), "--out", str(tmp_path / "small")]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert isinstance(done.exception, BudgetError)
    assert json.loads(done.stdout) == {"best": {"name": "int8", "drop": 0.2}}
