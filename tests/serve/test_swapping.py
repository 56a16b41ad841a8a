"""Bundles replaced on disk while the server answers: swapped without a dropped request, or refused and the old kept."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from serving import Running, running


def until(holds: Callable[[], bool], *, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)


def replace(place: Path, new: Path) -> None:
    """Let a copy of the bundle `new` stand at `place`, as a deployment does it: beside it, then renamed."""
    shutil.copytree(new, place.with_name("coming"))
    os.rename(place, place.with_name("gone"))
    os.rename(place.with_name("coming"), place)
    shutil.rmtree(place.with_name("gone"))


def loads(server: Running, outcome: str, version: str = "1") -> float:
    return server.metric(f'featcache_bundle_loads_total{{model="live",outcome="{outcome}",version="{version}"}}')


def test_a_replaced_bundle_is_swapped_without_a_dropped_request(
    pets: Path, zoo: Path, photos: Path, tmp_path: Path
) -> None:
    """64 clients ask without pause while bundles change four times: each answer is right by one of the two, all are
    counted."""
    live = shutil.copytree(pets, tmp_path / "live")
    data = (photos / "cat" / "00.jpg").read_bytes()
    seen: list[tuple[int, str]] = []
    stopped = threading.Event()

    with running([live]) as server:

        def ask() -> None:
            while not stopped.is_set():
                status, entries = server.post("/models/live/classify", data)
                seen.append((status, entries[0]["label"]))

        clients = [threading.Thread(target=ask) for _ in range(64)]
        for client in clients:
            client.start()
        try:
            for count, new in enumerate([zoo, pets, zoo, pets], start=1):
                replace(live, new)
                until(lambda count=count: loads(server, "swapped") == count)
        finally:
            stopped.set()
            for client in clients:
                client.join()
        last = server.post("/models/live/classify", data)[1][0]["label"]  # asked after the last swap was counted
        asked = 'endpoint="/models/{name}/classify",status="200"'
        assert server.metric(f"featcache_requests_total{{{asked}}}") == len(seen) + 1
        computed = 'model="live",outcome="computed",version="1"'
        assert server.metric(f"featcache_images_total{{{computed}}}") == len(seen) + 1
        assert server.metric('featcache_batch_images_sum{model="live",version="1"}') == len(seen) + 1
        assert server.metric("featcache_waiting_images") == 0
    assert {status for status, _ in seen} == {200}
    labels = [label for _, label in seen]
    assert {label in ("cat", "dog") for label in labels} == {True, False}
    assert all(label in ("cat", "dog", "ape", "bat", "cow") for label in labels)
    assert last in ("cat", "dog")


def test_a_broken_bundle_is_refused_and_the_old_one_stays(pets: Path, zoo: Path, photos: Path, tmp_path: Path) -> None:
    """Cut short, changed by a byte, or gone; mended, it is taken."""
    live = shutil.copytree(pets, tmp_path / "live")
    data = (photos / "cat" / "00.jpg").read_bytes()
    with running([live]) as server:
        before = server.post("/models/live/classify", data)
        whole = (live / "model.onnx").read_bytes()
        (live / "model.onnx").write_bytes(whole[:-100])
        until(lambda: loads(server, "refused") == 1)
        assert server.post("/models/live/classify", data) == before
        (live / "manifest.json").write_text("{")
        until(lambda: loads(server, "refused") == 2)
        assert server.post("/models/live/classify", data) == before
        shutil.rmtree(live)
        time.sleep(0.3)
        assert server.post("/models/live/classify", data) == before
        shutil.copytree(zoo, live)
        until(lambda: loads(server, "swapped") == 1)
        assert server.post("/models/live/classify", data)[1][0]["label"] in ("ape", "bat", "cow")


def test_a_version_that_is_added_answers_as_the_newest(pets: Path, zoo: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "live").mkdir()
    shutil.copytree(pets, tmp_path / "live" / "1")
    data = (photos / "cat" / "00.jpg").read_bytes()
    with running([tmp_path / "live"]) as server:
        assert server.post("/models/live/classify", data)[1][0]["label"] in ("cat", "dog")
        shutil.copytree(zoo, tmp_path / "live" / "2")
        until(lambda: loads(server, "loaded", version="2") == 1)
        assert server.post("/models/live/classify", data)[1][0]["label"] in ("ape", "bat", "cow")
        assert server.post("/models/live/versions/1/classify", data)[1][0]["label"] in ("cat", "dog")


def test_threads_of_replaced_models_end(pets: Path, zoo: Path, photos: Path, tmp_path: Path) -> None:
    """One of this server, and one of the server that the other tests share."""
    live = shutil.copytree(pets, tmp_path / "live")
    data = (photos / "cat" / "00.jpg").read_bytes()
    with running([live]) as server:
        server.post("/models/live/classify", data)
        for count, new in enumerate([zoo, pets, zoo], start=1):
            replace(live, new)
            until(lambda count=count: loads(server, "swapped") == count)
        server.post("/models/live/classify", data)
        until(lambda: sum(thread.name == "featcache-batches" for thread in threading.enumerate()) <= 2, seconds=5)
