"""A studio inside the test's own process, on a thread, and a client that speaks HTTP to it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from serving import Running

from featcache.extract.build import build_cache
from featcache.serve.server import Started
from featcache.serve.studio.server import studio

COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (50, 60, 210)}


def draw_coloured(folder: Path, *, each: int, classes: tuple[str, ...] = ("red", "green"), flat: bool = False) -> Path:
    """Write noisy photos of a colour each, in class folders or, `flat`, in one folder; return it."""
    rng = np.random.default_rng(0)
    for name in classes:
        place = folder if flat else folder / name
        place.mkdir(parents=True, exist_ok=True)
        for number in range(each):
            pixels = rng.normal(COLOURS[name], 40, (48, 48, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{name}-{number:03}.png")
    return folder


def coloured_cache(workspace: Path, *, each: int = 30, flat: bool = True, name: str = "colours", **more: Any) -> Path:
    """Return a cache of coloured photos in `workspace`, by a network of random weights."""
    images = draw_coloured(workspace / "images" / name, each=each, flat=flat, **more)
    cache = workspace / "caches" / name
    cache.parent.mkdir(exist_ok=True)
    build_cache(images, cache, backbone="featcache_nano", weights="random:0", engine="torch", dataset=name)
    return cache


class Client(Running):
    """The client's side of a studio."""

    def json(self, path: str) -> Any:
        status, data = self.get(path)
        assert status == 200, (status, data)
        return json.loads(data)

    def send(self, path: str, **values: Any) -> tuple[int, Any]:
        return self.post(path, json.dumps(values), {"Content-Type": "application/json"})

    def label(self, number: int, samples: list[int], label: str | None) -> Any:
        """Label as somebody who has just looked."""
        revision = self.json(f"/api/datasets/{number}")["revision"]
        status, answer = self.send(f"/api/datasets/{number}/labels", samples=samples, label=label, revision=revision)
        assert status == 200, answer
        return answer

    def head(self, number: int, revision: int) -> Any:
        """Return the head once it is of `revision`."""
        return self.json(f"/api/datasets/{number}/head?revision={revision}&seconds=20")

    def finished(self, job: int, seconds: float = 120) -> Any:
        """Return a job once it has ended."""
        end = time.monotonic() + seconds
        while (found := self.json(f"/api/jobs/{job}"))["state"] in ("queued", "running"):
            assert time.monotonic() < end, found
            time.sleep(0.05)
        return found


@contextmanager
def open_studio(workspace: Path, **options: Any) -> Iterator[Client]:
    """Give a running studio, stopped after the block as SIGTERM stops it."""
    begun: list[Started] = []
    errors: list[BaseException] = []
    settled = threading.Event()

    def ready(started: Started) -> None:
        begun.append(started)
        settled.set()

    def work() -> None:
        try:
            studio(workspace, port=0, ready=ready, **options)
        except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
            errors.append(error)
        finally:
            settled.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert settled.wait(60)
    try:
        if begun:
            yield Client(int(begun[0].url.partition("/?")[0].rpartition(":")[2]))
    finally:
        if begun:
            begun[0].stop()
        thread.join(60)
        assert not thread.is_alive()
    if errors:
        raise errors[0]
