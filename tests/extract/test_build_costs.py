"""What each kind of change costs: rows extracted, bytes read, space; two builders, readers while a build goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import write_photo
from fake import FakeEngine, build, fake_extractor, fake_recipe

from featcache.cache import open_cache
from featcache.errors import LockedError, StorageError
from featcache.extract.build import Extractor, build_cache


@pytest.fixture(params=["lmdb", "zarr"])
def store(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_each_change_costs_only_what_it_must(photos: Path, tmp_path: Path, store: str) -> None:
    cache = tmp_path / "cache"
    build(photos, cache, store=store)

    def cost() -> tuple[int, int, int, int]:
        extractor = fake_extractor()
        report = build(photos, cache, extractor=extractor)
        assert isinstance(extractor.engine, FakeEngine)
        assert (extractor.engine.batches > 0) == (report.extracted > 0)
        return report.extracted, report.reused, report.rows, report.images

    write_photo(photos / "cat" / "new.jpg", seed=500)
    assert cost() == (1, 24, 25, 25)  # added
    write_photo(photos / "cat" / "new.jpg", seed=501)
    assert cost() == (1, 24, 26, 25)  # changed: the old row stays until it is pruned
    write_photo(photos / "cat" / "new.jpg", seed=500)
    assert cost() == (0, 25, 26, 25)  # changed back
    (photos / "cat" / "new.jpg").rename(photos / "cat" / "newer.jpg")
    assert cost() == (0, 25, 26, 25)  # renamed
    (photos / "cat" / "newer.jpg").rename(photos / "dog" / "newer.jpg")
    assert cost() == (0, 25, 26, 25)  # re-labelled
    shutil.copy(photos / "dog" / "newer.jpg", photos / "dog" / "copy.jpg")
    assert cost() == (0, 26, 26, 26)  # an equal image
    (photos / "dog" / "newer.jpg").unlink()
    (photos / "dog" / "copy.jpg").unlink()
    assert cost() == (0, 24, 26, 24)  # deleted
    assert build(photos, cache, prune_missing=True).rows == 24


class WideEngine(FakeEngine):
    """Rows wide enough to be seen on the disk."""

    columns = (("features", (48 * 1024,)),)

    def _infer(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        (rows,) = super()._infer(batch)
        return (np.tile(rows, 1024),)


def test_pruning_gives_the_space_back(photos: Path, tmp_path: Path, store: str) -> None:
    wide = Extractor(WideEngine(), fake_recipe())
    build_cache(photos, tmp_path / "cache", store=store, extractor=wide)
    with open_cache(tmp_path / "cache") as cache:
        before = cache.store.nbytes()
    shutil.rmtree(photos / "dog")
    report = build_cache(photos, tmp_path / "cache", extractor=wide, prune_missing=True)
    assert (report.pruned, report.rows) == (12, 12)
    with open_cache(tmp_path / "cache") as cache:
        assert cache.store.nbytes() < 0.6 * before


def test_failed_and_unreadable_files_start_no_network_again(photos: Path, tmp_path: Path) -> None:
    (photos / "cat" / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    build(photos, tmp_path / "cache")
    for path in photos.rglob("*.jpg"):
        os.utime(path)
    os.mkfifo(photos / "dog" / "pipe.jpg")
    extractor = fake_extractor()
    report = build(photos, tmp_path / "cache", extractor=extractor)
    assert (report.extracted, report.reused, report.failed) == (0, 24, 2)
    assert report.extract_seconds == 0.0


class SlowEngine(FakeEngine):
    """A network that waits until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.go = threading.Event(), threading.Event()

    def _infer(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        self.entered.set()
        assert self.go.wait(30)
        return super()._infer(batch)


def test_a_second_builder_is_refused_by_name_or_waits(photos: Path, tmp_path: Path, store: str) -> None:
    cache = tmp_path / "cache"
    build(photos, cache, store=store)
    for number in range(10):
        write_photo(photos / "cat" / f"new{number}.jpg", seed=600 + number)
    slow = SlowEngine()
    first = threading.Thread(target=build, args=(photos, cache), kwargs={"extractor": Extractor(slow, fake_recipe())})
    first.start()
    try:
        assert slow.entered.wait(30)
        with pytest.raises(LockedError, match=str(os.getpid())):
            build(photos, cache)
        with open_cache(cache) as opened, opened.reader() as reader:  # readers see what was committed
            assert len(reader) == 24
            assert len(opened.numpy()[0]) == 24
        later = threading.Timer(0.3, slow.go.set)
        later.start()
        waited = build(photos, cache, wait_seconds=30)
        assert (waited.extracted, waited.reused, waited.rows) == (0, 34, 34)  # it looked again at what the first left
    finally:
        slow.go.set()
        first.join()


READ = """
import sys, time
from featcache.cache import open_cache
seen = []
cache = open_cache(sys.argv[1])
print("ready", flush=True)
while not seen or seen[-1] < 84:
    with cache.reader() as reader:
        assert (reader.read("features", 0, len(reader)) >= 0).all()
        seen.append(len(reader))
print(sorted(set(seen))[0], seen == sorted(seen))
"""


def test_readers_in_other_processes_see_only_commits(photos: Path, tmp_path: Path, store: str) -> None:
    cache = tmp_path / "cache"
    build(photos, cache, store=store)
    reader = subprocess.Popen([sys.executable, "-c", READ, str(cache)], stdout=subprocess.PIPE, text=True)
    assert reader.stdout is not None
    assert reader.stdout.readline() == "ready\n"
    for number in range(60):
        write_photo(photos / "cat" / f"new{number}.jpg", seed=700 + number)
        if number % 20 == 19:
            build(photos, cache)
            time.sleep(0.02)
    assert reader.communicate(timeout=60)[0] == "24 True\n"


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    """Return a small file system of its own; skips where mounting is not allowed."""
    place = tmp_path / "mounted"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs rights this user lacks")
    yield place  # type: ignore[misc]
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_read_only_cache_serves_and_refuses_builds(photos: Path, mounted: Path, store: str) -> None:
    build(photos, mounted / "cache", store=store)
    write_photo(photos / "cat" / "new.jpg", seed=800)
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    with open_cache(mounted / "cache") as cache:
        assert len(cache.numpy()[0]) == 24
        assert cache.verify().ok
        with pytest.raises(StorageError):
            cache.verify(repair=True)
    with pytest.raises(StorageError):
        build(photos, mounted / "cache")
    with pytest.raises(StorageError):
        build(photos, mounted / "other")


def test_a_full_disk_ends_a_build_that_carries_on_later(photos: Path, mounted: Path, store: str) -> None:
    wide = Extractor(WideEngine(), fake_recipe())
    with pytest.raises(StorageError):
        for number in range(60):
            write_photo(photos / "cat" / f"new{number}.jpg", seed=900 + number)
            build_cache(photos, mounted / "cache", store=store, extractor=wide)
    with open_cache(mounted / "cache") as cache, cache.reader() as reader:
        assert cache.verify().ok
        committed = len(reader)
        keys = np.array(reader.keys())
    assert committed >= 24
    subprocess.run(["mount", "-o", "remount,size=100m", str(mounted)], check=True)
    report = build_cache(photos, mounted / "cache", extractor=wide)
    assert report.extracted == report.images - committed
    with open_cache(mounted / "cache") as cache, cache.reader() as reader:
        assert (reader.find(keys) >= 0).all()
        assert cache.verify().ok
