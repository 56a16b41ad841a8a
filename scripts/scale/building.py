"""What an image more costs a build into a cache on object storage: memory of the process at its peak, and requests."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from bench_memory import status, write_images
from scale.storage import BUCKET, counted_storage
from scale.storage_proxy import StorageProxy

FEW, MANY = 40_000, 100_000  # beyond two commits, whose rows wait in memory
PROGRAM = "from featcache.cli import main; main()"


def section(arguments: Namespace) -> dict[str, Any]:
    """Return the peaks of a build of few small images and of one of many, and what the second asked of the storage."""
    many = arguments.rows or MANY
    with tempfile.TemporaryDirectory(prefix="bench_build_") as name, counted_storage() as proxy:
        few_images, many_images = (write_images(Path(name) / str(count), count) for count in (FEW, many))
        _build(few_images, "warm", proxy)  # the compiled network is kept from here on: both start alike
        peak_of_few, _ = _build(few_images, "few", proxy)
        peak_of_many, requests = _build(many_images, "many", proxy)
    return {
        "few": FEW, "many": many, "peak_mb_of_few": round(peak_of_few), "peak_mb_of_many": round(peak_of_many),
        "peak_bytes_per_image": round(1024**2 * (peak_of_many - peak_of_few) / (many - FEW)), "requests": requests,
    }  # fmt: skip


def _build(images: Path, cache: str, proxy: StorageProxy) -> tuple[float, dict[str, int]]:
    """Return the peak of a build's memory in MiB, and its requests."""
    proxy.reset()
    command = [
        sys.executable, "-c", PROGRAM, "build", str(images), "--cache", f"s3://{BUCKET}/{cache}",
        "--backbone", "featcache_nano", "--json",
    ]  # fmt: skip
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=out, stderr=errors)
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, status(process.pid).get("VmHWM", 0.0))
            time.sleep(0.02)
        for file in (out, errors):
            file.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{errors.read().decode()[-2000:]}")
        report = json.loads(out.read())
    assert report["extracted"] == report["images"], report
    return peak, dict(proxy.counts)
