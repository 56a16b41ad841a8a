#!/usr/bin/env python3
"""Compare the memory that `featcache build` takes for many images and for few: it should not depend on how many.

    scripts/bench_memory.py [--few 1000] [--many 100000] [--dir DIR] [--json OUT]

The images are small synthetic JPEGs of different bytes, written to --dir once: a second run goes on where one was
stopped. Printed are the peaks of the whole process (VmHWM, with every page of libraries and mapped files) and of its
own memory alone (RssAnon, sampled every 20 ms).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

PER_FOLDER = 1000
PICTURES = 64


def write_images(folder: Path, count: int) -> Path:
    """Bring `folder` to `count` JPEGs of 64x64 in class folders; the number of each stands in a comment of its file."""
    encoded = []
    for seed in range(PICTURES):
        coarse = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC).save(buffer, "jpeg", quality=90)
        encoded.append(buffer.getvalue())
    for start in tqdm(range(0, count, PER_FOLDER), desc="images", disable=None):
        place = folder / f"{start // PER_FOLDER:05}"
        wanted = min(PER_FOLDER, count - start)
        if place.is_dir() and len(os.listdir(place)) == wanted:
            continue
        place.mkdir(parents=True, exist_ok=True)
        for number in range(start, start + wanted):
            data = encoded[number % PICTURES]
            comment = b"\xff\xfe\x00\x0a" + number.to_bytes(8, "big")
            (place / f"{number:08}.jpg").write_bytes(data[:2] + comment + data[2:])
    return folder


def status(pid: int) -> dict[str, float]:
    """Return VmHWM and RssAnon of a process in MB; empty when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    values = dict(line.split(":", 1) for line in lines)
    return {name: int(values[name].split()[0]) / 1024 for name in ("VmHWM", "RssAnon") if name in values}


def peak_of_build(images: Path, cache: Path, args: argparse.Namespace) -> dict[str, Any]:
    shutil.rmtree(cache, ignore_errors=True)
    program = Path(sys.executable).parent / "featcache"
    command = [
        str(program), "build", str(images), "--cache", str(cache), "--backbone", args.network,
        "--weights", "random:0", "--store", args.store, "--json",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    peak: dict[str, float] = {}
    while process.poll() is None:
        for name, value in status(process.pid).items():
            peak[name] = max(value, peak.get(name, 0.0))
        time.sleep(0.02)
    out, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors[-2000:]}")
    report = json.loads(out)
    shutil.rmtree(cache)
    return {
        "images": report["images"],
        "extracted": report["extracted"],
        "images_per_second": report["images_per_second"],
        "peak_mb": peak["VmHWM"],
        "peak_anonymous_mb": peak["RssAnon"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=1000)
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--network", default="mobilenetv3_small_050")
    parser.add_argument("--store", default="lmdb")
    parser.add_argument("--dir", type=Path, default=Path.home() / ".cache" / "featcache-data" / "bench_memory")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    few = write_images(args.dir / f"few{args.few}", args.few)
    many = write_images(args.dir / f"many{args.many}", args.many)
    peak_of_build(few, args.dir / "cache", args)  # the compiled network is kept from here on: both start alike
    report: dict[str, Any] = {"few": peak_of_build(few, args.dir / "cache", args)}
    report["many"] = peak_of_build(many, args.dir / "cache", args)
    for key in ("peak_mb", "peak_anonymous_mb"):
        report[f"{key}_difference"] = report["many"][key] - report["few"][key]
    for name in ("few", "many"):
        print(", ".join(f"{key} {value:.6g}" for key, value in report[name].items()))
    print(f"difference of peaks {report['peak_mb_difference']:.1f} MB, of own memory alone "
          f"{report['peak_anonymous_mb_difference']:.1f} MB")  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
