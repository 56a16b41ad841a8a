"""Folders: which are splits, which classes, which only wrap them; and what is said of those that are neither."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from featcache.datasets.listing import Listing
from featcache.datasets.remarks import notes_on_training
from featcache.datasets.scan import scan
from featcache.datasets.split_names import split_codes
from featcache.datasets.splits import NO_SPLIT, SPLITS


def tree(root: Path, *folders: str, each: int = 1) -> Path:
    """Write files that look like photos into folders, or one at a path that ends as one."""
    for folder in folders:
        for number in range(each):
            path = root / folder if folder.endswith(".jpg") else root / folder / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
    return root


def meaning(listing: Listing) -> dict[str, tuple[str | None, str | None]]:
    """Return path → (split, class)."""
    return {
        path: (None if code == NO_SPLIT else SPLITS[code], listing.classes[label] if label >= 0 else None)
        for path, code, label in zip(listing.paths, listing.given_splits.tolist(), listing.labels.tolist(), strict=True)
    }


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"), ("Training", "train"), ("trains", "train"), ("training_set", "train"),
        ("trainset", "train"), ("train2017", "train"), ("TRAIN-DATA", "train"), ("train_images", "train"),
        ("val", "val"), ("valid", "val"), ("validation", "val"), ("validations", "val"), ("dev", "val"),
        ("devset", "val"), ("test", "test"), ("tests", "test"), ("testing", "test"), ("test1", "test"),
        ("eval", "test"), ("evaluation", "test"), ("test set", "test"),
        ("trainval", None), ("train_test", None), ("trainer", None), ("testament", None), ("cat", None),
        ("device", None), ("test_tube", None), ("value", None), ("", None),
    ],
)  # fmt: skip
def test_split_name_is_read_whatever_its_form(name: str, split: str | None) -> None:
    assert split_codes([name]).get(name) == (None if split is None else SPLITS.index(split))


def test_eval_beside_test_is_val() -> None:
    assert split_codes(["train", "eval", "test"]) == {"train": 0, "eval": 1, "test": 2}
    assert split_codes(["train", "eval"]) == {"train": 0, "eval": 2}


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("training", "testing"), ("train", "test")),
        (("Train", "dev", "Test"), ("train", "val", "test")),
        (("training_set", "test_set"), ("train", "test")),
        (("trains", "vals"), ("train", "val")),
        (("seg_train", "seg_test"), ("train", "test")),
    ],
)
def test_split_folders_of_other_names_are_splits(
    tmp_path: Path, names: tuple[str, ...], splits: tuple[str, ...]
) -> None:
    listing = scan(tree(tmp_path, *(f"{name}/{kind}" for name in names for kind in ("cat", "dog"))))
    assert listing.classes == ("cat", "dog")
    assert {path.split("/")[0]: split for path, (split, _) in meaning(listing).items()} == dict(
        zip(names, splits, strict=True)
    )


@pytest.mark.parametrize("stray", ["__MACOSX", "__MACOSX/train/cat", ".ipynb_checkpoints", "@eaDir"])
def test_litter_of_systems_is_passed_over(tmp_path: Path, stray: str) -> None:
    listing = scan(tree(tmp_path, "train/cat", "train/dog", "val/cat", "val/dog", stray))
    assert listing.classes == ("cat", "dog")
    assert len(listing) == 4
    assert listing.notes == ()


def test_shadow_files_of_macos_are_ignored(tmp_path: Path) -> None:
    listing = scan(tree(tmp_path, "cat", "cat/._0.jpg", "dog"))
    assert (listing.paths, listing.ignored) == (["cat/0.jpg", "dog/0.jpg"], 1)


@pytest.mark.parametrize("stray", ["sample_images", "docs/figures", "holdout/cat", "cover.jpg"])
def test_stray_beside_splits_is_left_out_and_named(tmp_path: Path, stray: str) -> None:
    listing = scan(tree(tmp_path, "train/cat", "train/dog", "val/cat", "val/dog", stray))
    assert listing.classes == ("cat", "dog")
    assert (len(listing), listing.ignored) == (4, 1)
    [note] = listing.notes
    assert "beside train/ and val/ left out" in note
    assert ("1 image" if stray == "cover.jpg" else stray.split("/")[0] + "/ (1 image)") in note


def test_val_is_still_carved_with_a_stray_image_above_the_splits(tmp_path: Path) -> None:
    listing = scan(tree(tmp_path, "train/cat", "test/cat", "cover.jpg"))
    assert set(listing.given_splits.tolist()) == {0, 2}


def test_stray_beside_train_alone_is_known_by_its_classes_or_by_being_few(tmp_path: Path) -> None:
    assert scan(tree(tmp_path / "a", "train/cat", "train/dog", "holdout/cat")).classes == ("cat", "dog")
    assert scan(tree(tmp_path / "b", "train/cat", "train/dog", "sample_images")).classes == ("cat", "dog")


@pytest.mark.parametrize("folders", [("train", "car", "plane"), ("train/steam", "train/diesel", "car", "plane")])
def test_train_beside_other_classes_is_a_class_and_said_to_be(tmp_path: Path, folders: tuple[str, ...]) -> None:
    listing = scan(tree(tmp_path, *folders))
    assert listing.classes == ("car", "plane", "train")
    assert listing.notes == ("train/ was read as a class, not a split: rename it, or say so with --no-splits",)
    assert scan(tmp_path, splits=False).notes == ()


def test_no_splits_reads_train_and_test_as_classes(tmp_path: Path) -> None:
    listing = scan(tree(tmp_path, "train/cat", "test/cat"), splits=False)
    assert listing.classes == ("test", "train")
    assert set(listing.given_splits.tolist()) == {NO_SPLIT}


@pytest.mark.parametrize("wrapper", ["ds", "ds/ds", "a/b/c"])
@pytest.mark.parametrize("inside", [("cat", "dog"), ("train/cat", "train/dog", "val/cat")])
def test_wrapper_is_taken_off_with_a_note(tmp_path: Path, wrapper: str, inside: tuple[str, ...]) -> None:
    listing = scan(tree(tmp_path, *(f"{wrapper}/{folder}" for folder in inside)))
    assert listing.classes == ("cat", "dog")
    assert listing.notes == (f"the classes are read from {wrapper}/, which wraps them",)
    assert listing.paths[0].startswith(f"{wrapper}/")


@pytest.mark.parametrize("inner", ["{split}/{split}", "{split}/ds", "{split}/{split}/ds"])
def test_wrapper_within_each_split_is_taken_off(tmp_path: Path, inner: str) -> None:
    places = [inner.format(split=split) for split in ("training_set", "test_set")]
    listing = scan(tree(tmp_path, *(f"{place}/{kind}" for place in places for kind in ("cat", "dog"))))
    assert listing.classes == ("cat", "dog")
    assert "is read as if it were one folder higher" in listing.notes[0]


def test_split_of_one_class_is_no_wrapper(tmp_path: Path) -> None:
    listing = scan(tree(tmp_path, "train/cat", "train/dog", "test/cat/2019", "test/cat/2020"))
    assert listing.classes == ("cat", "dog")


def test_class_of_a_model_is_no_wrapper_and_no_split(tmp_path: Path) -> None:
    assert scan(tree(tmp_path / "a", "cat/2019", "cat/2020"), known_classes=("cat", "dog")).classes == ("cat",)
    assert scan(tree(tmp_path / "b", "train/a", "test/a"), known_classes=("train", "test")).classes == ("test", "train")


def test_wrapper_with_an_image_of_its_own_is_named_before_extraction(tmp_path: Path) -> None:
    listing = scan(tree(tmp_path, "ds/cat", "ds/dog", "ds/cover.jpg"))
    [note] = notes_on_training(listing)
    assert "at least two classes, got ['ds']" in note
    assert "name 'ds' in it as IMAGES" in note


def test_folder_of_unknown_classes_is_an_unlabelled_split(tmp_path: Path) -> None:
    listing = scan(tree(tmp_path, "train/cat", "train/dog", "test/unknown", each=2))
    assert listing.classes == ("cat", "dog")
    assert listing.labels[listing.given_splits == 2].tolist() == [-1, -1]
    assert listing.notes == ("2 images of the test split taken as unlabelled: train has no class 'unknown'",)
    assert notes_on_training(listing) == ["the test split has no label on its 2 images: no test accuracy is claimed"]


def test_flat_test_folder_claims_no_accuracy(tmp_path: Path) -> None:
    listing = scan(tree(tmp_path, "train/cat", "train/dog", "test"))
    assert notes_on_training(listing) == ["the test split has no label on its 1 image: no test accuracy is claimed"]


def test_class_called_unknown_beside_others_is_a_class(tmp_path: Path) -> None:
    listing = scan(tree(tmp_path, "cat", "dog", "unknown"))
    assert listing.classes == ("cat", "dog", "unknown")
    assert notes_on_training(listing) == []


def test_classes_that_look_alike_are_pointed_out(tmp_path: Path) -> None:
    listing = scan(tree(tmp_path, "Cat", "cat", "cat ", "dog", "1", "1.0", "01", "hot dog", "hot_dog", "-1"))
    assert [note.split(" look")[0] for note in listing.notes] == [
        "the classes '01', '1', '1.0'",
        "the classes 'Cat', 'cat', 'cat '",
        "the classes 'hot dog', 'hot_dog'",
    ]


def test_class_folder_whose_name_is_not_utf8_is_a_class_that_can_be_written(tmp_path: Path) -> None:
    listing = scan(tree(tmp_path, os.fsdecode(b"caf\xe9"), "tea"))
    assert listing.classes == ("caf\\xe9", "tea")
    assert listing.paths[0] == os.fsdecode(b"caf\xe9/0.jpg")


def test_flat_folder_with_a_table_names_the_table(tmp_path: Path) -> None:
    tree(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "labels.csv").write_text("path,label\na.jpg,cat\nb.jpg,dog\n")
    assert scan(tmp_path).notes == ("no class folders, but labels.csv: name it as IMAGES to read its labels",)


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (("cat",), "at least two classes, got ['cat']"),
        (("a.jpg",), "training needs labelled images, got none"),
        (("train", "test"), "training needs labelled images, got none"),
        (("test/cat", "test/dog"), "training needs labelled images in the train split, got none"),
        (("train/cat", "train/dog", "test/cat", "test/zebra"), "got none for ['zebra'"),
    ],
)
def test_what_train_would_refuse_is_known_from_the_folders(tmp_path: Path, folders: tuple[str, ...], said: str) -> None:
    notes = notes_on_training(scan(tree(tmp_path, *folders)))
    assert notes[0].startswith("train will refuse this data set: ")
    assert said in notes[0]
