"""Which data set of a cache a folder is: nothing vanishes, nothing moved is extracted again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import write_photo
from fake import FakeEngine, build, fake_extractor

from featcache.cache import open_cache
from featcache.errors import InputError


def draw(folder: Path, *, seed: int = 0) -> Path:
    for number, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            write_photo(folder / name / f"{i}.jpg", seed=seed + 10 * number + i)
    return folder


def test_another_folder_of_the_same_name_is_refused_before_extraction(tmp_path: Path) -> None:
    build(draw(tmp_path / "a" / "photos"), tmp_path / "cache")
    other, extractor = draw(tmp_path / "b" / "photos", seed=100), fake_extractor()
    with pytest.raises(InputError, match=r"'photos' in .* name another with --dataset, or --dataset photos to replace"):
        build(other, tmp_path / "cache", extractor=extractor)
    assert isinstance(extractor.engine, FakeEngine)
    assert extractor.engine.batches == 0
    with open_cache(tmp_path / "cache") as cache:
        assert cache.datasets == ("photos",)
        assert cache.samples().root == str(tmp_path / "a" / "photos")
    build(other, tmp_path / "cache", dataset="others")
    with open_cache(tmp_path / "cache") as cache:
        assert cache.datasets == ("others", "photos")


def test_a_name_that_is_said_replaces_and_says_so(tmp_path: Path) -> None:
    build(draw(tmp_path / "a"), tmp_path / "cache", dataset="photos")
    report = build(draw(tmp_path / "b", seed=100), tmp_path / "cache", dataset="photos")
    assert report.notes == (
        f"the data set 'photos' was '{tmp_path}/a' and is now '{tmp_path}/b': name another --dataset to keep both",
    )


@pytest.mark.parametrize("new", ["elsewhere/photos", "elsewhere/pictures"])
@pytest.mark.parametrize("copied", [False, True])
def test_a_moved_data_set_is_the_same_one(tmp_path: Path, new: str, copied: bool) -> None:
    """Under its old name, so that later verbs need no --dataset; no row is extracted, whatever its files' stats."""
    build(draw(tmp_path / "photos"), tmp_path / "cache")
    (tmp_path / "elsewhere").mkdir()
    if copied:
        shutil.copytree(tmp_path / "photos", tmp_path / new)
        shutil.rmtree(tmp_path / "photos")
    else:
        (tmp_path / "photos").rename(tmp_path / new)
    report = build(tmp_path / new, tmp_path / "cache")
    assert (report.dataset, report.extracted, report.reused) == ("photos", 0, 6)
    assert report.notes == (f"the data set 'photos' was moved from '{tmp_path}/photos' to '{tmp_path}/{new}'",)
    with open_cache(tmp_path / "cache") as cache:
        assert cache.datasets == ("photos",)
        assert cache.samples().root == str(tmp_path / new)


def test_a_data_set_that_was_renamed_stays_itself_at_the_next_build(tmp_path: Path) -> None:
    build(draw(tmp_path / "photos"), tmp_path / "cache")
    (tmp_path / "photos").rename(tmp_path / "pictures")
    build(tmp_path / "pictures", tmp_path / "cache")
    assert build(tmp_path / "pictures", tmp_path / "cache").dataset == "photos"
    with open_cache(tmp_path / "cache") as cache:
        assert cache.datasets == ("photos",)


def test_other_images_where_the_first_are_gone_replace_nothing(tmp_path: Path) -> None:
    build(draw(tmp_path / "a" / "photos"), tmp_path / "cache")
    shutil.rmtree(tmp_path / "a")
    other = draw(tmp_path / "b" / "photos", seed=100)
    for number, path in enumerate(sorted(other.rglob("*.jpg"))):
        path.rename(path.with_name(f"other{number}.jpg"))
    with pytest.raises(InputError, match="must have a name of its own"):
        build(other, tmp_path / "cache")


def test_a_link_to_the_folder_is_the_same_data_set(tmp_path: Path) -> None:
    build(draw(tmp_path / "a" / "photos"), tmp_path / "cache")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "photos").symlink_to(tmp_path / "a" / "photos")
    assert build(tmp_path / "b" / "photos", tmp_path / "cache").extracted == 0


def test_a_name_with_dots_keeps_them(tmp_path: Path) -> None:
    assert build(draw(tmp_path / "photos.v2"), tmp_path / "cache").dataset == "photos.v2"
    assert build(draw(tmp_path / "photos.v3", seed=50), tmp_path / "cache").dataset == "photos.v3"
    table = tmp_path / "photos.v2" / "list.v1.csv"
    table.write_text("path,label\ncat/0.jpg,cat\n")
    assert build(table, tmp_path / "cache").dataset == "list.v1"


def test_a_data_set_named_without_its_dots_before_keeps_that_name(tmp_path: Path) -> None:
    photos = draw(tmp_path / "photos.v2")
    build(photos, tmp_path / "cache", dataset="photos")
    assert build(photos, tmp_path / "cache").dataset == "photos"


def test_two_tables_of_one_folder_are_two_data_sets(tmp_path: Path) -> None:
    photos = draw(tmp_path / "photos")
    for name, label in (("first", "cat"), ("second", "dog")):
        (photos / f"{name}.csv").write_text(f"path,label\n{label}/0.jpg,{label}\n")
        build(photos / f"{name}.csv", tmp_path / "cache")
    with open_cache(tmp_path / "cache") as cache:
        assert cache.datasets == ("first", "second")
