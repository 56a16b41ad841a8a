"""A studio inside the test's own process, on a thread, and a client that speaks HTTP to it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from serving import Running, on_a_thread

from featcache.extract.build import build_cache
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

    def label_by_name(self, number: int) -> list[dict[str, Any]]:
        """Label every image of `coloured_cache` as its name says, wait for the head, and return the samples."""
        order = self.json(f"/api/datasets/{number}/samples")["samples"]
        samples: list[dict[str, Any]] = self.send(f"/api/datasets/{number}/samples", samples=order)[1]
        for name in ("red", "green", "blue"):
            self.send(f"/api/datasets/{number}/classes", name=name)
            changed = self.label(number, [one["id"] for one in samples if one["path"].startswith(name)], name)
        self.head(number, changed["revision"])
        return samples

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
    """Give the client of a running studio."""
    with on_a_thread(lambda ready: studio(workspace, port=0, ready=ready, **options)) as started:
        yield client_of(started.url)


def client_of(url: str) -> Client:
    """Return the client of the studio at the address that it said."""
    return Client(int(url.partition("/?")[0].rpartition(":")[2]))


COMMAND = [sys.executable, "-c", "from featcache.cli import main; main()", "studio"]


@contextmanager
def studio_process(
    workspace: Path, *arguments: str, before: Sequence[str] = ()
) -> Iterator[tuple[subprocess.Popen[str], Client]]:
    """Give the command as a process, begun by `before`, and its client; it is killed after the block."""
    process = subprocess.Popen(
        [*before, *COMMAND, str(workspace), "--port", "0", "--json", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield process, client_of(json.loads(process.stdout.readline())["url"])
    finally:
        process.kill()
        process.communicate()
