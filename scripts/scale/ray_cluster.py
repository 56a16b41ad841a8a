#!/usr/bin/env python3
"""What a Ray cluster costs: its path against the plain engine on one machine, and from one actor to sixteen.

    scripts/scale/ray_cluster.py [--images DIR] [--count N] [--pairs 5] [--network NAME] [--json OUT]
    scripts/scale/ray_cluster.py --quick                         # two pairs on few images, up to four actors: a look

Ratio: builds of the same photos into new caches, alternated in one run: by the plain engine, by actors that carry
images to rows, and by tasks that decode for an actor apart. Each states images / seconds from the first file opened to
the last commit; Ray is started before. The median of the ratios of neighbours is given, with its quartiles.

Scale: an engine that sleeps like a device, one thread at a time, in 1 to 16 actors; each has as many small images. Cost
is actors x seconds / images, from when all actors are there to the last batch.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(HERE)]

import featcache  # noqa: E402
from featcache.engines import Engine, Features, Images  # noqa: E402
from featcache.extract.build import Extractor, build_cache  # noqa: E402
from featcache.recipe import Preprocessing, Recipe  # noqa: E402
from featcache.system.cluster import cluster  # noqa: E402

SIZE = 32
BATCH = 32
BATCH_SECONDS = 0.8  # 40 images a second: 16 actors leave a processor 3 ms for an image
_device = threading.Lock()  # of this process: a device computes one batch after the other


class SleepingEngine(Engine):
    """Sleeps for each batch as a device would compute, from when all `actors` are there; notes when in `log`."""

    name, version, precision, batch_size, workers, on_device = "onnxruntime", "1", "fp32", BATCH, 1, True
    height = width = SIZE
    columns: tuple[tuple[str, tuple[int, ...]], ...] = (("features", (3,)),)

    def __init__(self, log: str, actors: int) -> None:
        self.log, self.actors = Path(log), actors

    def _infer(self, batch: Images) -> tuple[Features, ...]:
        with _device:
            file = self.log / str(os.getpid())
            if not file.exists():
                file.touch()
            while len(os.listdir(self.log)) < self.actors:
                time.sleep(0.01)
            started = time.time()
            time.sleep(BATCH_SECONDS)
            with file.open("a") as text:
                text.write(f"{started} {time.time()}\n")
        return (batch.mean(axis=(1, 2), dtype=np.float32),)

    def _release(self) -> None:
        """Nothing is held."""


def sleeping_extractor(log: Path, actors: int) -> Extractor:
    preprocessing = Preprocessing(SIZE, SIZE, SIZE, "bicubic", "center", (0.5,) * 3, (0.5,) * 3)
    recipe = Recipe(
        model="sleeping", model_kwargs={}, model_digest=None, weights_sha256="0" * 64, outputs=("features",),
        preprocessing=preprocessing, decoder="pillow", dct_scaling=False, orientation="exif", views=1, view_seed=0,
        engine="onnxruntime", engine_version="1", precision="fp32", dtype="float32", weights="none",
    )  # fmt: skip
    return Extractor(SleepingEngine(str(log), actors), recipe)


@contextmanager
def machines(processors: int, gpus: int = 0) -> Iterator[str]:
    """Yield the address of a Ray cluster of one raylet that says it has so many processors and GPUs."""
    from ray.cluster_utils import Cluster

    folders = [ROOT, ROOT / "scripts", HERE]  # where workers find this file, and what it imports
    os.environ["PYTHONPATH"] = os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])
    # Ray's workers step back behind every other process (15), which beside other work would be what is measured
    alike = {"worker_niceness": 0}
    head = {"num_cpus": processors, "num_gpus": gpus, "object_store_memory": 1 << 30, "_system_config": alike}
    started = Cluster(initialize_head=True, head_node_args=head)
    try:
        with cluster(started.address):
            yield started.address
    finally:
        started.shutdown()


def small_photos(count: int, folder: Path) -> Path:
    from PIL import Image

    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((SIZE, SIZE)).save(folder / f"{number:06}.jpg")
    return folder


def spread(values: list[float]) -> dict[str, Any]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "quartiles": [low, high]}


def measure_ratio(photos: Path, *, pairs: int, network: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Build alternately by the plain engine and by both ways in a cluster; return their rates and ratios."""
    rates: dict[str, list[float]] = {"plain": [], "together": [], "apart": []}
    seconds: dict[str, list[float]] = {"plain": [], "together": [], "apart": []}
    digests = set()
    with machines(len(os.sched_getaffinity(0)), gpus=1) as address:
        ways: dict[str, dict[str, Any]] = {
            "plain": {},
            "together": {"ray": address},
            "apart": {"ray": address, "actors": 1, "gpus_per_actor": 1},
        }
        for number in range(pairs + 1):  # the first round compiles the network, and does not count
            for name, way in ways.items():
                place = folder / "cache"
                started = time.perf_counter()
                report = build_cache(photos, place, **network, **way)
                if number:
                    rates[name].append(report.images_per_second or 0.0)
                    seconds[name].append(time.perf_counter() - started)
                with featcache.open_cache(place) as opened:
                    digests.add(opened.content_digest())
                shutil.rmtree(place)
                print(f"  {name}: {report.images_per_second:.1f} images/s", file=sys.stderr, flush=True)

    def ratio(name: str) -> list[float]:
        return [ours / plain for ours, plain in zip(rates[name], rates["plain"], strict=True)]

    return {
        "images": report.extracted,
        "same_content": len(digests) == 1,
        **{f"{name}_images_per_second": spread(values) for name, values in rates.items()},
        **{f"{name}_wall_seconds": statistics.median(values) for name, values in seconds.items()},
        "ratio": spread(ratio("together")),
        "ratio_apart": spread(ratio("apart")),
    }


