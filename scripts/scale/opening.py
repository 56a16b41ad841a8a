"""How long it takes to open a store of ten million rows: real rows, of one number each, in commits of 16,384."""

from __future__ import annotations

import statistics
import time
from argparse import Namespace
from typing import Any

import numpy as np
from scale.storage import BUCKET, counted_storage

COMMIT_ROWS = 16_384


def measure(arguments: Namespace) -> dict[str, Any]:
    from featcache.store import Column, create_store, open_store

    rows = arguments.rows or 10_000_000
    rng = np.random.default_rng(0)
    place = f"s3://{BUCKET}/store"
    with counted_storage() as proxy:
        started = time.perf_counter()
        with create_store(place, kind="zarr", columns=[Column("score", (), "float16")]) as store:
            written, writer = 0, store.writer()
            while written < rows:
                keys = rng.integers(0, 256, (min(COMMIT_ROWS, rows - written), 32), dtype=np.uint8)
                written += writer.append(keys, {"score": keys[:, 0].astype(np.float16)})
                writer.commit()
        figures: dict[str, Any] = {
            "rows": rows,
            "write_seconds": round(time.perf_counter() - started, 1),
            "write_requests": dict(proxy.counts),
            "bytes_per_row": round(proxy.bytes_sent / rows, 1),
        }
        for latency in (0.0, arguments.latency_ms / 1e3):
            proxy.latency = latency
            seconds = []
            for _ in range(5):
                proxy.reset()
                started = time.perf_counter()
                with open_store(place) as again, again.reader() as reader:
                    assert len(reader) == rows
                seconds.append(time.perf_counter() - started)
            name = f"open_seconds_at_{latency * 1e3:g}_ms"
            figures[name] = round(statistics.median(seconds), 3)
            figures["open_requests"], figures["open_bytes"] = dict(proxy.counts), proxy.bytes_received
        proxy.latency = 0.0
        with open_store(place) as again, again.reader() as reader:
            wanted = rng.integers(0, rows, 256)
            proxy.reset()
            started = time.perf_counter()
            reader.gather("score", wanted)
            figures["gather_256_rows_seconds"] = round(time.perf_counter() - started, 2)
            figures["gather_256_rows_requests"] = dict(proxy.counts)
            started = time.perf_counter()
            reader.find(keys[:100])
            figures["first_find_seconds"] = round(time.perf_counter() - started, 2)
    return figures
