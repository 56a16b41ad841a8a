#!/usr/bin/env python3
"""Time `build` on images in a storage that answers late against the same images on the disk, in pairs.

    scripts/scale/images.py [--count 2000] [--delay 0.02] [--pairs 7] [--server web|moto] [--json OUT]

The storage is a small server of its own process that waits `--delay` seconds before each answer: ``web`` serves a
listing file and the photos, and costs little processor time; ``moto`` speaks S3, and takes about as much of the
processors as the build itself. `ratio`: images per second from there over those from the disk, by extract_seconds.
`unhidden`: what one worker thread per processor would reach if it waited for each image.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BUCKET = "photos"


def write_photos(folder: Path, count: int) -> None:
    """Write photos of 320 x 240 pixels, about 25 kB each."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 256, size=(60, 80, 3), dtype=np.uint8)
        place = folder / f"class{number % 4}" / f"{number:05}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC).save(place, quality=90)


def serve_files(folder: str, delay: float, port: Any) -> None:
    """Serve the files below `folder`, each answer `delay` seconds late."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(False)

        def do_GET(self) -> None:
            self.answer(True)

        def answer(self, with_body: bool) -> None:
            time.sleep(delay)
            data = Path(folder, self.path.lstrip("/")).read_bytes()
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.md5(data).hexdigest()}"')
            self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if with_body:
                self.wfile.write(data)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port.value = server.server_port
    server.serve_forever()


def serve_s3(folder: str, delay: float, port: Any) -> None:
    """Serve S3, each answer `delay` seconds late."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
    from object_storage import s3_server

    with s3_server() as proxy:
        proxy.latency = delay
        port.value = int(proxy.url.rpartition(":")[2])
        time.sleep(3600)


@contextlib.contextmanager
def storage(kind: str, folder: Path, delay: float) -> Iterator[str]:
    """Give the IMAGES of a server that has the photos."""
    context = multiprocessing.get_context("spawn")
    port = context.Value("i", 0)
    process = context.Process(target=serve_files if kind == "web" else serve_s3, args=(str(folder), delay, port))
    process.start()
    try:
        while not port.value:
            time.sleep(0.05)
        address = f"http://127.0.0.1:{port.value}"
        if kind == "web":
            yield f"{address}/photos.csv"
            return
        os.environ.update(
            AWS_ACCESS_KEY_ID="bench", AWS_SECRET_ACCESS_KEY="bench", AWS_REGION="us-east-1", AWS_ALLOW_HTTP="true",
            AWS_ENDPOINT_URL=address,
        )  # fmt: skip
        import urllib.request

        from featcache.system.objects import ObjectPath

        urllib.request.urlopen(urllib.request.Request(f"{address}/{BUCKET}", method="PUT")).close()
        for path in folder.rglob("*.jpg"):
            (ObjectPath(f"s3://{BUCKET}") / path.relative_to(folder).as_posix()).write_bytes(path.read_bytes())
        yield f"s3://{BUCKET}"
    finally:
        process.kill()
        process.join()


def measure(kind: str, *, count: int, delay: float, pairs: int) -> dict[str, Any]:
    """Return images per second from the disk and from the storage, and their ratio."""
    import featcache

    rates: dict[str, list[float]] = {"disk": [], "storage": []}
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "photos"
        write_photos(folder, count)
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))
        (folder / "photos.csv").write_text("\n".join(["path,label", *(f"{n},{n.split('/')[0]}" for n in names)]))
        with storage(kind, folder, delay) as images:
            featcache.build_cache(folder, Path(home) / "warm")
            for pair in range(pairs):
                for name, place in (("disk", str(folder)), ("storage", images)):
                    report = featcache.build_cache(place, Path(home) / f"{name}{pair}")
                    assert report.extracted == count, report
                    rates[name].append(count / report.extract_seconds)
    ratios = [there / here for here, there in zip(rates["disk"], rates["storage"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    here, workers = statistics.median(rates["disk"]), os.cpu_count() or 1
    unhidden = 1 / (1 / here + delay / workers)
    return {
        "server": kind, "count": count, "delay": delay, "disk": here, "storage": statistics.median(rates["storage"]),
        "ratio": middle, "quartiles": [low, high], "ratios": ratios, "unhidden": unhidden,
        "unhidden_ratio": unhidden / here,
    }  # fmt: skip


def section(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures for `scripts/bench_scale.py`."""
    return measure("web", count=arguments.rows or 2000, delay=arguments.latency_ms / 1e3, pairs=7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--delay", type=float, default=0.02)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--server", choices=("web", "moto"), default="web")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    result = measure(asked.server, count=asked.count, delay=asked.delay, pairs=asked.pairs)
    print(json.dumps(result, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
