"""Texts: whatever form their table has they are read to the character, or one line names the row and why not."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from featcache.datasets.listing import Listing
from featcache.datasets.splits import NO_SPLIT
from featcache.datasets.text_scan import scan_texts
from featcache.errors import FormatError, InputError, MissingError, SampleError
from featcache.extract.inputs.texts import read_text
from featcache.system.sources.opening import read_input
from featcache.system.sources.text_table import read_text_table

TEXTS = [
    '"Where", she asked; is it?',
    "two\nlines",
    "tab\there",
    "🙂 مرحبا بالعالم",
    " spaces ",
    "a\0b",
    "one\r\ntwo",
    "café",
]
LABELS = ["a", "b", "a", "b", "a", "b", "a", "b"]


PAIRS = tuple(zip(TEXTS, LABELS, strict=True))


def write_table(path: Path, rows=PAIRS, header=("text", "label"), **options) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, **options).writerows([header, *rows])
    return path


def write_lines(path: Path, values: list[object]) -> Path:
    path.write_text("\n".join(json.dumps(value, ensure_ascii=False) for value in values) + "\n", encoding="utf-8")
    return path


def texts_of(listing: Listing) -> list[str]:
    """Return what a build reads of each sample."""
    return [read_text(read_input(listing.absolute(index))[0]) for index in range(len(listing))]


def by_text(listing: Listing) -> dict[str, str | None]:
    return {
        text: listing.classes[label] if label >= 0 else None
        for text, label in zip(texts_of(listing), listing.labels.tolist(), strict=True)
    }


@pytest.mark.parametrize("form", ["csv", "semicolons.csv", "cr.csv", "mark.csv", "tsv", "jsonl", "parquet"])
def test_table_of_any_form_gives_the_same_texts(tmp_path: Path, form: str) -> None:
    """To the character: quotes, separators, line ends of both kinds, NUL, emoji, right-to-left, spaces around."""
    path = tmp_path / f"t.{form}"
    if form == "jsonl":
        write_lines(path, [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)])
    elif form == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"id": range(8), "text": TEXTS, "label": LABELS}), path)
    else:
        separator = {"tsv": "\t", "semicolons.csv": ";"}.get(form, ",")
        write_table(path, delimiter=separator, lineterminator="\r\n" if form == "cr.csv" else "\n")
    if form == "mark.csv":
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    listing = scan_texts(path)
    assert by_text(listing) == dict(zip(TEXTS, LABELS, strict=True))
    assert (listing.notes, listing.failures, listing.task) == ((), (), "classification")
    for index, text in enumerate(TEXTS):
        data, stat = read_input(listing.absolute(index))
        assert (data, stat) == (text.encode(), tuple(listing.stats[index].tolist()))
    assert len(np.unique(listing.stats, axis=0)) == len(TEXTS)


def test_columns_are_guessed_or_named(tmp_path: Path) -> None:
    rows = [("1", "good film", "0", "negative", "x"), ("2", "bad film", "1", "positive", "y")]
    path = write_table(tmp_path / "t.csv", rows, ("ID", "Sentence", "label", "label_text", "note"))
    listing = scan_texts(path)
    assert listing.classes == ("negative", "positive")  # names before numbers
    assert listing.notes == ("the labels are read from 'label_text', not from 'label': --label-column",)
    chosen = scan_texts(path, text_column="NOTE", label_column="label")
    assert by_text(chosen) == {"x": "0", "y": "1"}
    with pytest.raises(InputError, match=r"--text-column .* got 'body': it has 'ID', 'Sentence'"):
        scan_texts(path, text_column="body")
    with pytest.raises(InputError, match="two columns"):
        scan_texts(path, text_column="note", label_column="note")
    with pytest.raises(InputError, match=r"it has 'ID', 'what': name it with --text-column"):
        scan_texts(write_table(tmp_path / "u.csv", [("1", "x")], ("ID", "what")))
    unlabelled = scan_texts(write_table(tmp_path / "v.csv", [("x",)], ("text",)))
    assert by_text(unlabelled) == {"x": None} and "unlabelled" in unlabelled.notes[0]


def test_labels_are_classes_several_or_numbers_as_for_images(tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "t.jsonl", [{"text": "x", "labels": ["a", "b"]}, {"text": "y", "labels": ["a"]}])
    several = scan_texts(lines)
    assert several.task == "multilabel" and several.targets.tolist() == [[1, 1], [1, 0]]
    stars = write_lines(tmp_path / "u.jsonl", [{"review": "x", "stars": 4.5}, {"review": "y", "stars": None}])
    numbers = scan_texts(stars, task="regression")
    assert numbers.targets[0, 0] == 4.5 and numbers.labels.tolist() == [0, -1]


def test_folder_of_tables_called_as_splits_is_one_data_set(tmp_path: Path) -> None:
    write_table(tmp_path / "train.csv", [("a", "x"), ("b", "y")])
    write_table(tmp_path / "test.csv", [("c", "x")])
    listing = scan_texts(tmp_path)
    assert dict(zip(listing.paths, listing.given_splits.tolist(), strict=True)) == {
        "test.csv:2": 2, "train.csv:2": 0, "train.csv:3": 0,
    }  # fmt: skip
    assert scan_texts(tmp_path / "train.csv").given_splits.tolist() == [NO_SPLIT, NO_SPLIT]
    write_table(tmp_path / "more.csv", [("d", "x")])
    with pytest.raises(InputError, match=r"'more\.csv' .* name one table"):
        scan_texts(tmp_path)
    assert len(scan_texts(tmp_path, splits=False)) == 4


def test_column_of_splits_is_read_unless_told_otherwise(tmp_path: Path) -> None:
    path = write_table(
        tmp_path / "t.csv", [("a", "x", "Training"), ("b", "x", "dev"), ("c", "y", "")], ("text", "label", "split")
    )
    assert scan_texts(path).given_splits.tolist() == [0, 1, NO_SPLIT]
    assert scan_texts(path, splits=False).given_splits.tolist() == [NO_SPLIT] * 3


def test_class_folders_of_text_files_are_read_as_those_of_images(tmp_path: Path) -> None:
    for name, data in {"train/pos/1.txt": "good", "train/neg/2.TXT": "bad\r\n", "test/pos/3.txt": "\ufefffine"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data.encode())
    (tmp_path / "train/neg/4.txt").write_bytes("caf\u00e9".encode("cp1252"))
    (tmp_path / "train/neg/5.txt").write_bytes(b" \n")
    (tmp_path / "train/neg/6.jpg").write_bytes(b"x")
    listing = scan_texts(tmp_path)
    texts = {}
    for index, name in enumerate(listing.paths):
        try:
            texts[name] = read_text(read_input(listing.absolute(index))[0])
        except SampleError as error:
            texts[name] = f"failed: {error}"
    cp1252, empty = texts.pop("train/neg/4.txt"), texts.pop("train/neg/5.txt")
    assert texts == {"train/pos/1.txt": "good", "train/neg/2.TXT": "bad\r\n", "test/pos/3.txt": "fine"}
    assert listing.given_splits.tolist() == [2, 0, 0, 0, 0] and listing.classes == ("neg", "pos")
    assert cp1252.startswith("failed: ") and "cp1252" in cp1252 and empty == "failed: the text is empty"


def test_empty_texts_and_half_characters_are_failures_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    texts = ('"x"', '" "', '"\\ud83d"', "null")
    path.write_text("\n".join(f'{{"text": {text}, "label": "a"}}' for text in texts))
    listing = scan_texts(path)
    assert texts_of(listing) == ["x"]
    assert [name for name, _ in listing.failures] == ["t.jsonl:2", "t.jsonl:3", "t.jsonl:4"]
    assert "surrogate" in listing.failures[1][1]


def test_equal_texts_are_several_samples_of_one_digest(tmp_path: Path) -> None:
    listing = scan_texts(write_table(tmp_path / "t.csv", [("x", "a"), ("x", "b")]))
    assert texts_of(listing) == ["x", "x"] and listing.paths == ["t.csv:2", "t.csv:3"]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_line_of_many_megabytes_is_a_text(tmp_path: Path, ending: str) -> None:
    """Past the csv module's own bound, which stays what it was."""
    huge = "long text " * 300_000
    before = csv.field_size_limit()
    if ending == "csv":
        path = write_table(tmp_path / "t.csv", [(huge, "a"), ("x", "b")])
    else:
        path = write_lines(tmp_path / "t.jsonl", [{"text": huge, "label": "a"}, {"text": "x", "label": "b"}])
    assert [len(row.text) for row in read_text_table(path).rows] == [3_000_000, 1]
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("encoding", "name"),
    [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16 without its mark"), ("utf-16-be", "UTF-16 without its mark"),
     ("utf-32", "UTF-32"), ("latin-1", "Latin-1 or cp1252"), ("cp1252", "Latin-1 or cp1252")],
)  # fmt: skip
def test_other_encodings_are_refused_by_name(tmp_path: Path, encoding: str, name: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("text,label\nhello,a\ncaf\u00e9 au lait,b\n".encode(encoding))
    with pytest.raises(InputError, match=name) as caught:
        scan_texts(path)
    assert "UTF" in name or "line 3" in str(caught.value)


def test_east_asian_encodings_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("text,label\n今天的天气很好,a\n".encode("gb18030"))
    with pytest.raises(InputError, match="GB18030"):
        scan_texts(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "", "empty"),
        ("t.csv", "text,label\n", "a row below its header"),
        ("t.csv", "text,label\nHello, world,greeting\n", r"line 2 has 3 .*put quotes"),
        ("t.csv", 'text,label\n"never closed,a\nx,b\n', "each quote"),
        ("t.csv", "text,label\n,a\n", "at least one text"),
        ("t.csv", "text,Text,label\nx,y,a\n", "one column 'text'"),
        ("t.csv", "text,label,split\nx,a,foo\n", "split must be"),
        ("t.jsonl", '{"text": "x"}\nx\n', "line 2 is not"),
        ("t.jsonl", '{"text": "x"}\n[1]\n', "line 2"),
        ("t.jsonl", '{"text": "x"}\n{"text": 3}\n', "must be a string, line 2"),
        ("t.jsonl", '{"text": "x", "label": {"a": 1}}\n', "strings, numbers or lists"),
        ("t.jsonl", '{"text": "x", "label": ["a;b"]}\n', "must not hold ';'"),
        ("t.xlsx", "x", "must be one of"),
    ],
)  # fmt: skip
def test_table_that_cannot_be_read_is_refused_with_its_line(tmp_path: Path, name, content, message) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        scan_texts(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_places_without_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="does not exist"):
        scan_texts(tmp_path / "nowhere.csv")
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match=r"1 other files"):
        scan_texts(tmp_path)
    pytest.importorskip("pyarrow")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and more")
    with pytest.raises(FormatError, match="Parquet"):
        scan_texts(tmp_path / "t.parquet")


def test_parquet_of_other_types_is_read_as_text_or_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = {"text": pyarrow.array(["x", "y", None]).dictionary_encode(), "label": pyarrow.array([0, 1, 1])}
    parquet.write_table(pyarrow.table(table), tmp_path / "t.parquet")
    listing = scan_texts(tmp_path / "t.parquet")
    assert by_text(listing) == {"x": "0", "y": "1"} and listing.failures == (("t.parquet:3", "the text is empty"),)
    parquet.write_table(pyarrow.table({"text": [b"x"]}), tmp_path / "u.parquet")
    with pytest.raises(InputError, match="it holds binary"):
        scan_texts(tmp_path / "u.parquet")
