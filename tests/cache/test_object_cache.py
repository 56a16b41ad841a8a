"""A cache in object storage is made, extended, checked, mended, copied and trained from as one on a disk."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
from conftest import write_photo
from fake import build, fake_extractor
from memory_cache import blobs, make_samples
from object_storage import CREDENTIALS, DENIED, OTHER_REGION, Answer, StorageProxy
from train_caches import write_cache
from typer.testing import CliRunner

import featcache
from featcache.cache import creation, manifest, object_sample_lists, open_cache
from featcache.cache.conversion import convert
from featcache.cache.creation import create_cache, new_cache
from featcache.cache.torch_dataset import CachedFeatures
from featcache.cli.verbs import app
from featcache.datasets.samples import Samples
from featcache.errors import ExistsError, LockedError, StorageError
from featcache.extract.build import build_caches
from featcache.extract.settings import ExtractSettings, default_settings
from featcache.store import Column, create_store
from featcache.system.objects import ObjectPath, remove_objects
from featcache.verification import verify

pytestmark = pytest.mark.objects


def digest_of(cache: object) -> str:
    with open_cache(cache) as opened:  # type: ignore[arg-type]
        return opened.content_digest()


def test_build_there_is_the_build_here(photos: Path, bucket: ObjectPath, tmp_path: Path) -> None:
    """Rows, samples and digest; a second build has nothing to do, an image more costs one row, a lost one is pruned."""
    there, here = str(bucket / "cache"), tmp_path / "cache"
    assert [build(photos, there).extracted, build(photos, here).extracted] == [24, 24]
    assert build(photos, there, extractor=fake_extractor()).extracted == 0
    write_photo(photos / "dog/new.jpg", seed=555)
    (photos / "cat/00.jpg").unlink()
    for place in (there, here):
        report = build(photos, place, prune_missing=True)
        assert (report.extracted, report.pruned, report.rows) == (1, 1, 24)
    assert build(photos, there, dataset="again").extracted == 0
    with open_cache(there) as mine, open_cache(here) as local:
        assert mine.store_kind == "zarr"
        assert mine.datasets == ("again", "photos")
        assert mine.content_digest() == local.content_digest()
        ours, theirs = mine.samples("photos"), local.samples("photos")
        assert (ours.paths, ours.classes, ours.labels.tolist()) == (
            theirs.paths,
            theirs.classes,
            theirs.labels.tolist(),
        )
        assert all(map(np.array_equal, mine.numpy(split="train", dataset="again"), local.numpy(split="train")))
        assert mine.info()["samples"] == 48
    assert len(CachedFeatures(there, split="train", dataset="photos")) == int((ours.splits == 0).sum())
    assert verify(there).ok
    assert build(photos, there, overwrite=True).extracted == 24
    with open_cache(there) as anew:
        assert anew.datasets == ("photos",)
    assert len((bucket / "cache").children()[0]) == 1  # the old one is gone


def test_copies_go_there_and_back(bucket: ObjectPath, tmp_path: Path) -> None:
    """`convert` either way; the digest is that of the original; a head trained there is the one trained here."""
    here = write_cache(tmp_path / "cache", blobs())
    there = str(bucket / "copy")
    report = convert(here, out=there, store="zarr")
    assert report.content_digest == digest_of(here) == digest_of(there)
    assert convert(there, out=tmp_path / "back", store="lmdb").content_digest == report.content_digest
    with pytest.raises(ExistsError, match="--overwrite"):
        convert(here, out=there, store="zarr")
    assert convert(here, out=there, store="zarr", overwrite=True).rows == report.rows
    heads = [featcache.train_head(cache).head for cache in (here, there)]
    assert np.allclose(heads[0].weight, heads[1].weight, atol=1e-6)
    streamed = featcache.train_head(there, memory_bytes=20_000)
    assert np.allclose(streamed.head.weight, heads[0].weight, atol=1e-2)


def test_several_backbones_lie_side_by_side(photos: Path, bucket: ObjectPath) -> None:
    """CACHE/BACKBONE, as on a disk; naming CACHE says which there are."""
    extractors = {name: fake_extractor(model=name) for name in ("one", "two")}
    reports = build_caches(photos, str(bucket / "c"), backbone=list(extractors), extractors=extractors)
    assert [report.cache for report in reports] == [f"{bucket}/c/one", f"{bucket}/c/two"]
    with pytest.raises(FileNotFoundError, match="name one of them"):
        open_cache(str(bucket / "c"))


# --- many builders ---


def build_half(photos: str, cache: str, dataset: str, together: Barrier) -> None:
    """Build a folder in another process, in commits of four rows."""
    together.wait(300)
    build(Path(photos), cache, dataset=dataset, settings=ExtractSettings(commit_rows=4, burst=1), workers=1)  # type: ignore[arg-type]


def test_two_builders_at_once_both_succeed(photos: Path, bucket: ObjectPath, tmp_path: Path) -> None:
    """Two data sets that share half their images, one cache that is not there yet: one digest, every row once."""
    other = tmp_path / "other"
    for i in range(6):
        write_photo(other / "bird" / f"{i}.jpg", seed=300 + i)
    for file in (photos / "cat").iterdir():
        (other / "cat").mkdir(exist_ok=True)
        (other / "cat" / file.name).write_bytes(file.read_bytes())
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(2)
    there = str(bucket / "cache")
    builders = [
        context.Process(target=build_half, args=(str(folder), there, name, together))
        for name, folder in (("first", photos), ("second", other))
    ]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(400)
        assert builder.exitcode == 0
    build(photos, tmp_path / "alone", dataset="first")
    build(other, tmp_path / "alone", dataset="second")
    assert digest_of(there) == digest_of(tmp_path / "alone")
    with open_cache(there) as cache, cache.reader() as reader:
        assert len(reader) == 30
        assert cache.datasets == ("first", "second")
    assert verify(there).ok


def test_two_builders_of_one_list_one_is_refused(photos: Path, bucket: ObjectPath) -> None:
    """Who comes second did not see what the first one stored; built again, it has."""
    there = str(bucket / "cache")
    build(photos, there)
    with open_cache(there) as first, open_cache(there) as second:
        samples = [cache.samples("photos") for cache in (first, second)]
        first.replace_samples(dataclasses.replace(samples[0], split_seed=1), before=samples[0])
        with pytest.raises(LockedError, match="build again"):
            second.replace_samples(dataclasses.replace(samples[1], split_seed=2), before=samples[1])
        with pytest.raises(LockedError, match="build again"):
            second.replace_samples(samples[1])
        assert second.samples("photos").split_seed == 1


def test_killed_build_goes_on_where_it_was(photos: Path, bucket: ObjectPath, tmp_path: Path) -> None:
    """SIGKILL between a segment and its log entry: what was committed is reused, the rest is made again."""
    there = str(bucket / "cache")
    code = (
        "import os, sys\nsys.path.insert(0, sys.argv[1])\nfrom pathlib import Path\nfrom fake import build\n"
        "from featcache.extract.settings import ExtractSettings\nfrom featcache.store._object_log import CommitLog\n"
        "publish, left = CommitLog.publish, [2]\n"
        "def publish_twice(*values):\n    left[0] -= 1\n"
        "    return publish(*values) if left[0] >= 0 else os.kill(os.getpid(), 9)\n"
        "CommitLog.publish = publish_twice\n"
        "build(Path(sys.argv[2]), sys.argv[3], settings=ExtractSettings(commit_rows=5, burst=1), workers=1)"
    )
    folder = str(Path(__file__).resolve().parent.parent)
    assert subprocess.run([sys.executable, "-c", code, folder, str(photos), there], check=False).returncode == -9
    with open_cache(there) as cache, cache.reader() as reader:
        committed = len(reader)
        assert cache.datasets == ()
    assert 10 <= committed < 24
    report = build(photos, there)
    assert (report.extracted, report.reused) == (24 - committed, committed)
    build(photos, tmp_path / "alone")
    assert digest_of(there) == digest_of(tmp_path / "alone")


# --- content that no manifest names ---


def contents(bucket: ObjectPath) -> list[str]:
    return (bucket / "cache").children()[0]


@pytest.mark.parametrize("clear", ["repair", "overwrite"])
def test_content_of_a_killed_creation_goes_once_it_is_a_day_old(
    clear: str, photos: Path, bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before: it may be another builder's, who is about to name it."""
    there = str(bucket / "cache")
    build(photos, there)
    create_store(bucket / "cache/content-killed/store", kind="zarr", columns=[Column("score", (), "float32")])

    def run_clear() -> None:
        if clear == "repair":
            assert verify(there, repair=True).ok
        else:
            build(photos, there, overwrite=True)

    run_clear()
    assert len(contents(bucket)) == 2
    assert "content-killed" in contents(bucket)
    two_days_later = time.time_ns() + 2 * 86_400 * 10**9
    monkeypatch.setattr(manifest.time, "time_ns", lambda: two_days_later)
    run_clear()
    monkeypatch.undo()
    assert len(contents(bucket)) == 1
    assert "content-killed" not in contents(bucket)
    with open_cache(there) as cache, cache.reader() as reader:
        assert len(reader) == 24


