"""How long it takes to open a store of ten million rows: the log of its 611 commits of 16,384 rows, put one by one.

Opening reads the log and nothing else, so only the first segment is there with its rows, as wide as a MobileNetV2's;
the other commits name segments of its size that are not, and the bytes of a row are those of the first.
"""

from __future__ import annotations

import statistics
import time
import uuid
from argparse import Namespace
from typing import Any

import numpy as np
from scale.storage import BUCKET, counted_storage

COMMIT_ROWS, WIDTH, REPEATS = 16_384, 1280, 5


def section(arguments: Namespace) -> dict[str, Any]:
    from featcache.store import Column, _object_log, create_store, open_store
    from featcache.store._object_log import Change, CommitLog, Segment
    from featcache.system.objects import ObjectPath

    rows = arguments.rows or 10_000_000
    place = f"s3://{BUCKET}/store"
    keys = np.random.default_rng(0).integers(0, 256, (COMMIT_ROWS, 32), dtype=np.uint8)
    with counted_storage() as proxy:
        with create_store(place, kind="zarr", columns=[Column("features", (WIDTH,), "float16")]) as store:
            proxy.reset()
            with store.writer() as writer:
                writer.append(keys, {"features": np.zeros((COMMIT_ROWS, WIDTH), np.float16)})
                writer.commit()
        figures: dict[str, Any] = {
            "commit_rows": COMMIT_ROWS,
            "row_bytes": 2 * WIDTH,
            "requests_of_a_commit": dict(proxy.counts),
            "bytes_per_row": round(proxy.bytes_sent / COMMIT_ROWS, 2),
        }
        log = CommitLog(ObjectPath(place) / "log")
        snapshot = log.newest()
        (first,) = snapshot.segments
        while snapshot.rows < rows:
            segment = Segment(uuid.uuid4().hex, COMMIT_ROWS, first.bytes)
            snapshot = log.publish(snapshot, Change({}, (segment,)))
        figures |= {"rows": snapshot.rows, "commits": snapshot.number}
        for latency in (0.0, arguments.latency_ms / 1e3):
            proxy.latency = latency
            seconds = []
            for _ in range(REPEATS):
                _object_log._checkpoint.cache_clear()  # as in a process that opens its first store
                proxy.reset()
                started = time.perf_counter()
                with open_store(place) as again, again.reader() as reader:
                    assert len(reader) == snapshot.rows
                seconds.append(time.perf_counter() - started)
            figures[f"open_seconds_at_{latency * 1e3:g}_ms"] = round(statistics.median(seconds), 3)
        figures |= {"open_requests": dict(proxy.counts), "open_bytes": dict(proxy.received)}
    return figures
