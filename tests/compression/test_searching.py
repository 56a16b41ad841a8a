"""A budget of accuracy: what is tried for it, what is chosen, and that it can say no."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_models import merged, write_split_photos

from featcache import evaluate, export, open_cache
from featcache.compression import attempts
from featcache.compression.attempts import Attempts
from featcache.compression.candidates import Candidate, is_within, paired_drop, pareto_front, zoom
from featcache.compression.refitting import open_source
from featcache.compression.searching import CompressSearch, search
from featcache.errors import BudgetError, ExistsError, InputError, MissingError
from featcache.extract.build import build_cache
from featcache.formats.registry import find_target, target_names
from featcache.model.directory import load_model, save_model
from featcache.model.merging import merge
from featcache.train.fit import train_head
from featcache.train.options import LinearOptions


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos of two colours that are easily told apart, a cache and a float model of them."""
    folder = tmp_path_factory.mktemp("search")
    photos = write_split_photos(folder, {"train": 12, "val": 10, "test": 6}, size=(90, 80))
    return merged(photos, folder, "test_efficientnet")


def candidate(name: str, *, accuracy: float, size: int) -> Candidate:
    return Candidate(name, (name,), "", accuracy, 0, 0, 0, 0, 0, True, size, 1, 1, 1.0, 1.0)


