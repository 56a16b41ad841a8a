"""Verbs in a Ray cluster: the same results as in one process, whatever is killed meanwhile; refusals in one line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import refusal, result
from conftest import write_photo
from ray_engines import computed, logged_extractor

import featcache
from featcache.errors import InputError, RecipeMismatchError
from featcache.extract.build import BuildReport, build_cache
from featcache.system.cluster import cluster
from featcache.system.objects import ObjectPath

pytestmark = [
    pytest.mark.ray,
    # Ray and what it starts leave sockets and files to the end of the process, and use what Python has deprecated
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


# where workers find the engine of these tests, and this checkout
PATH = os.pathsep.join([str(Path(__file__).parent), *sys.path])


@pytest.fixture(scope="module")
def machines(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Return a Ray cluster of one raylet, which says that it has a GPU, and this process in it."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'featcache[ray]'")
    from ray.cluster_utils import Cluster

    if find_spec("moto") and find_spec("obstore"):
        request.getfixturevalue("s3_endpoint")  # whose address and credentials the workers then have, too
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PATH)
        # a raylet that is gone is missed after a second, not after the 15 s that a network would need
        health = {
            "health_check_initial_delay_ms": 0,
            "health_check_period_ms": 500,
            "health_check_failure_threshold": 2,
        }
        head = {"num_cpus": 2, "num_gpus": 1, "_system_config": health}
        started = Cluster(initialize_head=True, head_node_args=head)
        with cluster(started.address):
            yield started
        started.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 200 photos of two classes, one of them once more, two that do not decode, and a link to nowhere."""
    folder = tmp_path_factory.mktemp("ray") / "photos"
    for hue, name in enumerate(["cat", "dog"]):
        for i in range(100):
            write_photo(folder / name / f"{i:03}.jpg", seed=100 * hue + i, hue=hue)
    shutil.copy(folder / "cat" / "000.jpg", folder / "dog" / "equal.jpg")
    (folder / "cat" / "bad.jpg").write_bytes(b"\xff\xd8\xff no image")
    shutil.copy(folder / "cat" / "bad.jpg", folder / "dog" / "bad.jpg")
    (folder / "dog" / "gone.jpg").symlink_to("nowhere")
    return folder


@pytest.fixture(scope="module")
def plain(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BuildReport]:
    """Return the cache of `folder` built without Ray, and its report."""
    place = tmp_path_factory.mktemp("plain") / "cache"
    return place, build_cache(folder, place, extractor=logged_extractor())


COUNTS = ("images", "ignored", "extracted", "reused", "failed", "rows", "num_features", "fingerprint", "failures")


def assert_same(cache: Path, report: BuildReport, plain: tuple[Path, BuildReport]) -> None:
    """Assert that two caches have the same rows and samples, and that their reports count alike."""
    assert {name: getattr(report, name) for name in COUNTS} == {name: getattr(plain[1], name) for name in COUNTS}
    with featcache.open_cache(cache) as ours, featcache.open_cache(plain[0]) as theirs:
        assert ours.content_digest() == theirs.content_digest()
        mine, other = ours.samples(), theirs.samples()
        assert np.array_equal(mine.digests, other.digests)
        assert np.array_equal(mine.listing.stats, other.listing.stats)
        assert (mine.failures, mine.splits.tolist()) == (other.failures, other.splits.tolist())


@pytest.mark.long  # that of the killed worker compares as well
@pytest.mark.parametrize("gpus", [pytest.param(0, id="on processors"), pytest.param(0.5, id="decoding apart")])
def test_build_in_a_cluster_equals_the_plain_one(
    machines: Any, folder: Path, plain: tuple[Path, BuildReport], tmp_path: Path, gpus: float
) -> None:
    """Whether actors carry images to rows, or tasks decode for actors with GPUs."""
    log = tmp_path / "log"
    log.mkdir()
    report = build_cache(
        folder, tmp_path / "cache", extractor=logged_extractor(log), ray=machines.address, actors=2, gpus_per_actor=gpus
    )
    assert_same(tmp_path / "cache", report, plain)
    assert computed(log) and os.getpid() not in computed(log)
    assert sum(report.seconds_by_stage.values()) > 0
    # what is there is not computed again, by other names neither
    moved = tmp_path / "photos"
    shutil.copytree(folder, moved, symlinks=True)
    for number in range(100, 103):
        write_photo(moved / "cat" / f"{number}.jpg", seed=number + 1000)
    again = build_cache(
        moved, tmp_path / "cache", dataset="more", extractor=logged_extractor(log),
        ray=machines.address, actors=1, gpus_per_actor=gpus,
    )  # fmt: skip
    assert (again.extracted, again.failed, again.rows) == (3, 3, report.rows + 3)


