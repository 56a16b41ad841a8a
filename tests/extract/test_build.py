"""Builds cost what changed and nothing more, and lose nothing."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import write_photo
from fake import FakeEngine, build, fake_extractor

from featcache.cache import open_cache
from featcache.errors import ExistsError, FeatcacheError, FormatError, RecipeMismatchError


@pytest.fixture(params=["lmdb", "zarr"])
def store(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_first_build_extracts_everything_and_the_second_nothing(photos: Path, tmp_path: Path, store: str) -> None:
    cache = tmp_path / "cache"
    first = build(photos, cache, store=store)
    assert (first.images, first.extracted, first.reused, first.failed, first.rows) == (24, 24, 0, 0, 24)
    engine = fake_extractor()
    second = build(photos, cache, extractor=engine)
    assert (second.extracted, second.reused, second.rows) == (0, 24, 24)
    assert isinstance(engine.engine, FakeEngine)
    assert engine.engine.batches == 0
    with open_cache(cache) as opened:
        assert opened.datasets == ("photos",)
        features, labels = opened.numpy()
        assert features.shape == (24, 48)
        assert sorted(set(labels.tolist())) == [0, 1]


def test_changed_bytes_cost_one_row_and_names_cost_none(photos: Path, tmp_path: Path, store: str) -> None:
    cache = tmp_path / "cache"
    build(photos, cache, store=store)
    write_photo(photos / "cat" / "00.jpg", seed=999)
    assert build(photos, cache).extracted == 1
    (photos / "cat").rename(photos / "lion")
    (photos / "dog" / "01.jpg").rename(photos / "lion" / "dog01.jpg")
    renamed = build(photos, cache)
    assert renamed.extracted == 0
    with open_cache(cache) as opened:
        assert opened.samples().classes == ("dog", "lion")


def test_same_size_edit_with_restored_mtime_is_seen(photos: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    target = photos / "cat" / "00.jpg"
    before = target.stat()
    build(photos, cache)
    data = bytearray(target.read_bytes())
    data[-30] ^= 0x55
    target.write_bytes(data)
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert build(photos, cache).extracted == 1


def test_equal_images_cost_one_row(photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "cat" / "00.jpg", photos / "dog" / "same.jpg")
    report = build(photos, tmp_path / "cache")
    assert (report.images, report.rows, report.extracted) == (25, 24, 24)
    with open_cache(tmp_path / "cache") as cache:
        info = cache.info()
    assert [c["kind"] for c in info["conflicts"]] == ["labels"]
    assert info["conflicts"][0]["paths"] == ["cat/00.jpg", "dog/same.jpg"]


def test_bad_image_is_one_recorded_failure(photos: Path, tmp_path: Path) -> None:
    (photos / "cat" / "bad.jpg").write_bytes(b"not an image")
    (photos / "cat" / "notes.txt").write_text("x")
    report = build(photos, tmp_path / "cache")
    assert (report.images, report.extracted, report.failed, report.ignored) == (25, 24, 1, 1)
    assert report.failures[0][0] == "cat/bad.jpg"
    again = build(photos, tmp_path / "cache")
    assert (again.extracted, again.failed) == (0, 1)
    with open_cache(tmp_path / "cache") as cache:
        assert [failure["path"] for failure in cache.info()["failures"]] == ["cat/bad.jpg"]


def test_rows_are_the_same_in_either_store_and_any_order(photos: Path, tmp_path: Path) -> None:
    build(photos, tmp_path / "one", store="lmdb")
    half = tmp_path / "half"
    shutil.copytree(photos / "dog", half / "dog")
    build(half, tmp_path / "two", store="zarr", dataset="photos")
    build(photos, tmp_path / "two", dataset="photos")
    with open_cache(tmp_path / "one") as one, open_cache(tmp_path / "two") as two:
        assert one.content_digest() == two.content_digest()


def test_other_recipe_is_refused_with_each_field(photos: Path, tmp_path: Path) -> None:
    build(photos, tmp_path / "cache")
    with pytest.raises(RecipeMismatchError, match="precision: the cache has 'fp32', this build 'bf16'") as caught:
        build(photos, tmp_path / "cache", extractor=fake_extractor(precision="bf16", view_seed=3))
    assert "view_seed: the cache has 0, this build 3" in str(caught.value)


def test_several_data_sets_share_rows_and_pruning_frees_what_none_uses(
    photos: Path, tmp_path: Path, store: str
) -> None:
    cache = tmp_path / "cache"
    build(photos, cache, store=store)
    build(photos, cache, dataset="copy")
    shutil.rmtree(photos / "dog")
    kept = build(photos, cache, prune_missing=True)
    assert (kept.rows, kept.pruned) == (24, 0)  # the copy still refers to every row
    pruned = build(photos, cache, dataset="copy", prune_missing=True)
    assert (pruned.rows, pruned.pruned) == (12, 12)
    with open_cache(cache) as opened:
        assert opened.datasets == ("copy", "photos")
        with pytest.raises(FeatcacheError, match="--dataset must name one of"):
            opened.samples()
        assert opened.verify().ok


def test_dropped_rows_come_back_with_the_next_build(photos: Path, tmp_path: Path, store: str) -> None:
    cache = tmp_path / "cache"
    build(photos, cache, store=store)
    with open_cache(cache) as opened:
        digest = opened.content_digest()
        with opened.store.writer() as writer:
            assert writer.drop(opened.samples().digests[:5]) == 5
            writer.commit()
        assert not opened.verify().ok
    assert build(photos, cache).extracted == 5
    with open_cache(cache) as opened:
        assert opened.content_digest() == digest
        assert opened.verify().ok


def test_views_are_columns_and_reproducible(photos: Path, tmp_path: Path) -> None:
    recipe = {"views": 3, "view_seed": 5}
    build(photos, tmp_path / "a", extractor=fake_extractor(**recipe))
    build(photos, tmp_path / "b", extractor=fake_extractor(**recipe))
    build(photos, tmp_path / "c", extractor=fake_extractor(views=3, view_seed=6))
    with open_cache(tmp_path / "a") as a, open_cache(tmp_path / "b") as b, open_cache(tmp_path / "c") as c:
        assert [column.name for column in a.columns] == ["features", "features@1", "features@2"]
        assert a.content_digest() == b.content_digest() != c.content_digest()
        plain = [cache.numpy()[0] for cache in (a, c)]
        assert np.array_equal(*plain)
        features, labels = a.numpy(view=[0, 2])
        assert features.shape == (48, 48)
        assert np.array_equal(labels[:24], labels[24:])
        assert np.array_equal(features[:24], plain[0])
        assert not np.array_equal(features[24:], plain[0])


def test_not_a_cache_is_refused_and_left_alone(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(FormatError, match="is not"):
        build(photos, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()


_opened: list[str] | None = None


def _note_open(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _opened is not None:
        _opened.append(os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes) else "")


def opened_images(photos: Path, cache: Path) -> list[str]:
    """Build, and return which images were opened meanwhile."""
    global _opened
    _opened = []
    try:
        build(photos, cache)
        return [path for path in _opened if path.endswith(".jpg")]
    finally:
        _opened = None


def test_no_op_build_opens_no_image(photos: Path, tmp_path: Path) -> None:
    sys.addaudithook(_note_open)
    cache = tmp_path / "cache"
    assert len(opened_images(photos, cache)) >= 24  # the hook sees what it must
    time.sleep(2.1)  # until the files are older than git's racy window when scanned
    assert len(opened_images(photos, cache)) == 24  # modified within 2 s of the last scan: hashed once more
    assert opened_images(photos, cache) == []
    (photos / "cat").rename(photos / "lion")
    assert opened_images(photos, cache) == []  # a folder's new name changes no file's stat


def test_existing_file_is_not_a_cache(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises((FormatError, ExistsError)):
        build(photos, tmp_path / "file")