def test_who_begins_anew_removes_nothing_that_another_has_just_begun(
    bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second creation ends between the first one's manifest and its clearing: the cache is the second's, whole."""
    place, recipe = bucket / "cache", fake_extractor().recipe
    made = partial(create_cache, place, recipe, shapes={"features": (3,)}, store="zarr", overwrite=True)
    made(request={"number": 0}).close()
    put = creation.write_manifest

    def put_and_be_overtaken(*values: object, **settings: object) -> None:
        put(*values, **settings)  # type: ignore[arg-type]
        monkeypatch.undo()
        made(request={"number": 2}).close()

    monkeypatch.setattr(creation, "write_manifest", put_and_be_overtaken)
    made(request={"number": 1}).close()
    with open_cache(place) as cache:
        assert cache.request == {"number": 2}
        assert verify(place).ok


def test_creation_whose_content_was_cleared_meanwhile_is_refused(bucket: ObjectPath) -> None:
    """It names nothing that is not there; what was there before stays."""
    place, recipe = bucket / "cache", fake_extractor().recipe
    settings = {"columns": [Column("features", (3,), "float32")], "store": "zarr", "request": {}}
    with pytest.raises(StorageError, match="removed meanwhile"), new_cache(place, recipe, **settings) as cache:  # type: ignore[arg-type]
        remove_objects([path for path, _ in place.walk()])
        assert cache.fingerprint == recipe.fingerprint
    assert not list(place.walk())


# --- lists of samples ---


def test_lists_are_in_parts_and_only_parts_that_changed_are_put(
    bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image more in the middle is one new part; failures, paths and targets come back as they were."""
    monkeypatch.setattr(object_sample_lists, "MOST_ENTRIES", 100)
    digests = np.random.default_rng(0).integers(0, 256, (500, 32), dtype=np.uint8)
    digests[::70, :2] = 0
    samples = make_samples(
        np.arange(500) % 3, ["train"] * 500, digests=digests, targets=np.eye(500, 2, dtype=np.float32)
    )
    samples = dataclasses.replace(samples, failures={3: "cut off", 499: "no image"})
    lists = object_sample_lists.ObjectSampleLists(bucket / "cache")
    lists.replace(samples, before=None)
    parts = [str(path) for path, _ in (bucket / "cache/parts").walk()]
    assert len(parts) >= 8
    number, again = lists.load("toy")
    assert number == 1
    assert_same(again, samples)
    keep = np.arange(500) != 250
    fewer = dataclasses.replace(
        samples, digests=digests[keep], splits=samples.splits[keep], failures={3: "cut off", 498: "no image"},
        listing=dataclasses.replace(
            samples.listing, paths=[path for i, path in enumerate(samples.paths) if keep[i]],
            stats=samples.listing.stats[keep], labels=samples.listing.labels[keep],
            targets=samples.targets[keep], given_splits=samples.listing.given_splits[keep], scanned_ns=5,
        ),
    )  # fmt: skip
    lists.replace(fewer, before=1)
    assert len(list((bucket / "cache/parts").walk())) == len(parts) + 1
    assert_same(lists.load("toy")[1], fewer)
    empty = make_samples(np.zeros(1, int), ["train"], dataset="empty")
    none = dataclasses.replace(
        empty, digests=empty.digests[:0], splits=empty.splits[:0],
        listing=dataclasses.replace(empty.listing, paths=[], stats=empty.listing.stats[:0],
                                    labels=empty.listing.labels[:0], given_splits=empty.listing.given_splits[:0]),
    )  # fmt: skip
    lists.replace(none, before=None)
    assert_same(lists.load("empty")[1], none)


def assert_same(one: Samples, other: Samples) -> None:
    assert (one.dataset, one.paths, one.failures, one.split_seed) == (
        other.dataset, other.paths, other.failures, other.split_seed
    )  # fmt: skip
    assert np.array_equal(one.digests, other.digests)
    assert np.array_equal(one.splits, other.splits)
    for name in ("stats", "labels", "targets", "given_splits", "scanned_ns", "root", "classes"):
        assert np.array_equal(getattr(one.listing, name), getattr(other.listing, name)), name


# --- damage ---


@pytest.mark.parametrize(
    "harmed", ["manifest.json", "manifest-copy.json", "requests.json", "samples", "parts", "columns"]
)
def test_damage_is_named_and_mended(harmed: str, bucket: ObjectPath, tmp_path: Path) -> None:
    """Whatever a byte is flipped in: verify finds it, a repair leaves a cache that is whole."""
    there = str(bucket / "cache")
    convert(write_cache(tmp_path / "cache", blobs()), out=there, store="zarr")
    with open_cache(there) as cache:
        cache.remember_request({"backbone": "toy"})
    objects = [path for path, _ in (bucket / "cache").walk()]
    path = next(path for path in objects if harmed in path.key.split("/"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))
    found = verify(there)
    assert not found.ok
    verify(there, repair=True)
    lost = {"columns": ["samples have no row"]}.get(harmed, [])
    problems = verify(there).problems
    assert len(problems) == len(lost)
    assert all(part in problem for part, problem in zip(lost, problems, strict=True))
    with open_cache(there) as cache, cache.reader() as reader:
        assert len(reader) == 240 - len(lost)


# --- the command line ---


def run(*arguments: object) -> dict:
    """Run a verb in this process and return what it prints."""
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def refused(*arguments: object) -> str:
    """Return the line in which a verb refuses."""
    error = CliRunner().invoke(app, [*map(str, arguments)]).exception
    assert isinstance(error, featcache.FeatcacheError), error
    assert "\n" not in str(error)
    return str(error)


def test_commands_take_urls(photos: Path, bucket: ObjectPath, tmp_path: Path) -> None:
    """build, info, train, verify, convert with s3://; no secret is in any object, and bad places end in one line."""
    there = f"{bucket}/cache"
    assert run("build", photos, "--cache", there)["rows"] == 24
    assert run("info", there)["store"] == "zarr"
    assert run("train", there, "--out", tmp_path / "head")["n_train"] > 0
    assert run("verify", there, "--repair")["ok"]
    assert run("convert", there, "--out", tmp_path / "copy", "--store", "lmdb")["rows"] == 24
    for path, _ in bucket.walk():
        data = path.read_bytes()
        assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"].encode() not in data
        assert b'"tests"' not in data  # the key's name
    assert "--store zarr" in refused("build", photos, "--cache", f"{bucket}/lmdb", "--store", "lmdb")
    assert "the bucket" in refused("build", photos, "--cache", "s3://tests-that-is-not-there/cache")
    assert "featcache build" in refused("info", f"{bucket}/nothing")
    assert "is none" in refused("verify", f"{bucket}/nothing")


NO_BUCKET = Answer(404, b"<Error><Code>NoSuchBucket</Code></Error>")


@pytest.mark.parametrize(
    ("answer", "what_to_do"),
    [
        pytest.param(DENIED, "set those of the storage in the environment", id="no rights"),
        pytest.param(OTHER_REGION, "set AWS_REGION", id="another region"),
        pytest.param(NO_BUCKET, "check its name", id="no bucket"),
    ],
)
def test_a_storage_that_refuses_says_what_to_do_in_one_line(
    answer: Answer, what_to_do: str, photos: Path, bucket: ObjectPath, s3_proxy: StorageProxy
) -> None:
    """Whoever makes a cache, opens it or extends it; also where only writing is refused."""
    there = f"{bucket}/cache"
    s3_proxy.fate = lambda *_: answer
    assert what_to_do in refused("build", photos, "--cache", there)
    s3_proxy.fate = lambda method, *_: answer if method == "PUT" else "pass"
    assert what_to_do in refused("build", photos, "--cache", there)
    s3_proxy.undisturbed()
    build(photos, there)
    write_photo(photos / "dog/new.jpg", seed=555)
    s3_proxy.fate = lambda *_: answer
    for command in (("info", there), ("train", there), ("verify", there), ("build", photos, "--cache", there)):
        assert what_to_do in refused(*command)
    s3_proxy.fate = lambda method, *_: answer if method == "PUT" else "pass"
    with pytest.raises(featcache.FeatcacheError, match=what_to_do) as raised:
        build(photos, there)
    assert "\n" not in str(raised.value)
    s3_proxy.undisturbed()
    assert build(photos, there).rows == 25


def test_commits_are_seldomer_there() -> None:
    """Each is a handful of requests; on a disk all stays as it was."""
    assert default_settings("s3://bucket/cache").commit_rows == 16_384
    assert default_settings("cache") == default_settings(None) == ExtractSettings()


def test_forked_process_says_what_to_do(bucket: ObjectPath, tmp_path: Path) -> None:
    """A storage is read by threads that a fork leaves behind: refused in one line, instead of waiting for ever."""
    (bucket / "one").write_bytes(b"1")
    child = os.fork()
    if not child:
        signal.alarm(20)
        try:
            (bucket / "one").read_bytes()
        except featcache.FeatcacheError as error:
            os._exit(7 if "spawn" in str(error) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
