"""Tables: whatever program wrote them they are read, or one line names the first failing row and why."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from featcache.datasets.listing import Listing
from featcache.datasets.remarks import notes_on_training
from featcache.datasets.scan import scan
from featcache.datasets.splits import NO_SPLIT
from featcache.errors import InputError

IMAGES = ("a.jpg", "b.jpg", "img/c.jpg")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in IMAGES:
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "set"


def read(folder: Path, text: str | bytes, *, name: str = "t.csv", encoding: str = "utf-8", **options) -> Listing:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return scan(folder / name, **options)


def labels(listing: Listing) -> dict[str, str | None]:
    return {
        path: listing.classes[label] if label >= 0 else None
        for path, label in zip(listing.paths, listing.labels.tolist(), strict=True)
    }


RIGHT = {"a.jpg": "cat", "b.jpg": "dog, big"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("header", ["path{}label", " Path {} LABEL ", '"path"{}"label"', "label{}path"])
def test_table_of_any_program_is_read_alike(folder: Path, encoding: str, end: str, separator: str, header: str) -> None:
    cells = [("a.jpg", " cat"), ("b.jpg", '"dog, big"')]
    lines = [header.format(separator)]
    lines += [separator.join(reversed(row) if header.startswith("label") else row) for row in cells]
    listing = read(folder, end.join(lines) + end, encoding=encoding)
    assert labels(listing) == RIGHT
    assert listing.notes == ()


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\r\npath;label\r\na.jpg;cat\r\nb.jpg;dog, big\r\n",  # Excel's first line
        'path,label,,\na.jpg,cat,,\nb.jpg,"dog, big",,\n,,,\n',  # empty columns and rows of a spreadsheet
        '"a.jpg" , "cat"\n"b.jpg" , "dog, big"\n',
        'id,path,label,note\n1,a.jpg,cat,x\n2,b.jpg,"dog, big",y\n',
        '\n\npath,label\n\na.jpg,cat\n\nb.jpg,"dog, big"\n',
        'a.jpg,cat\nb.jpg,"dog, big"\n',
        'path,label\na,cat\nB,"dog, big"\n',
        'path,label\n./a.jpg,cat\nimg/../b.jpg,"dog, big"\n',
        'path,label\nA.JPG,cat\nb.JPG,"dog, big"\n',
        'path,label\nROOT/a.jpg,cat\nROOT/b.jpg,"dog, big"\n',
    ],
)
def test_table_of_another_form_is_read_alike(folder: Path, text: str) -> None:
    assert labels(read(folder, text.replace("ROOT", os.fspath(folder)))) == RIGHT


def test_backslashes_and_letter_case_find_the_file(folder: Path) -> None:
    listing = read(folder, "path,label\nimg\\c.jpg,cat\nIMG/C.JPG,cat\nb.jpg,dog\n")
    assert labels(listing) == {"img/c.jpg": "cat", "b.jpg": "dog"}


def test_ids_are_resolved_where_one_file_has_that_name(folder: Path) -> None:
    (folder / "img" / "b.jpg").write_bytes(b"x")
    listing = read(folder, "path,label\nc,cat\na,dog\nimg/b,dog\nzzz,cat\n")
    assert labels(listing) == {"img/c.jpg": "cat", "a.jpg": "dog", "img/b.jpg": "dog"}
    assert listing.failures == (("zzz", "cannot be read: No such file or directory"),)
    assert listing.notes == ("3 of 4 paths spelled otherwise than the file, first row 2: 'c' is 'img/c.jpg'",)
    (folder / "img" / "d.jpg").write_bytes(b"x")
    (folder / "d.jpg").write_bytes(b"x")
    (folder / "e").mkdir()
    (folder / "e" / "f.jpg").write_bytes(b"x")
    (folder / "img" / "f.jpg").write_bytes(b"x")
    assert read(folder, "path,label\na,cat\nf,dog\n").failures == (("f", "names 2 files: e/f.jpg, img/f.jpg"),)


def test_paths_relative_to_an_inner_folder_are_read_there(folder: Path) -> None:
    listing = read(folder, "path,label\nc.jpg,cat\n")
    assert labels(listing) == {"img/c.jpg": "cat"}
    assert listing.notes == ("the paths are read below img/, where the files are",)
    mixed = read(folder, "path,label\na.jpg,cat\nc.jpg,dog\n")  # where one row is found, the others are as they say
    assert labels(mixed) == {"a.jpg": "cat"}


def test_no_spelling_leaves_the_folder(folder: Path) -> None:
    outside = folder.parent / "out.jpg"
    outside.write_bytes(b"x")
    listing = read(folder, f"path,label\na.jpg,cat\n..\\out.jpg,cat\n{outside},dog\nimg\\..\\..\\out.jpg,dog\n")
    assert listing.paths == ["a.jpg"]
    assert len(listing.failures) == 3


@pytest.mark.parametrize("text", ["path\na.jpg\nb.jpg\n", "a.jpg\nb.jpg\n", "path,split\na.jpg,\nb.jpg,\n"])
def test_table_of_paths_alone_is_unlabelled(folder: Path, text: str) -> None:
    assert labels(read(folder, text)) == {"a.jpg": None, "b.jpg": None}


def test_tsv_is_a_table(folder: Path) -> None:
    assert labels(read(folder, "path\tlabel\na.jpg\tcat\nb.jpg\tdog, big\n", name="t.tsv")) == RIGHT


def test_table_without_header_says_how_it_is_read(folder: Path) -> None:
    listing = read(folder, "a.jpg;cat;train\nb.jpg;cat;test\n")
    assert listing.given_splits.tolist() == [0, 2]
    assert listing.notes == ("the table has no header: its columns are read as path,label,split",)


def test_split_column_reads_the_names_of_splits(folder: Path) -> None:
    listing = read(folder, "path,label,split\na.jpg,cat,Training\nb.jpg,cat,dev\nimg/c.jpg,cat,testing\n")
    assert listing.given_splits.tolist() == [0, 1, 2]
    assert set(scan(folder / "t.csv", splits=False).given_splits.tolist()) == {NO_SPLIT}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,label\nx.jpg,cat\na.txt,dog\n", "first failing row 2, 'x.jpg': cannot be read: No such file"),
        ("path,label\n../a.jpg,cat\n", "first failing row 2, '../a.jpg': the path leaves the folder"),
        ("path,label\na.jpg,cat, world\n", r"must have 2 cells, row 2 has 3 \('a.jpg,cat,world'\): put quotes"),
        ("path,label,split\na.jpg,cat, world\n", "got 'world' in row 2"),
        ("path,label\na.jpg,cat\na.jpg,dog\n", "in row 2 with the label 'cat', in row 3 with 'dog'"),
        ("path,label\na.jpg,cat\n./a.jpg,dog\n", "in row 2 with the label 'cat', in row 3 with 'dog'"),
        ("path,label,split\na.jpg,cat,train\na.jpg,cat,test\n", "the split 'train', in row 3 with 'test'"),
        ('path,label\na.jpg,"cat\nb.jpg,dog\n', "that of row 2 is not"),
        ("path,label\n", "has none"),
        ("", "is empty"),
        ("path,class\na.jpg,cat\n", "rename the column"),
        ("path,label,label\na.jpg,cat,x\n", "one column 'label'"),
        (b"path,label\na.jpg,cat\nb.jpg,caf\xe9\n", r"must be UTF-8 text, row 3 has 'caf\\xe9', as Latin-1 or cp1252"),
        (b"path,label\r\na.jpg,cat\r\ncaf\xe9.jpg,\x93q\x94\r\n", "must be UTF-8 text, row 3"),
        (b"path,label\ncaf\xe9.jpg,cat\n", r"must be UTF-8 text, row 2 has 'caf\\xe9.jpg'"),
        ("path,label\na.jpg,cat\n".encode("utf-16-le"), "UTF-16 without its mark"),
        ("path,label\na.jpg,cat\n".encode("utf-16")[:-1], "breaks off"),
    ],
)  # fmt: skip
def test_table_that_cannot_be_read_is_refused_with_its_row(folder: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        read(folder, text)
    assert "\n" not in str(caught.value)


def test_file_name_that_is_not_utf8_is_still_found(folder: Path) -> None:
    name = b"caf\xe9.jpg"
    (folder / os.fsdecode(name)).write_bytes(b"x")
    listing = read(folder, b"path,label\n" + name + b",cat\n")
    assert listing.paths == [os.fsdecode(name)]


def test_lines_are_counted_as_an_editor_does(folder: Path) -> None:
    with pytest.raises(InputError, match="row 6"):
        read(folder, 'sep=,\n\npath,label\na.jpg,"two\nlines"\nb.jpg,cat,dog\n')


def test_exact_repeat_is_merged_with_a_note(folder: Path) -> None:
    listing = read(folder, "path,label\na.jpg,cat\nb.jpg,dog\na.jpg,cat\n./a.jpg, cat\n")
    assert labels(listing) == {"a.jpg": "cat", "b.jpg": "dog"}
    assert listing.notes == ("2 rows repeating another merged, first row 4, as row 2",)


def test_one_label_with_a_semicolon_is_said_to_make_a_table_multilabel(folder: Path) -> None:
    text = "path,label\na.jpg,rock; pop\nb.jpg,jazz\n"
    listing = read(folder, text)
    assert (listing.task, listing.classes) == ("multilabel", ("jazz", "pop", "rock"))
    [note] = listing.notes
    assert note.startswith("the labels are read as multi-label: 1 of 2 rows with several between ';', first row 2")
    assert read(folder, text, task="multilabel").notes == ()
    with pytest.raises(InputError, match="'rock; pop' in row 2"):
        read(folder, text, task="classification")


@pytest.mark.parametrize("text", ["", "nan", "NaN", "inf", "-inf", "1_000", "1e39", "n/a", "None", "١"])
def test_target_that_is_no_finite_number_is_unlabelled(folder: Path, text: str) -> None:
    listing = read(folder, f"path,label\na.jpg,1.5\nb.jpg,{text}\nimg/c.jpg,-2e1\n", task="regression")
    assert listing.labels.tolist() == [0, -1, 0]
    assert listing.targets is not None
    assert listing.targets[[0, 2]].tolist() == [[1.5], [-20.0]]
    assert listing.notes == (f"1 of 3 rows unlabelled, without a finite number: first row 3 has {text!r}",)


def test_one_bad_number_of_several_leaves_the_row_unlabelled(folder: Path) -> None:
    listing = read(folder, "path,label\na.jpg,1;2\nb.jpg,3;nan\n", task="regression")
    assert listing.labels.tolist() == [0, -1]
    with pytest.raises(InputError, match="must hold 2 numbers, got '3' in row 3"):
        read(folder, "path,label\na.jpg,1;2\nb.jpg,3\n", task="regression")


def test_numbers_read_as_classes_are_pointed_out(folder: Path) -> None:
    assert "2 classes: --task regression" in read(folder, "path,label\na.jpg,1.5\nb.jpg,2.5\n").notes[0]
    assert read(folder, "path,label\na.jpg,0\nb.jpg,1\n").notes == ()
    assert "'1', '1.0' look alike" in read(folder, "path,label\na.jpg,1\nb.jpg,1.0\n").notes[1]


def test_label_that_train_has_not_stands_and_is_said(folder: Path) -> None:
    listing = read(folder, "path,label,split\na.jpg,cat,train\nb.jpg,dog,train\nimg/c.jpg,?,test\n")
    assert labels(listing) == {"a.jpg": "cat", "b.jpg": "dog", "img/c.jpg": "?"}
    assert "got none for ['?']" in notes_on_training(listing)[0]
