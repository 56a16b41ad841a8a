"""What train would refuse, build says first: before an image is read where the names say it, else at its end."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import write_photo
from fake import FakeEngine, build, fake_extractor

from featcache.cache import open_cache
from featcache.errors import InputError
from featcache.train.fit import train_head


def draw(folder: Path, **classes: int) -> Path:
    for number, (name, count) in enumerate(classes.items()):
        place = folder / name.replace("__", "/")
        place.mkdir(parents=True)
        for i in range(count):
            write_photo(place / f"{i}.jpg", seed=100 * number + i)
    return folder


def test_notes_are_said_before_an_image_is_read_and_once(tmp_path: Path) -> None:
    extractor = fake_extractor()
    assert isinstance(extractor.engine, FakeEngine)
    heard: list[tuple[int, str]] = []
    engine = extractor.engine
    report = build(
        draw(tmp_path / "photos", cat=3), tmp_path / "cache", extractor=extractor,
        say=lambda note: heard.append((engine.batches, note)),
    )  # fmt: skip
    assert [batches for batches, _ in heard] == [0]
    assert report.notes == tuple(note for _, note in heard)
    assert report.to_json()["notes"] == list(report.notes)
    assert "at least two classes, got ['cat']" in report.notes[0]


@pytest.mark.parametrize(
    ("folders", "refused"),
    [
        ({"cat": 4}, "at least two classes"),
        ({".": 4}, "needs labelled images"),
        ({"test__cat": 2, "test__dog": 2}, "in the train split"),
        ({"train__cat": 2, "train__dog": 2, "val__cat": 1, "val__zebra": 1}, r"got none for \['zebra'\]"),
    ],
)
def test_what_train_refuses_build_said(tmp_path: Path, folders: dict[str, int], refused: str) -> None:
    report = build(draw(tmp_path / "photos", **folders), tmp_path / "cache")
    assert any(re.search(refused, note) for note in report.notes)
    with pytest.raises(InputError, match=refused):
        train_head(tmp_path / "cache")


def test_a_class_that_failed_whole_is_named_with_its_reason(tmp_path: Path) -> None:
    photos = draw(tmp_path / "photos", cat=6)
    (photos / "dog").mkdir()
    for number in range(5):
        (photos / "dog" / f"{number}.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes([number]) * 40)
    report = build(photos, tmp_path / "cache")
    assert report.failed == 5
    [note] = report.notes
    assert "got none for ['dog' (5 of 5 failed: " in note
    assert "HEIC" in note
    assert build(photos, tmp_path / "cache").notes == report.notes  # a build with nothing to do knows it, too
    with pytest.raises(InputError, match=r"'dog' \(5 of 5 failed: "):
        train_head(tmp_path / "cache")


def test_an_image_that_fails_is_not_the_one_a_class_trains_on(tmp_path: Path) -> None:
    """A class of two whose one image is no image keeps the other for train, whatever it would have been drawn to."""
    for seed in range(8):
        photos = draw(tmp_path / str(seed) / "photos", cat=6, dog=1)
        (photos / "dog" / "bad.jpg").write_bytes(b"not an image")
        build(photos, tmp_path / str(seed) / "cache", split_seed=seed)
        with open_cache(tmp_path / str(seed) / "cache") as cache:
            samples = cache.samples()
            assert samples.splits[samples.paths.index("dog/0.jpg")] == 0


def test_one_image_of_a_class_and_no_val_is_said_by_name(tmp_path: Path) -> None:
    report = build(draw(tmp_path / "photos", train__cat=3, train__dog=1), tmp_path / "cache")
    assert any("of 'dog' one image is in train" in note for note in report.notes)
    with pytest.raises(InputError, match="two training images of every class, got one of 'dog'"):
        train_head(tmp_path / "cache")


def test_a_label_of_every_image_is_said_by_name(tmp_path: Path) -> None:
    photos = draw(tmp_path / "photos", **{".": 12})
    rows = "".join(f"{i}.jpg,photo;{'red' if i % 2 else 'blue'}\n" for i in range(12))
    (photos / "t.csv").write_text("path,label\n" + rows)
    report = build(photos / "t.csv", tmp_path / "cache", task="multilabel")
    assert report.notes == ("train will refuse a linear head: every image of the train split has 'photo'",)
    with pytest.raises(InputError, match="'photo' has only one kind"):
        train_head(tmp_path / "cache")


def test_an_unlabelled_test_folder_trains_and_claims_nothing(tmp_path: Path) -> None:
    photos = draw(tmp_path / "photos", train__cat=8, train__dog=8, test__unknown=3)
    report = build(photos, tmp_path / "cache")
    assert report.notes[-1] == "the test split has no label on its 3 images: no test accuracy is claimed"
    result = train_head(tmp_path / "cache")
    assert result.head.classes == ("cat", "dog")
    assert result.test_accuracy is None


def test_unfinished_numbers_are_left_out_of_every_split(tmp_path: Path) -> None:
    photos = draw(tmp_path / "photos", **{".": 24})
    lines = [f"{i}.jpg,{'nan' if i < 6 and i % 2 else i / 3},{('train', 'val', 'test')[i % 3]}" for i in range(24)]
    (photos / "t.csv").write_text("\n".join(["path,label,split", *lines]) + "\n")
    build(photos / "t.csv", tmp_path / "cache", task="regression")
    with open_cache(tmp_path / "cache") as cache:
        counts = [len(cache.select(split=split).rows) for split in ("train", "val", "test")]
        assert counts == [7, 7, 7]
        assert cache.info()["datasets"][0]["unlabelled"] == 3
    assert train_head(tmp_path / "cache").n_train == 7
