"""Texts from table to head: what a build reads again, what it refuses; nothing about a row depends on others."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from text_encoders import SENTENCES, write_encoder

import featcache
from featcache.backbone.text import load_text_backbone
from featcache.engines.text import open_text_engine
from featcache.errors import FeatcacheError, InputError, RecipeMismatchError
from featcache.extract.build import build_cache, build_caches
from featcache.extract.inputs import find_input, input_of

ROWS = [(f"{text} {number}", "short" if len(text) < 20 else "long") for number, text in enumerate(SENTENCES)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny")


def write_table(path: Path, rows: list[tuple[str, str]], header: tuple[str, ...] = ("text", "label")) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def settle(path: Path) -> None:
    """Make a file older than git's rule for files that were just changed."""
    past = path.stat().st_mtime - 60
    os.utime(path, (past, past))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("texts") / "cards.csv", ROWS)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, table: Path, encoder: Path) -> Path:
    place = tmp_path_factory.mktemp("cache") / "cards"
    report = build_cache(table, place, backbone=str(encoder), engine="torch", precision="fp32", dtype="float32")
    assert (report.extracted, report.failed, report.num_features) == (len(ROWS), 0, 32)
    return place


def test_rows_are_those_of_the_engine_whatever_was_computed_beside_them(cache: Path, encoder: Path) -> None:
    backbone = load_text_backbone(encoder)
    with featcache.open_cache(cache) as opened, open_text_engine(backbone, engine="torch", precision="fp32") as engine:
        samples = opened.samples()
        with opened.reader() as reader:
            rows = opened.gather(reader.find(samples.digests), output=["features"])
        for index in range(0, len(ROWS), 5):
            text = ROWS[int(samples.paths[index].rpartition(":")[2]) - 2][0]
            np.testing.assert_array_equal(rows[index], engine.run(backbone.tokenizer.encode([text]))[0][0])


def test_cache_of_texts_says_so_in_its_recipe_and_samples(cache: Path) -> None:
    with featcache.open_cache(cache) as opened:
        recipe = opened.recipe
        assert (recipe.input, recipe.decoder, recipe.orientation, recipe.views) == ("text", "utf-8", "none", 1)
        assert featcache.Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
        assert opened.samples().listing.input == "text"
        with pytest.raises(InputError, match="needs a backbone of images"):
            _ = recipe.image_preprocessing


def test_head_trains_from_a_cache_of_texts(cache: Path) -> None:
    result = featcache.train_head(cache)
    assert result.classes == ("long", "short") and result.val_accuracy is not None


def test_second_build_reads_nothing_and_a_changed_row_alone_is_computed(tmp_path: Path, encoder: Path) -> None:
    table = write_table(tmp_path / "t.csv", ROWS)
    settle(table)
    options = {"backbone": str(encoder), "engine": "torch"}
    build_cache(table, tmp_path / "cache", **options)  # type: ignore[arg-type]
    assert build_cache(table, tmp_path / "cache").reused == len(ROWS)
    rows = [ROWS[1], ROWS[0], ("entirely new", "long"), *ROWS[3:], (ROWS[0][0], "short")]
    write_table(table, rows)
    report = build_cache(table, tmp_path / "cache")
    assert (report.extracted, report.images, report.rows) == (1, len(ROWS) + 1, len(ROWS) + 1)
    with featcache.open_cache(tmp_path / "cache") as opened:
        digests = opened.samples().digests
        assert digests[1].tobytes() == digests[-1].tobytes()


def test_labels_of_another_column_cost_no_row(tmp_path: Path, encoder: Path) -> None:
    rows = [(text, label, str(len(text) % 2)) for text, label in ROWS]
    table = write_table(tmp_path / "t.csv", rows, ("body", "label", "odd"))  # type: ignore[arg-type]
    options = {"backbone": str(encoder), "engine": "torch"}
    build_cache(table, tmp_path / "cache", input_options={"label_column": "label"}, **options)  # type: ignore[arg-type]
    report = build_cache(table, tmp_path / "cache", input_options={"text_column": "body", "label_column": "odd"})
    assert report.extracted == 0
    with featcache.open_cache(tmp_path / "cache") as opened:
        assert opened.samples().classes == ("0", "1") and opened.samples().paths[0] == "t.csv:body:2"


