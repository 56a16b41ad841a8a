"""Scanning: which files are images, what their labels and splits are, and what is refused or recorded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from featcache.datasets.scan import scan
from featcache.datasets.splits import NO_SPLIT
from featcache.errors import InputError, MissingError


def touch(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def labels(folder: Path, **kwargs) -> dict[str, str | None]:
    listing = scan(folder, **kwargs)
    return {
        path: listing.classes[label] if label >= 0 else None
        for path, label in zip(listing.paths, listing.labels.tolist(), strict=True)
    }


def test_class_folders_are_labels_and_other_files_are_ignored(tmp_path: Path) -> None:
    touch(tmp_path / "cat" / "a.JPG")
    touch(tmp_path / "cat" / "deep" / "b.jpeg")
    touch(tmp_path / "dog" / "c.PnG")
    touch(tmp_path / "dog" / "notes.txt")
    touch(tmp_path / ".git" / "d.jpg")
    listing = scan(tmp_path)
    assert labels(tmp_path) == {"cat/a.JPG": "cat", "cat/deep/b.jpeg": "cat", "dog/c.PnG": "dog"}
    assert listing.ignored == 1
    assert set(listing.given_splits.tolist()) == {NO_SPLIT}


@pytest.mark.parametrize(("folder", "code"), [("train", 0), ("val", 1), ("valid", 1), ("Validation", 1), ("test", 2)])
def test_split_folders_above_class_folders(tmp_path: Path, folder: str, code: int) -> None:
    touch(tmp_path / folder / "cat" / "a.jpg")
    listing = scan(tmp_path)
    assert listing.classes == ("cat",)
    assert listing.given_splits.tolist() == [code]


def test_a_class_called_test_beside_other_classes_is_a_class(tmp_path: Path) -> None:
    touch(tmp_path / "test" / "a.jpg")
    touch(tmp_path / "exam" / "b.jpg")
    assert labels(tmp_path) == {"test/a.jpg": "test", "exam/b.jpg": "exam"}


def test_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    touch(tmp_path / "a.jpg")
    assert labels(tmp_path) == {"a.jpg": None}


def test_csv_labels_and_splits(tmp_path: Path) -> None:
    touch(tmp_path / "x" / "a.jpg")
    touch(tmp_path / "b.png")
    (tmp_path / "set.csv").write_text("path,label,split\nx/a.jpg,cat,train\nx/../b.png,dog,valid\n")
    listing = scan(tmp_path / "set.csv")
    assert listing.paths == ["b.png", "x/a.jpg"]
    assert listing.given_splits.tolist() == [1, 0]
    assert listing.task == "classification"


def test_csv_multilabel_and_regression(tmp_path: Path) -> None:
    touch(tmp_path / "a.jpg")
    touch(tmp_path / "b.jpg")
    (tmp_path / "set.csv").write_text("path,label\na.jpg,red;round\nb.jpg,round\n")
    listing = scan(tmp_path / "set.csv")
    assert listing.task == "multilabel"
    assert listing.classes == ("red", "round")
    assert listing.targets is not None
    assert listing.targets.tolist() == [[1, 1], [0, 1]]
    (tmp_path / "num.csv").write_text("path,label\na.jpg,1.5;2\nb.jpg,-3;4\n")
    listing = scan(tmp_path / "num.csv", task="regression")
    assert listing.targets is not None
    assert listing.targets.tolist() == [[1.5, 2], [-3, 4]]


@pytest.mark.parametrize("path", ["../out.jpg", "/etc/out.jpg", "a/../../out.jpg", ""])
def test_csv_path_leaving_its_folder_is_a_recorded_failure(tmp_path: Path, path: str) -> None:
    touch(tmp_path / "out.jpg")
    touch(tmp_path / "in" / "a.jpg")
    (tmp_path / "in" / "set.csv").write_text(f'path,label\na.jpg,cat\n"{path}",cat\n')
    listing = scan(tmp_path / "in" / "set.csv")
    assert listing.paths == ["a.jpg"]
    assert listing.failures == ((path, "the path leaves the folder of the CSV"),)


def test_csv_symlink_leaving_its_folder_is_a_recorded_failure(tmp_path: Path) -> None:
    target = touch(tmp_path / "out.jpg")
    touch(tmp_path / "in" / "a.jpg")
    (tmp_path / "in" / "link.jpg").symlink_to(target)
    (tmp_path / "in" / "set.csv").write_text("path,label\na.jpg,cat\nlink.jpg,cat\n")
    listing = scan(tmp_path / "in" / "set.csv")
    assert listing.paths == ["a.jpg"]
    assert "leaves the folder" in listing.failures[0][1]


def test_missing_csv_file_is_a_recorded_failure(tmp_path: Path) -> None:
    touch(tmp_path / "a.jpg")
    (tmp_path / "set.csv").write_text("path,label\na.jpg,cat\ngone.jpg,cat\n")
    assert scan(tmp_path / "set.csv").failures == (("gone.jpg", "cannot be read: No such file or directory"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.jpg,x\n", "path,label"),
        ("path,label\na.jpg,x\na.jpg,y\n", "once"),
        ("path,label,split\na.jpg,x,holdout\n", "split must be one of"),
    ],
)
def test_bad_csv_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    touch(tmp_path / "a.jpg")
    (tmp_path / "set.csv").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        scan(tmp_path / "set.csv")
    assert "\n" not in str(caught.value)


def test_regression_labels_must_be_numbers(tmp_path: Path) -> None:
    touch(tmp_path / "a.jpg")
    (tmp_path / "set.csv").write_text("path,label\na.jpg,tall\n")
    with pytest.raises(InputError, match="numbers"):
        scan(tmp_path / "set.csv", task="regression")


def test_nothing_there_and_no_images(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="does not exist"):
        scan(tmp_path / "gone")
    touch(tmp_path / "readme.txt")
    with pytest.raises(InputError, match="at least one image"):
        scan(tmp_path)
    with pytest.raises(InputError, match=r"\.csv"):
        scan(tmp_path / "readme.txt")


def test_symlinked_folders_are_followed_and_loops_recorded(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere" / "a.jpg")
    (tmp_path / "set" / "cat").mkdir(parents=True)
    (tmp_path / "set" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "cat" / "back").symlink_to(tmp_path / "set")
    listing = scan(tmp_path / "set")
    assert listing.paths == ["dog/a.jpg"]
    assert listing.failures == (("cat/back", "a symbolic link that leads back to a folder above it"),)


def test_broken_link_and_fifo_are_recorded_not_opened(tmp_path: Path) -> None:
    touch(tmp_path / "cat" / "a.jpg")
    (tmp_path / "cat" / "broken.jpg").symlink_to(tmp_path / "gone.jpg")
    os.mkfifo(tmp_path / "cat" / "pipe.jpg")
    listing = scan(tmp_path)
    assert listing.paths == ["cat/a.jpg"]
    assert dict(listing.failures) == {
        "cat/broken.jpg": "cannot be read: No such file or directory",
        "cat/pipe.jpg": "not a regular file",
    }


def test_name_that_is_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    touch(tmp_path / "cat" / name)
    assert scan(tmp_path).paths == [f"cat/{name}"]