@pytest.mark.long
def test_views_and_several_caches_equal_the_plain_ones(machines: Any, folder: Path, tmp_path: Path) -> None:
    """Two caches, one with seeded views in float32, are built with one decode, here and there alike."""

    def extractors() -> dict[str, Any]:
        return {"one": logged_extractor(model="one", views=3, dtype="float32"), "two": logged_extractor(model="two")}

    both = {"backbone": ["one", "two"]}
    here = featcache.build_caches(folder, tmp_path / "here", extractors=extractors(), **both)
    for name, gpus in (("there", 0.0), ("apart", 0.5)):
        there = featcache.build_caches(
            folder, tmp_path / name, extractors=extractors(), ray=machines.address, gpus_per_actor=gpus, **both
        )
        for ours, theirs in zip(there, here, strict=True):
            assert_same(Path(ours.cache), ours, (Path(theirs.cache), theirs))


@pytest.mark.long
@pytest.mark.objects
@pytest.mark.parametrize(
    "gpus",
    [pytest.param(0, id="on processors"), pytest.param(0.5, id="decoding apart", marks=pytest.mark.long)],
)
def test_workers_write_to_object_storage_themselves(
    machines: Any, bucket: ObjectPath, folder: Path, plain: tuple[Path, BuildReport], gpus: float
) -> None:
    """Several writers, each committing its shares; no row crosses this process, and the cache is as the plain one."""
    place = f"{bucket}/cache"
    shared = {"ray": machines.address, "actors": 2, "gpus_per_actor": gpus}
    report = build_cache(folder, place, extractor=logged_extractor(), **shared)
    with featcache.open_cache(place) as ours, featcache.open_cache(plain[0]) as theirs:
        assert ours.content_digest() == theirs.content_digest()
        assert ours.samples().failures == theirs.samples().failures
        assert ours.verify().ok
    assert {name: getattr(report, name) for name in COUNTS} == {name: getattr(plain[1], name) for name in COUNTS}
    assert build_cache(folder, place, extractor=logged_extractor(), **shared).extracted == 0


def killer(log: Path, kill: Callable[[int], object]) -> threading.Thread:
    """Return a thread that calls `kill` with the first process that has computed three batches."""

    def watch() -> None:
        while True:
            for process, batches in computed(log).items():
                if batches >= 3:
                    kill(process)
                    return
            time.sleep(0.02)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_killed_worker_costs_its_share_in_work(
    machines: Any, folder: Path, plain: tuple[Path, BuildReport], tmp_path: Path
) -> None:
    """SIGKILL of an actor: its share is computed again, in another process, and nothing is counted twice."""
    log = tmp_path / "log"
    log.mkdir()
    thread = killer(log, lambda process: os.kill(process, signal.SIGKILL))
    report = build_cache(
        folder, tmp_path / "cache", extractor=logged_extractor(log, 0.05), ray=machines.address, actors=2
    )
    thread.join(1)
    assert not thread.is_alive()
    assert_same(tmp_path / "cache", report, plain)
    assert len(computed(log)) >= 2
    # 200 images in shares of 32 and batches of 8: besides the share of the killed one, the one that it had waiting
    assert sum(computed(log).values()) <= 200 / 8 + 7 + 2 * 4