def test_texts_that_are_none_fail_with_their_line(tmp_path: Path, encoder: Path) -> None:
    for name, data in {"a/1.txt": b"my card", "b/2.txt": b"where", "b/3.txt": b"\xff\xfeh\0", "b/4.txt": b" "}.items():
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_bytes(data)
    report = build_cache(tmp_path / "texts", tmp_path / "cache", backbone=str(encoder), engine="torch")
    failures = dict(report.failures)
    assert report.extracted == 2 and set(failures) == {"b/3.txt", "b/4.txt"}
    assert "UTF-16" in failures["b/3.txt"] and failures["b/4.txt"] == "the text is empty"


def test_settings_of_texts_stand_in_the_recipe_and_are_kept(tmp_path: Path, table: Path, encoder: Path) -> None:
    options = {"max_length": 12, "prefix": "query: ", "pooling": "cls", "normalize": False}
    build_cache(table, tmp_path / "cache", backbone=str(encoder), engine="torch", input_options=options)
    with featcache.open_cache(tmp_path / "cache") as opened:
        said = opened.recipe.preprocessing.to_json()
        assert {name: said[name] for name in options} == options
    assert build_cache(table, tmp_path / "cache").extracted == 0
    with pytest.raises(RecipeMismatchError, match=r"preprocessing\.max_length: the cache has 12"):
        build_cache(table, tmp_path / "cache", input_options={"max_length": 20})


def test_several_encoders_share_one_pass(tmp_path: Path, table: Path, encoder: Path) -> None:
    other = write_encoder(tmp_path / "other", pooling={"pooling_mode_cls_token": True})
    reports = build_caches(table, tmp_path / "caches", backbone=[str(encoder), str(other)], engine="torch")
    assert [report.extracted for report in reports] == [len(ROWS)] * 2
    assert len({report.fingerprint for report in reports}) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "texts need an encoder"),
        ({"backbone": "ENCODER", "input_options": {"window": 3}}, "'window'.*text_column, label_column, max_length"),
        ({"backbone": "ENCODER", "mean": (0.5, 0.5, 0.5)}, "--mean belongs to images"),
        ({"backbone": "ENCODER", "views": 2}, "one view"),
        ({"backbone": "ENCODER", "input": "sound"}, "input kind must be one of"),
        ({"backbone": "ENCODER", "outputs": ["stage1"]}, "mean-1"),
    ],
)
def test_what_texts_do_not_have_is_refused_by_name(
    tmp_path: Path, table: Path, encoder: Path, options: dict[str, object], message: str
) -> None:
    given = {name: str(encoder) if value == "ENCODER" else value for name, value in options.items()}
    with pytest.raises(FeatcacheError, match=message):
        build_cache(table, tmp_path / "cache", **given)  # type: ignore[arg-type]
    assert not (tmp_path / "cache").exists()


def test_images_into_a_cache_of_texts_are_refused(cache: Path, photos: Path) -> None:
    with pytest.raises(InputError, match="kind 'text', got 'image'"):
        build_cache(photos, cache)


def test_kind_of_a_place_is_told_by_what_it_holds(tmp_path: Path, table: Path, photos: Path) -> None:
    paths = write_table(tmp_path / "photos.csv", [("cat/00.jpg", "cat")], ("path", "label"))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("a")
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.jpg").write_bytes(b"x")
    write_table(tmp_path / "mixed" / "labels.csv", ROWS[:2])
    places = (table, photos, paths, tmp_path / "notes", tmp_path / "mixed")
    assert [input_of(place).name for place in places] == ["text", "image", "image", "text", "image"]
    assert input_of(tmp_path / "photos.csv", {"max_length": 5}).name == "text"
    assert find_input("text").show("été".encode(), side=64) == ("text/plain; charset=utf-8", "été".encode())