def measure_scale(counts: tuple[int, ...], *, each: int, folder: Path) -> list[dict[str, Any]]:
    """Return the cost of an image with so many actors, each of which has `each` images."""
    photos = small_photos(max(counts) * each, folder / "all")
    results = []
    for actors in counts:
        some = folder / f"photos-{actors}"
        some.mkdir()
        for file in sorted(photos.iterdir())[: actors * each]:
            os.link(file, some / file.name)
        log = folder / f"log-{actors}"
        log.mkdir()
        extractor = sleeping_extractor(log, actors)
        with machines(2 * actors) as address:  # two threads each: one decodes while the other waits for the device
            report = build_cache(some, folder / f"cache-{actors}", extractor=extractor, ray=address, actors=actors)
        times = [list(map(float, line.split())) for file in log.iterdir() for line in file.read_text().splitlines()]
        seconds = max(end for _, end in times) - min(start for start, _ in times)
        results.append(
            {"actors": actors, "images": report.extracted, "seconds": seconds, "actors_used": len(list(log.iterdir())),
             "milliseconds_per_image": 1000 * seconds * actors / report.extracted}
        )  # fmt: skip
        print(f"  {results[-1]}", file=sys.stderr, flush=True)
    return results


def measure(
    *, quick: bool = False, images: Path | None = None, count: int = 1900, pairs: int = 5, network: str | None = None
) -> dict[str, Any]:
    """Return both figures; `quick`: of few images, pairs and actors."""
    from bench_extract import photo_folder

    counts = (1, 2, 4) if quick else (1, 2, 4, 8, 16)
    weights = ROOT.parent / "shared" / "weights" / "mobilenetv2_100.torch_ptq.safetensors"
    chosen: dict[str, Any] = {"backbone": network or ("mobilenetv2_100" if weights.exists() else "featcache_nano")}
    if chosen["backbone"] == "mobilenetv2_100":
        chosen["weights"] = weights if weights.exists() else "random:0"
    with tempfile.TemporaryDirectory(prefix="bench_ray_") as name:
        folder = Path(name)
        photos = photo_folder(images, min(count, 600) if quick else count, folder)
        ratio = measure_ratio(photos, pairs=2 if quick else pairs, network=chosen, folder=folder)
        scale = measure_scale(counts, each=256 if quick else 512, folder=folder)
    base = scale[0]["milliseconds_per_image"]
    for entry in scale:
        entry["of_one_actor"] = entry["milliseconds_per_image"] / base
    return {"network": chosen["backbone"], "processors": len(os.sched_getaffinity(0)), **ratio, "scale": scale}


def section(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures for `scripts/bench_scale.py`."""
    return measure(count=arguments.rows or 1900)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of photos; default: clothing10, where it is unpacked")
    parser.add_argument("--count", type=int, default=1900)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--network", help="timm name; default: mobilenetv2_100, or featcache_nano without its weights")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report = measure(quick=args.quick, images=args.images, count=args.count, pairs=args.pairs, network=args.network)
    print(json.dumps(report, indent=1))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    # under its own name, so that workers find what it pickles
    import ray_cluster

    sys.exit(ray_cluster.main())
