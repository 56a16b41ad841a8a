"""A million rows of 64 features from end to end: appended as a build does, listed, read, trained from; and the memory.

Rows are Gaussian classes, so that a head has something to learn; nothing is decoded and no network runs.
"""

from __future__ import annotations

import os
import resource
import tempfile
import threading
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from scale.storage import BUCKET, counted_storage

WIDTH, CLASSES, BATCH, COMMIT_ROWS = 64, 10, 4096, 16_384


class PeakMemory:
    """The most memory that this process had within the block, beyond what it had at its start."""

    def __enter__(self) -> PeakMemory:
        self.before, self.peak, self._stop = _resident(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def megabytes(self) -> int:
        return round((self.peak - self.before) / 1e6)

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self.peak = max(self.peak, _resident())


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def section(arguments: Namespace) -> dict[str, Any]:
    import featcache
    from featcache.cache import open_cache
    from featcache.cache.creation import create_cache
    from featcache.datasets.listing import Listing
    from featcache.datasets.samples import Samples
    from featcache.recipe import Preprocessing, Recipe

    rows = arguments.rows or 1_000_000
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(CLASSES, WIDTH)).astype(np.float32)
    recipe = Recipe(
        model="gaussian", model_kwargs={}, model_digest=None, weights_sha256="0" * 64, outputs=("features",),
        preprocessing=Preprocessing(8, 8, 8, "bicubic", "center", (0.5,) * 3, (0.5,) * 3), decoder="fast",
        dct_scaling=False, orientation="exif", views=1, view_seed=0, engine="torch", engine_version="2",
        precision="fp32", dtype="float16", weights="gaussian",
    )  # fmt: skip
    place = f"s3://{BUCKET}/cache"
    figures: dict[str, Any] = {"rows": rows, "row_bytes": 2 * WIDTH}
    with counted_storage() as proxy, tempfile.TemporaryDirectory():
        digests = rng.integers(0, 256, (rows, 32), dtype=np.uint8)
        labels = (np.arange(rows) % CLASSES).astype(np.int32)
        from featcache.system.objects import ObjectPath

        cache = create_cache(ObjectPath(place), recipe, shapes={"features": (WIDTH,)}, store="zarr", request={})
        proxy.reset()
        peaks = []
        started = time.perf_counter()
        with cache.store.writer() as writer:
            for quarter in np.array_split(np.arange(0, rows, BATCH), 4):
                with PeakMemory() as memory:
                    for first in quarter:
                        part = slice(first, min(first + BATCH, rows))
                        noise = rng.normal(size=(len(labels[part]), WIDTH), scale=2.0)
                        writer.append(digests[part], {"features": centers[labels[part]] + noise})
                        if (first // BATCH + 1) % (COMMIT_ROWS // BATCH) == 0:
                            writer.commit()
                peaks.append(memory.peak)
            writer.commit()
        figures["append_seconds"] = round(time.perf_counter() - started, 1)
        figures["append_requests"] = dict(proxy.counts)
        figures["append_bytes_per_row"] = round(proxy.bytes_sent / rows, 1)
        figures["append_resident_mb_by_quarter"] = [round(peak / 1e6) for peak in peaks]
        proxy.reset()
        names, paths = tuple(f"class{i}" for i in range(CLASSES)), [f"{i:08}.jpg" for i in range(rows)]
        listing = Listing(
            "/photos", "classification", names, paths,
            np.zeros((rows, 4), np.int64), labels, None, np.full(rows, 255, np.uint8), 0, (), 0,
        )  # fmt: skip
        splits = (np.arange(rows) // CLASSES % 10 == 0).astype(np.uint8)
        cache.replace_samples(Samples("photos", listing, digests, splits, {}, 0))
        figures["samples_requests"], figures["samples_bytes"] = dict(proxy.counts), proxy.bytes_sent
        cache.close()
        del listing, digests
        with open_cache(place) as opened, opened.reader() as reader, PeakMemory() as memory:
            proxy.reset()
            started = time.perf_counter()
            total = sum(len(block) for _, block in reader.blocks("features"))
            assert total == rows
            figures["read_seconds"] = round(time.perf_counter() - started, 2)
            figures["read_requests"], figures["read_bytes"] = dict(proxy.counts), proxy.bytes_received
        figures["read_memory_mb"] = memory.megabytes
        proxy.reset()
        with PeakMemory() as memory:
            started = time.perf_counter()
            result = featcache.train_head(place, memory_bytes=64 << 20)
        figures |= {
            "train_seconds": round(time.perf_counter() - started, 1), "train_memory_mb": memory.megabytes,
            "train_requests": dict(proxy.counts), "train_bytes": proxy.bytes_received,
            "train_reads_of_the_rows": round(proxy.bytes_received / (rows * 2 * WIDTH), 1),
            "looks": len(result.path), "passes_of_the_looks": sum(point.passes for point in result.path),
            "passes_of_the_last_fit": result.passes, "val_accuracy": result.val_accuracy,
        }  # fmt: skip
    figures["peak_resident_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
    return figures