@pytest.mark.long
def test_killed_driver_goes_on_from_what_is_committed(
    machines: Any, folder: Path, plain: tuple[Path, BuildReport], tmp_path: Path
) -> None:
    """SIGKILL of the process that builds: a second one extracts the rest alone, and all of it is as by one."""
    cache, log = tmp_path / "cache", tmp_path / "log"
    log.mkdir()
    code = (
        "import sys; from pathlib import Path; from ray_engines import logged_extractor; "
        "from featcache.extract.build import build_cache; from featcache.extract.settings import ExtractSettings; "
        "build_cache(sys.argv[1], sys.argv[2], extractor=logged_extractor(Path(sys.argv[3]), 0.2), "
        "settings=ExtractSettings(commit_rows=1, burst=8), ray=sys.argv[4], actors=1)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, (folder, cache, log, machines.address))]
    driver = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 60
        while committed(cache) == 0 and driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        driver.kill()
        driver.wait()
    there = committed(cache)
    assert 0 < there < plain[1].rows
    report = build_cache(folder, cache, extractor=logged_extractor(), ray=machines.address, actors=1)
    assert report.extracted == plain[1].extracted - there
    assert report.reused == plain[1].reused + there
    with featcache.open_cache(cache) as ours, featcache.open_cache(plain[0]) as theirs:
        assert ours.content_digest() == theirs.content_digest()


def committed(cache: Path) -> int:
    """Return how many rows a cache has, 0 where there is none yet."""
    try:
        with featcache.open_cache(cache) as opened, opened.reader() as reader:
            return len(reader)
    except featcache.FeatcacheError:
        return 0


@pytest.mark.long
def test_removed_raylet_costs_its_shares_in_work(
    machines: Any, folder: Path, plain: tuple[Path, BuildReport], tmp_path: Path
) -> None:
    """A machine of several goes, with the actors on it: the others compute what it had."""
    log = tmp_path / "log"
    log.mkdir()
    second = machines.add_node(num_cpus=2)
    try:
        gone = []

        def remove(process: int) -> None:
            machines.remove_node(second, allow_graceful=False)
            gone.append(second)

        thread = killer(log, remove)
        report = build_cache(
            folder, tmp_path / "cache", extractor=logged_extractor(log, 0.1), ray=machines.address, actors=2
        )
        thread.join(10)
    finally:
        if not gone:
            machines.remove_node(second)
    assert gone
    assert_same(tmp_path / "cache", report, plain)


@pytest.mark.long
def test_errors_of_workers_are_the_same_as_here(machines: Any, folder: Path, tmp_path: Path) -> None:
    """What a worker refuses is refused here, in its words; what was committed before stays."""
    with pytest.raises(InputError, match=r"must fit into float16"):
        build_cache(folder, tmp_path / "large", extractor=logged_extractor(factor=1e6), ray=machines.address, actors=1)
    other = tmp_path / "other"
    build_cache(folder, other, extractor=logged_extractor())
    with pytest.raises(RecipeMismatchError, match="precision"):
        build_cache(folder, other, extractor=logged_extractor(precision="bf16"), ray=machines.address)


def test_cluster_of_another_version_is_refused(machines: Any) -> None:
    """What the cluster says of itself is compared before anything is computed."""
    from ray._common.usage import usage_constants
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

    key, space = usage_constants.CLUSTER_METADATA_KEY, b"cluster"
    before = _internal_kv_get(key, namespace=space)
    other = {**json.loads(before), "ray_version": "2.9.1"}
    _internal_kv_put(key, json.dumps(other).encode(), overwrite=True, namespace=space)
    try:
        line = refusal("build", "nowhere", "--ray", machines.address)
        assert "nowhere" in line  # images are looked for first
        code = f"from featcache.system.cluster import cluster\nwith cluster({machines.address!r}): pass"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "must have this process's versions" in done.stderr.splitlines()[-1]
        assert "2.9.1" in done.stderr.splitlines()[-1]
    finally:
        _internal_kv_put(key, before, overwrite=True, namespace=space)


def test_process_in_a_cluster_stays_in_it(machines: Any) -> None:
    """A cluster within a cluster is the same one; another is refused."""
    import ray

    with cluster("auto") as inner, cluster("local"):
        assert inner is ray
    assert ray.is_initialized()
    with pytest.raises(InputError, match="must not be in another Ray cluster"), cluster("127.0.0.1:1"):
        pass


@pytest.mark.long
def test_predictions_in_a_cluster_equal_those_here(machines: Any, pets: Path, folder: Path) -> None:
    """In the order of the images, the bad ones among them; and so the evaluation."""
    images = [folder, *sorted((folder / "dog").glob("00?.jpg"))]
    here = featcache.predict(pets, images)
    assert featcache.predict(pets, images, ray=machines.address, actors=2) == here
    assert sum(prediction.reason is not None for prediction in here) == 2
    assert featcache.evaluate(pets, folder, ray=machines.address, gpus_per_actor=0.25) == featcache.evaluate(
        pets, folder
    )


@pytest.mark.long
def test_command_in_a_cluster_of_its_own(folder: Path, tmp_path: Path) -> None:
    """`--ray local` starts one and leaves nothing behind; where there is nothing to do it starts none."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'featcache[ray]'")
    before = set(Path("/tmp").glob("featcache-ray-*"))
    arguments = ("build", folder, "--cache", tmp_path / "cache", "--backbone", "featcache_nano", "--ray", "local")
    report = result(*arguments, "--actors", "1")
    assert (report["extracted"], report["failed"]) == (200, 3)
    assert set(Path("/tmp").glob("featcache-ray-*")) <= before
    assert build_cache(folder, tmp_path / "cache", ray="127.0.0.1:1").extracted == 0
