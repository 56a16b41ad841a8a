"""Beginning anew with --overwrite, and two builds that make one cache."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import write_photo

from featcache.cache import borrow_cache, open_cache
from featcache.errors import InputError, LockedError, MissingError, StorageError
from featcache.extract import updating as module
from featcache.extract.build import build_cache
from featcache.store._disk import DiskStore
from featcache.system.files import new_directory

NETWORK: dict[str, Any] = {"backbone": "test_resnet", "weights": "random:0", "engine": "torch"}


@pytest.fixture
def cache(photos: Path, tmp_path: Path) -> Path:
    build_cache(photos, tmp_path / "cache", **NETWORK)
    return tmp_path / "cache"


def test_overwrite_begins_anew_as_it_was_asked_for(cache: Path, photos: Path) -> None:
    """Without naming the network again; rows and data sets of before are gone."""
    build_cache(photos / "cat", cache, dataset="cats")
    fingerprint = open_cache(cache).fingerprint
    report = build_cache(photos, cache, overwrite=True)
    assert (report.extracted, report.rows, report.fingerprint) == (24, 24, fingerprint)
    with open_cache(cache) as opened:
        assert opened.datasets == ("photos",)


@pytest.mark.parametrize("lost", [("manifest.json", "manifest-copy.json"), ("store",)])
def test_overwrite_needs_no_intact_part(cache: Path, photos: Path, lost: tuple[str, ...]) -> None:
    for name in lost:
        path = cache / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert build_cache(photos, cache, overwrite=True, **NETWORK).rows == 24


def test_overwrite_replaces_nothing_but_a_cache(photos: Path, cache: Path) -> None:
    """Neither a folder of photos nor a cache with a file that is not of it."""
    (cache / "notes.txt").write_text("mine")
    for place in (photos, cache):
        with pytest.raises(InputError, match="--overwrite replaces a cache"):
            build_cache(photos, place, overwrite=True, **NETWORK)
    assert len(list(photos.rglob("*.jpg"))) == 24


def test_overwrite_waits_for_the_writer(cache: Path, photos: Path) -> None:
    with open_cache(cache) as opened, opened.store.writer(), pytest.raises(LockedError, match="--wait"):
        build_cache(photos, cache, overwrite=True)


def test_build_joins_a_cache_made_meanwhile(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another build is done while this one loads its network: its rows are used, nothing is refused."""
    slow = module.open_extractor

    def other_first(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(module, "open_extractor", slow)
        build_cache(photos, tmp_path / "cache", **NETWORK)
        return slow(*args, **kwargs)

    monkeypatch.setattr(module, "open_extractor", other_first)
    report = build_cache(photos, tmp_path / "cache", **NETWORK)
    assert (report.extracted, report.reused, report.rows) == (0, 24, 24)


def test_directory_made_meanwhile_is_not_removed(tmp_path: Path) -> None:
    """Whoever is second is refused, and the first one's files stay."""
    with pytest.raises(FileExistsError), new_directory(tmp_path / "d"):
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "first").touch()
    assert (tmp_path / "d" / "first").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_no_op_build_needs_no_writer(cache: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a cache where nothing can be written, also while the photos are so new that they are read again."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise StorageError("'write.lock' must be writable, got: Read-only file system")

    monkeypatch.setattr(DiskStore, "writer", refuse)
    report = build_cache(photos, cache)
    assert (report.extracted, report.reused) == (0, 24)
    write_photo(photos / "cat" / "new.jpg", seed=5000)
    with pytest.raises(StorageError, match="Read-only"):
        build_cache(photos, cache)


def test_images_are_found_where_they_are_now(cache: Path, photos: Path, tmp_path: Path) -> None:
    """Within the block alone; a folder without them is refused by name."""
    moved = photos.rename(tmp_path / "moved")
    with open_cache(cache) as opened:
        with pytest.raises(MissingError, match=r"photos.*--images"):
            opened.samples().require_images()
        with borrow_cache(opened, images=moved) as borrowed:
            assert borrowed.samples().root == str(moved)
            borrowed.samples().require_images()
            borrowed.samples().sources([0])[0]()
        assert opened.samples().root == str(photos)
        with pytest.raises(MissingError, match="nowhere"), borrow_cache(opened, images=tmp_path / "nowhere"):
            pass
