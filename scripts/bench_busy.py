#!/usr/bin/env python3
"""Time train, build, quantize and evaluate alone, beside busy loops, and niced beside them: waiting must not be work.

    scripts/bench_busy.py [--verbs train,build,quantize,evaluate] [--repeats 3] [--nice 5] [--quick] [--json OUT]
        [--work DIR]

One endless loop for each processor this process may use. Of each verb the median wall time and processor time (user and
system) of the repeats, and their ratios to those alone: two loops on two processors leave one thread two thirds of a
processor, so 1.5 times is what a scheduler allows, and more for a niced one. Processor time that grows says that
threads turn in a loop. train: 10,000 x 512 simulated rows of 100 classes, the penalty chosen on val; the others: 360
drawn photos through the embedded backbone. --quick: small data, one repeat.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from reports.report import FEATCACHE, draw_classes

VERBS = ("train", "build", "quantize", "evaluate")
SETTINGS = ("alone", "busy", "niced")


def write_simulated_cache(place: Path, *, n: int, d: int, k: int, photos: Path | None = None) -> None:
    """Write a cache of `n` rows of `d` simulated features in `k` classes, a tenth each val and test.

    `photos`: where a small JPEG of each class's colour is written for each row; None: there are none.
    """
    from featcache.cache.creation import create_cache
    from featcache.datasets.listing import Listing
    from featcache.datasets.samples import Samples
    from featcache.recipe import Preprocessing, Recipe

    generator = np.random.default_rng(0)
    labels = np.arange(n) % k
    rows = (0.35 * generator.normal(size=(k, d))[labels] + generator.normal(size=(n, d))).astype(np.float32)
    digests = generator.integers(0, 256, size=(n, 32), dtype=np.uint8)
    splits = np.array([0] * 8 + [1, 2], dtype=np.uint8)[np.arange(n) // k % 10]
    names = tuple(f"class{i}" for i in range(k))
    paths = [f"{i:06}.jpg" for i in range(n)]
    if photos is not None:
        photos.mkdir(parents=True)
        for number, (path, name) in enumerate(zip(paths, labels.tolist(), strict=True)):
            data = colour_jpeg(name, k) + number.to_bytes(8, "big")  # what stands behind the end is read by nobody
            (photos / path).write_bytes(data)
            digests[number] = np.frombuffer(hashlib.sha256(data).digest(), dtype=np.uint8)
    listing = Listing(
        str(photos or "/photos"), "classification", names, paths, np.zeros((n, 4), dtype=np.int64),
        labels.astype(np.int32), None, np.full(n, 255, dtype=np.uint8), 0, (), 0,
    )  # fmt: skip
    recipe = Recipe(
        model="simulated", model_kwargs={}, model_digest=None, weights_sha256="0" * 64, outputs=("features",),
        preprocessing=Preprocessing(8, 8, 8, "bicubic", "center", (0.5,) * 3, (0.5,) * 3), decoder="fast",
        dct_scaling=False, orientation="exif", views=1, view_seed=0, engine="torch", engine_version="2",
        precision="fp32", dtype="float32", weights="simulated",
    )  # fmt: skip
    with create_cache(place, recipe, shapes={"features": (d,)}, store="lmdb", request={}) as cache:
        with cache.store.writer() as writer:
            writer.append(digests, {"features": rows})
            writer.commit()
        cache.replace_samples(Samples("simulated", listing, digests, splits, {}, 0))


@functools.cache
def colour_jpeg(number: int, count: int) -> bytes:
    """Return a small JPEG of the colour `number` of `count`."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("HSV", (160, 120), (255 * number // count, 160, 200)).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def timed(work: Path, *arguments: object, nice: int = 0) -> tuple[float, float]:
    """Run a command of featcache and return its wall time and its processor time in seconds."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = ["nice", "-n", str(nice), *FEATCACHE, *map(str, arguments)]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"featcache {' '.join(map(str, arguments))}: {done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, processor


@contextlib.contextmanager
def busy_loops(wanted: bool) -> Iterator[None]:
    """Keep every processor busy inside the block."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in processors()] if wanted else []
    try:
        time.sleep(0.3 if wanted else 0)
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def processors() -> Sequence[int]:
    """Return the processors this process may use."""
    return sorted(os.sched_getaffinity(0))


def prepare(work: Path, *, quick: bool) -> dict[str, tuple[object, ...]]:
    """Make what the verbs need in `work` and return each verb's arguments."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    write_simulated_cache(
        work / "simulated", **({"n": 600, "d": 32, "k": 6} if quick else {"n": 10_000, "d": 512, "k": 100})
    )
    draw_classes(work / "photos", "a", "b", "c", each=12 if quick else 120)
    timed(work, "build", "photos", "--cache", "cache")
    timed(work, "train", "cache", "--out", "head")
    timed(work, "merge", "head", "cache", "--out", "model")
    timed(work, "export", "model", "--out", "bundle", "--format", "onnx", "--cache", "cache")
    return {
        "train": ("train", "simulated", "--l2", "auto", "--out", "trained", "--overwrite"),
        "build": ("build", "photos", "--cache", "built", "--overwrite"),
        "quantize": ("quantize", "model", "--cache", "cache", "--out", "int8", "--overwrite"),
        "evaluate": ("evaluate", "bundle", "photos"),
    }


def measure(work: Path, arguments: tuple[object, ...], *, repeats: int, nice: int) -> dict[str, Any]:
    """Return the figures of one verb: wall and processor seconds in each setting, and the ratios to those alone."""
    figures: dict[str, Any] = {}
    for setting in SETTINGS:
        with busy_loops(setting != "alone"):
            runs = [timed(work, *arguments, nice=nice if setting == "niced" else 0) for _ in range(repeats)]
        figures[setting] = {
            "wall_seconds": statistics.median(wall for wall, _ in runs),
            "processor_seconds": statistics.median(processor for _, processor in runs),
        }
    for setting in SETTINGS[1:]:
        for name in ("wall_seconds", "processor_seconds"):
            figures[setting][name.replace("seconds", "ratio")] = figures[setting][name] / figures["alone"][name]
    return figures


def main() -> None:
    """Measure the verbs asked for and print a table."""
    from featcache.system.machine import describe_machine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verbs", default=",".join(VERBS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--nice", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    verbs = options.verbs.split(",")
    if unknown := sorted(set(verbs) - set(VERBS)):
        parser.error(f"a verb must be one of {', '.join(VERBS)}, got {unknown[0]!r}")
    machine = describe_machine()
    idle = os.getloadavg()[0]
    print(f"{machine['processor']}, {len(processors())} processors, load before {idle:.1f}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        work = (options.work or Path(folder)) / "busy"
        arguments = prepare(work, quick=options.quick)
        print(f"{'verb':<9} {'alone':>16} {'busy':>16} {'ratios':>13} {'niced':>16} {'ratios':>13}   (wall, processor)")
        results = {}
        for verb in verbs:
            figures = measure(work, arguments[verb], repeats=1 if options.quick else options.repeats, nice=options.nice)
            results[verb] = figures
            cells = [f"{figures['alone']['wall_seconds']:6.2f} s {figures['alone']['processor_seconds']:6.2f} s"]
            for setting in SETTINGS[1:]:
                one = figures[setting]
                cells.append(f"{one['wall_seconds']:6.2f} s {one['processor_seconds']:6.2f} s")
                cells.append(f"{one['wall_ratio']:6.2f} {one['processor_ratio']:6.2f}")
            print(f"{verb:<9} {' '.join(cells)}", flush=True)
    if options.json:
        document = {"machine": machine, "load_before": idle, "nice": options.nice, "results": results}
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
