#!/usr/bin/env python3
"""Time `featcache build` against the obvious program, alternated in one run of whole processes on the same files.

    scripts/bench_extract.py [--network NAME ...] [--images DIR] [--count N] [--pairs 5] [--threads 2] [--json OUT]
    scripts/bench_extract.py --quick                     # three pairs on few images: a look, not a figure
    scripts/bench_extract.py --megapixels 12             # synthetic large photos, with and without DCT scaling
    scripts/bench_extract.py --text [...]                # texts instead: bench_text.py, with its options

The peer is `peers/extract_obvious.py`. Both state images / seconds from the first file opened to the last byte stored;
the ratio is a median over pairs run back to back, with its quartiles. Between the pairs two rates of the same threads
are taken: decoding alone, and the network alone; `limit` is 1 / (1/decode + 1/network). `row_cosine` is the lowest of
our stored rows to fp32 torch on Pillow's pixels, EXIF applied, through timm's own transform.

MobileNetV2 has real weights where ../shared/weights is there; the others, which are timed only, have random ones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
DATA = Path.home() / ".cache" / "featcache-data"
REAL = {"mobilenetv2_100": "mobilenetv2_100.torch_ptq"}
# As many images as give both sides some seconds while five pairs of the slow one take no more than two minutes.
NETWORKS = {"mobilenetv2_100": 600, "mobilenetv3_small_100": 1900, "resnet50": 256, "vit_small_patch16_224": 288}
COMPARED = 96


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def median_and_quartiles(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "quartiles": [low, high]}


def photo_folder(images: Path | None, count: int, folder: Path) -> Path:
    """Return a class folder holding `count` of the photos, evenly taken; the files are links where that works."""
    source = images or DATA / "clothing10"
    if not source.is_dir():
        raise SystemExit(f"{source} must be a folder of photos: name one with --images (the tests unpack clothing10)")
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    chosen = [files[index * len(files) // count] for index in range(count)] if count < len(files) else files
    (folder / "photos" / "all").mkdir(parents=True)
    for number, path in enumerate(chosen):
        shutil.copyfile(path, folder / "photos" / "all" / f"{number:05}.jpg")
    return folder / "photos"


def large_photos(count: int, megapixels: float, folder: Path) -> Path:
    """Write synthetic photos of 4:3: smooth structure at every scale with the grain of a sensor, as cameras save it."""
    import numpy as np
    from PIL import Image

    (folder / "photos" / "all").mkdir(parents=True)
    width, height = round((megapixels * 1e6 * 4 / 3) ** 0.5), round((megapixels * 1e6 * 3 / 4) ** 0.5)
    for number in range(count):
        random = np.random.default_rng(number)
        total = np.zeros((height, width, 3), dtype=np.float32)
        for cells in (3, 9, 27, 81, 243, 729):  # amplitudes fall as 1 / frequency, as in natural images
            noise = random.integers(0, 256, (cells * 3 // 4 + 1, cells, 3), dtype=np.uint8)
            layer = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
            total += (np.asarray(layer, dtype=np.float32) - 127) * (2.2 / cells**0.5)
        total += random.standard_normal((height, width, 1), dtype=np.float32) * 3
        pixels = np.clip(total + 127, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / "all" / f"{number:05}.jpg", quality=90)
    return folder / "photos"


def child_environment(home: Path, threads: int) -> dict[str, str]:
    count = str(threads)
    return {**os.environ, "FEATCACHE_HOME": str(home), "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}


def run_json(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    report: dict[str, Any] = json.loads(done.stdout)
    report["process_seconds"] = time.perf_counter() - started
    return report


class Ours:
    """`featcache build` into a new cache each time; compiled networks are kept between runs, as for a user."""

    def __init__(self, photos: Path, name: str, weights: str, folder: Path, threads: int, flags: list[str]) -> None:
        self.photos, self.cache = photos, folder / "cache"
        self.environment = child_environment(folder / "home", threads)
        self.command = [
            str(Path(sys.executable).parent / "featcache"), "build", str(photos), "--cache", str(self.cache),
            "--backbone", name, "--weights", weights, "--json", *flags,
        ]  # fmt: skip

    def run(self) -> dict[str, Any]:
        shutil.rmtree(self.cache, ignore_errors=True)
        return run_json(self.command, self.environment)


class Obvious:
    """The peer, in a process of its own."""

    def __init__(self, photos: Path, name: str, weights: Path, folder: Path, threads: int) -> None:
        self.environment = child_environment(folder / "home", threads)
        program = ROOT / "scripts" / "peers" / "extract_obvious.py"
        self.command = [
            sys.executable, str(program), str(photos), str(folder / "rows.npy"), "--model", name,
            "--weights", str(weights),
        ]  # fmt: skip

    def run(self) -> dict[str, Any]:
        return run_json(self.command, self.environment)


def in_threads(count: int, work: Callable[[int], None]) -> float:
    """Return the seconds that `count` threads take for ``work(number)`` each."""
    pool = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    started = time.perf_counter()
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    return time.perf_counter() - started


class Rates:
    """Decoding alone and the network alone, each in as many threads as there are processors."""

    def __init__(self, photos: Path, engine: Any, preprocessing: Any, *, dct_scaling: bool, threads: int) -> None:
        import numpy as np

        self.files = sorted(str(path) for path in photos.rglob("*.jpg"))
        self.engine, self.preprocessing, self.dct_scaling, self.threads = engine, preprocessing, dct_scaling, threads
        shape = (engine.batch_size, engine.height, engine.width, 3)
        self.pixels = [np.zeros(shape, dtype=np.uint8) for _ in range(threads)]
        self.batches = max(1, -(-len(self.files) // (engine.batch_size * threads)))

    def decode(self) -> float:
        from featcache.images.load import load_image

        def work(number: int) -> None:
            for index, path in enumerate(self.files[number :: self.threads]):
                with open(path, "rb") as file:
                    data = file.read()
                out = self.pixels[number][index % self.engine.batch_size]
                load_image(data, self.preprocessing, dct_scaling=self.dct_scaling, out=out)

        return len(self.files) / in_threads(self.threads, work)

    def network(self) -> float:
        def work(number: int) -> None:
            for _ in range(self.batches):
                self.engine.run(self.pixels[number])

        return self.batches * self.threads * self.engine.batch_size / in_threads(self.threads, work)


def row_cosine(photos: Path, cache_path: Path, backbone: Any) -> dict[str, float]:
    """Return the cosines of stored rows to fp32 torch on Pillow's pixels, through timm's transform."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    from featcache.backbone.backbone import Backbone
    from featcache.backbone.timm_import import import_timm
    from featcache.cache import open_cache

    assert isinstance(backbone, Backbone)
    size = backbone.preprocessing
    transform = import_timm().data.create_transform(
        (3, size.height, size.width), mean=size.mean, std=size.std, interpolation=size.interpolation,
        crop_pct=size.height / size.resize, crop_mode=size.crop_mode,
    )  # fmt: skip
    files = sorted(photos.rglob("*.jpg"))
    files = files[:: max(1, len(files) // COMPARED)]
    cosines = []
    with open_cache(cache_path) as cache, cache.reader() as reader, torch.inference_mode():
        for path in files:
            key = np.frombuffer(hashlib.sha256(path.read_bytes()).digest(), dtype=np.uint8)
            ours = reader.gather("features", reader.find(key[None]))[0].astype(np.float64)
            upright = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
            wanted = backbone(transform(upright)[None])[0][0].double().numpy()
            cosines.append(float(ours @ wanted / np.linalg.norm(ours) / np.linalg.norm(wanted)))
    return {"lowest": min(cosines), "median": statistics.median(cosines), "images": len(cosines)}


def bench(name: str, count: int, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import save_file

    from featcache.backbone.load import load_backbone
    from featcache.engines import open_engine

    torch.set_num_threads(1)
    real = SHARED / "weights" / f"{REAL.get(name)}.safetensors"
    weights = str(real) if real.exists() else "random:0"
    say(f"{name}: weights {Path(weights).name}")
    backbone = load_backbone(name, weights=weights)
    peer_weights = folder / "weights.safetensors"
    save_file({key: value.contiguous() for key, value in backbone.network.state_dict().items()}, peer_weights)
    if args.megapixels:
        photos = large_photos(count, args.megapixels, folder)
    else:
        photos = photo_folder(args.images, count, folder)
    flags = ["--dct-scaling"] if args.dct_scaling else []
    ours = Ours(photos, name, weights, folder, args.threads, flags)
    peer = Obvious(photos, name, peer_weights, folder, args.threads)
    cold = ours.run()
    os.environ["FEATCACHE_HOME"] = str(folder / "home")
    pairs: list[dict[str, Any]] = []
    with open_engine(backbone) as engine:
        rates = Rates(photos, engine, backbone.preprocessing, dct_scaling=args.dct_scaling, threads=args.threads)
        rates.decode(), rates.network()
        for number in range(args.pairs):
            pair: dict[str, Any] = {}
            for side, program in (("ours", ours), ("peer", peer))[:: 1 if number % 2 else -1]:
                pair[side] = program.run()
            pair["decode"], pair["network"] = rates.decode(), rates.network()
            pair["limit"] = 1 / (1 / pair["decode"] + 1 / pair["network"])
            pair["ratio"] = pair["ours"]["images_per_second"] / pair["peer"]["images_per_second"]
            pair["of_limit"] = pair["ours"]["images_per_second"] / pair["limit"]
            pair["process_ratio"] = pair["peer"]["process_seconds"] / pair["ours"]["process_seconds"]
            pairs.append(pair)
            say(
                f"  pair {number + 1}: {pair['ours']['images_per_second']:.1f} and "
                f"{pair['peer']['images_per_second']:.1f} images/s, ratio {pair['ratio']:.2f}, decode "
                f"{pair['decode']:.0f}, network {pair['network']:.0f}, {pair['of_limit']:.2f} of the limit"
            )
        precision, engine_name = engine.precision, engine.name
    stored = sum(path.stat().st_blocks * 512 for path in ours.cache.rglob("*") if path.is_file())
    return {
        "images": pairs[-1]["ours"]["images"],
        "failed": pairs[-1]["ours"]["failed"],
        "weights": Path(weights).name,
        "engine": engine_name,
        "precision": precision,
        "dct_scaling": args.dct_scaling,
        "ours_images_per_second": median_and_quartiles([pair["ours"]["images_per_second"] for pair in pairs]),
        "peer_images_per_second": median_and_quartiles([pair["peer"]["images_per_second"] for pair in pairs]),
        "ratio": median_and_quartiles([pair["ratio"] for pair in pairs]),
        "process_ratio": median_and_quartiles([pair["process_ratio"] for pair in pairs]),
        "decode_images_per_second": median_and_quartiles([pair["decode"] for pair in pairs]),
        "network_images_per_second": median_and_quartiles([pair["network"] for pair in pairs]),
        "limit_images_per_second": median_and_quartiles([pair["limit"] for pair in pairs]),
        "of_limit": median_and_quartiles([pair["of_limit"] for pair in pairs]),
        "startup_seconds_cold": cold["startup_seconds"],
        "startup_seconds": statistics.median(pair["ours"]["startup_seconds"] for pair in pairs),
        "peer_startup_seconds": statistics.median(pair["peer"]["startup_seconds"] for pair in pairs),
        "seconds_by_stage": pairs[-1]["ours"]["seconds_by_stage"],
        "row_cosine": row_cosine(photos, ours.cache, backbone),
        "bytes_on_disk": stored,
        "peer_bytes_on_disk": (folder / "rows.npy").stat().st_size,
        "pairs": len(pairs),
    }


def show(name: str, entry: dict[str, Any]) -> None:
    def line(what: str, key: str, digits: int = 1) -> None:
        value = entry[key]
        low, high = value["quartiles"]
        print(f"  {what:34} {value['median']:9.{digits}f}   ({low:.{digits}f} to {high:.{digits}f})")

    print(f"\n{name}: {entry['images']} images, {entry['engine']} {entry['precision']}, weights {entry['weights']}")
    line("featcache, images/s", "ours_images_per_second")
    line("obvious program, images/s", "peer_images_per_second")
    line("ratio", "ratio", 2)
    line("ratio of whole processes", "process_ratio", 2)
    line("decoding alone, images/s", "decode_images_per_second")
    line("network alone, images/s", "network_images_per_second")
    line("limit, images/s", "limit_images_per_second")
    line("of the limit", "of_limit", 3)
    cosine = entry["row_cosine"]
    print(f"  row cosine: lowest {cosine['lowest']:.6f}, median {cosine['median']:.6f}, {cosine['images']} images")
    print(
        f"  start-up, s: first {entry['startup_seconds_cold']:.2f}, later {entry['startup_seconds']:.2f}, "
        f"obvious program {entry['peer_startup_seconds']:.2f}"
    )
    print(f"  bytes: {entry['bytes_on_disk']}, the obvious program's {entry['peer_bytes_on_disk']}")
    stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in entry["seconds_by_stage"].items())
    print(f"  seconds of all threads: {stages}")


def main() -> int:
    if "--text" in sys.argv[1:]:
        import bench_text

        sys.argv.remove("--text")
        return bench_text.main()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", action="append", help="timm name; may be given again; default: four of them")
    parser.add_argument("--images", type=Path, help="a folder of photos; default: clothing10, where it is unpacked")
    parser.add_argument("--count", type=int, help="how many of them; by default as suits the network")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="processors to use")
    parser.add_argument("--dct-scaling", action="store_true", help="build with --dct-scaling")
    parser.add_argument("--megapixels", type=float, default=0, help="synthetic photos of that size instead")
    parser.add_argument("--quick", action="store_true", help="three pairs, a quarter of the images")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    if args.quick:
        args.pairs = 3
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    report: dict[str, Any] = {"threads": args.threads, "networks": {}}
    for name in args.network or NETWORKS:
        count = args.count or (24 if args.megapixels else NETWORKS.get(name, 256)) // (4 if args.quick else 1)
        with tempfile.TemporaryDirectory(prefix="bench_extract_") as folder:
            entry = bench(name, count, args, Path(folder))
        report["networks"][name] = entry
        show(name, entry)
    report["arguments"] = {name: str(value) for name, value in vars(args).items()}
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