def test_a_search_that_was_killed_goes_on_to_a_smaller_model_within_the_budget(place: Path, tmp_path: Path) -> None:
    """It is written with all that was tried; what was tried before the kill is not made again."""

    def search_once(say: Callable[[str], None]) -> CompressSearch:
        return search(
            place / "model", cache=place / "cache", out=tmp_path / "small", max_drop=0.4, max_minutes=0.2, say=say
        )

    def stop(line: str) -> None:
        raise KeyboardInterrupt

    def look(line: str) -> None:
        lines.append(line)
        seen.add((tmp_path / "small.work" / "float.json").read_bytes())

    with pytest.raises(KeyboardInterrupt):
        search_once(stop)
    done = (tmp_path / "small.work" / "float.json").read_bytes()
    assert not (tmp_path / "small").exists()
    lines: list[str] = []
    seen: set[bytes] = set()
    found = search_once(look)
    assert seen == {done}  # seconds and all: it was not made again
    assert found.bytes_after < 0.5 * found.bytes_before
    assert found.split == "test" and found.n == 12
    model = load_model(tmp_path / "small")
    assert model.lineage[-1]["verb"] == "compress"
    assert model.lineage[-1]["steps"] == found.chosen["steps"]
    with open(found.candidates_csv, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == found.candidates == len(lines) >= 2
    assert rows[0]["name"] == "float" and float(rows[0]["drop"]) == 0
    assert found.bytes_after <= 1.01 * min(float(row["bytes"]) for row in rows if row["meets"] == "True")
    assert not (tmp_path / "small.work").exists()
    with pytest.raises(ExistsError):
        search(place / "model", cache=place / "cache", out=tmp_path / "small", max_drop=0.4)
    for name in ("onnx", "openvino"):
        report = export(tmp_path / "small", out=tmp_path / name, formats=[name], images=place / "photos")
        assert report.formats[name].executed
    measured = evaluate(tmp_path / "onnx", place / "photos")
    assert measured.accuracy == pytest.approx(found.accuracy_after_refit)  # from image bytes, in the other process


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.target
def test_every_format_answers_photos_as_what_was_chosen(place: Path, tmp_path: Path) -> None:
    """From the saved JSON and safetensors, in a fresh process, in each format whose tools are here."""
    found = search(place / "model", cache=place / "cache", out=tmp_path / "small", max_drop=0.4, max_minutes=0.2)
    formats = [name for name in target_names() if find_target(name).available() is None]
    command = [
        sys.executable, "-c", "from featcache.cli import main; main()", "export", tmp_path / "small", "--json",
            "--out", tmp_path / "bundle", "--format", ",".join(formats), "--images", place / "photos",
        ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    exported = json.loads(done.stdout)["formats"]
    assert set(exported) == set(formats) and {"onnx", "openvino"} <= set(formats)
    for name, entry in exported.items():
        assert entry["n_compared"] == found.n, name
        assert not entry["executed"] or entry["accuracy"] == pytest.approx(found.accuracy_after_refit), name


def test_channels_that_cannot_go_end_nothing(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> object:
        raise InputError("--amount must be at most 0.04 for this network, got 0.3")

    monkeypatch.setattr(attempts, "prune", refuse)
    with open_cache(place / "cache") as cache:
        tried = Attempts(open_source(place / "model", cache), tmp_path, 0.4, "size", 60.0, print)
        assert not tried._narrowed(candidate("float", accuracy=0.9, size=100), 0.3)
    assert tried.notes == ["channels, 30% of parameters: --amount must be at most 0.04 for this network, got 0.3"]


def test_a_candidate_that_would_not_end_in_time_is_not_begun(place: Path, tmp_path: Path) -> None:
    """By what the last of its kind took; one of a new kind is begun while there is any time."""
    begun: list[Path] = []

    def make(out: Path) -> None:
        begun.append(out)
        save_model(load_model(place / "model"), out)

    with open_cache(place / "cache") as cache:
        tried = Attempts(open_source(place / "model", cache), tmp_path, 0.4, "size", 60.0, print)
        tried._try("float", (), make)
        tried._try("float-int8", ("int8",), make)
        tried.candidates["float-int8"] = replace(tried.candidates["float-int8"], seconds=100.0)
        assert tried._try("other-int8", ("channel 50% of parameters", "int8"), make) is None
        assert tried._try("other", ("channel 50% of parameters",), make) is not None
        tried.seconds = 0.0
        assert tried._try("last", ("head",), make) is None
    assert [out.name for out in begun] == ["float", "float-int8", "other"]


def test_a_head_of_half_the_features_is_tried_where_all_are_read(place: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    with open_cache(place / "cache") as cache:
        tried = Attempts(open_source(place / "model", cache), tmp_path, 0.4, "size", 600.0, lines.append)
        whole = tried._try("float", (), lambda out: save_model(tried.source.model, out, golden=tried.source.golden))
        assert whole is not None
        narrow = tried._without_ignored(whole)
    assert narrow.name == "head" and narrow.parameters < whole.parameters
    assert narrow.steps[0].startswith("head of ") and len(lines) == 2
    assert load_model(narrow.model).fitted_head.num_features < tried.source.model.fitted_head.num_features
    assert (Path(narrow.model) / "golden").exists()  # what will ship is compared with it


def test_images_that_are_gone_are_one_line(place: Path, tmp_path: Path) -> None:
    lost = tmp_path / "gone"
    shutil.copytree(place / "photos", lost)
    build_cache(lost, tmp_path / "other", backbone="test_efficientnet", weights="random:3", precision="fp32")
    train_head(tmp_path / "other", head=LinearOptions(l2=0.1)).save(tmp_path / "head")
    merge(tmp_path / "head", tmp_path / "other", out=tmp_path / "model")
    shutil.rmtree(lost)
    with pytest.raises(MissingError, match="gone") as caught:
        search(tmp_path / "model", cache=tmp_path / "other", out=tmp_path / "s", max_drop=0.4)
    assert "\n" not in str(caught.value)


def test_a_search_of_another_budget_does_not_go_on_with_the_work_left(place: Path, tmp_path: Path) -> None:
    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(place / "model", cache=place / "cache", out=tmp_path / "s", max_drop=0.4, say=stop)
    with pytest.raises(InputError, match="another call: delete it, or give --overwrite"):
        search(place / "model", cache=place / "cache", out=tmp_path / "s", max_drop=0.3)
    before = json.loads((tmp_path / "s.work" / "search.json").read_bytes())
    with pytest.raises(KeyboardInterrupt):
        search(place / "model", cache=place / "cache", out=tmp_path / "s", max_drop=0.3, overwrite=True, say=stop)
    assert json.loads((tmp_path / "s.work" / "search.json").read_bytes()) != before  # begun anew


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "watts"}, "--target"),
        ({"max_drop": -0.1}, "--max-drop"),
        ({"max_drop": 1.0}, "--max-drop"),
        ({"max_minutes": 0}, "--max-minutes"),
        ({"max_drop": 0.01}, "at least 100 labelled images"),
    ],
)
def test_bad_input_is_one_line(place: Path, tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        search(place / "model", cache=place / "cache", out=tmp_path / "s", **settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "s").exists()


def test_the_error_of_a_budget_names_the_best(place: Path) -> None:
    from featcache.compression.searching import _choose

    whole = candidate("float", accuracy=0.9, size=100)
    lossy = Candidate("int8", ("int8",), "", 0.5, 0.4, 0.3, 0.5, 0, 40, False, 30, 1, 1, 1.0, 1.0)
    with pytest.raises(BudgetError, match=r"best: int8, 40\.00% lost") as caught:
        _choose([whole, lossy], "bytes")
    assert caught.value.best is not None and caught.value.best["name"] == "int8"


def test_of_models_that_cost_the_same_the_one_that_loses_least_is_taken() -> None:
    from featcache.compression.searching import _choose

    def made(name: str, size: int, drop: float) -> Candidate:
        return Candidate(name, (name,), "", 0.9, drop, 0, 0, 0, 0, True, size, 1, 1, 1.0, 1.0)

    float_model, rough = made("float", 1000, 0.0), made("rough", 499, 0.01)
    trained, larger = made("trained", 500, 0.0), made("larger", 600, -0.01)
    assert _choose([float_model, rough, trained, larger], "bytes").name == "trained"


def test_flips_decide_the_interval_not_the_accuracies() -> None:
    """Two models of equal accuracy that differ on many images are less surely equal than two that differ on none."""
    rng = np.random.default_rng(0)
    before = rng.random(200) < 0.8
    same = paired_drop(before, before)
    swapped = paired_drop(before, np.roll(before, 1))
    assert same[0] == swapped[0] == 0
    assert same[1] < 0 < same[2] < swapped[2]


def test_views_of_an_image_count_once_and_narrow_the_interval() -> None:
    """Flips that only one view of five has say less than images that are lost in all of them."""
    before = np.ones((200, 5), dtype=bool)
    once, always = before.copy(), before.copy()
    once[:20, 0] = always[:4] = False
    assert paired_drop(before, once)[0] == paired_drop(before, always)[0] == pytest.approx(0.02)
    widths = [high - low for _, low, high in (paired_drop(before, once), paired_drop(before, always))]
    assert widths[0] < widths[1]
    repeated = np.repeat(always[:, :1], 5, axis=1)
    assert paired_drop(before, repeated) == pytest.approx(paired_drop(before[:, 0], always[:, 0]))


def test_the_smallest_of_many_has_to_be_a_little_better_than_the_budget() -> None:
    before = np.ones(341, dtype=bool)
    flips = before.copy()
    flips[:3] = False
    assert is_within(paired_drop(before, flips), 0.0125) and not is_within(paired_drop(before, flips), 0.01)
    assert is_within(paired_drop(before, before), 0.0)


def test_zooms_show_the_corners_in_full_size() -> None:
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:3] = pixels[:, :5] = 200  # outside the last corner's zoom, which begins at row 4 and column 6
    assert zoom(pixels, 0) is pixels
    corners = [zoom(pixels, view) for view in range(1, 5)]
    assert {corner.shape for corner in corners} == {pixels.shape}
    assert [corner.any() for corner in corners] == [True, True, True, False]


def test_the_frontier_holds_what_none_beats() -> None:
    ones = [
        candidate("a", accuracy=0.9, size=100), candidate("b", accuracy=0.8, size=50),
        candidate("c", accuracy=0.7, size=60), candidate("d", accuracy=0.8, size=40),
    ]  # fmt: skip
    assert [one.name for one in pareto_front(ones, cost="bytes")] == ["d", "a"]
