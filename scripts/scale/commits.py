"""The same rows through featcache's log of conditional puts and through Icechunk: requests, bytes, seconds.

Both hold a group of Zarr arrays (keys, checksums, features) for each commit, so that neither has an array whose shape
two writers want to change; Icechunk's session is rebased where another writer was first. Neither is asked to look for
keys that are there already; featcache does so anyway. Then small commits by more and more writers at once: how many a
second the log takes, which is one after another.
"""

from __future__ import annotations

import threading
import time
from argparse import Namespace
from typing import Any

import numpy as np
from scale.storage import BUCKET, counted_storage
from scale.storage_proxy import StorageProxy

COMMITS, WIDTH = 16, 256
CROWDS, COMMITS_EACH, FEW_ROWS = (1, 4, 16), 8, 64


def section(arguments: Namespace) -> dict[str, Any]:
    rows = arguments.rows or 32_768
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 256, (rows, 32), dtype=np.uint8)
    values = rng.normal(size=(rows, WIDTH)).astype(np.float16)
    parts = np.array_split(np.arange(rows), COMMITS)
    figures: dict[str, Any] = {
        "rows": rows,
        "commits": COMMITS,
        "row_bytes": WIDTH * 2,
        "latency_ms": arguments.latency_ms,
    }
    for name, writer in (("conditional_puts", _write_puts), ("icechunk", _write_icechunk)):
        for writers in (1, 2):
            with counted_storage(latency=arguments.latency_ms / 1e3) as proxy:
                figures[f"{name}_{writers}_writers"] = _timed(proxy, writer, keys, values, parts, writers)
    figures["small_commits"] = [_crowded(writers, arguments.latency_ms / 1e3) for writers in CROWDS]
    return figures


def _crowded(writers: int, latency: float) -> dict[str, Any]:
    """Return how many commits of few rows a second so many writers get done, each in a thread with a store opened."""
    count = writers * COMMITS_EACH
    keys = np.random.default_rng(1).integers(0, 256, (count * FEW_ROWS, 32), dtype=np.uint8)
    parts = np.array_split(keys, count)
    with counted_storage(latency=latency) as proxy:
        begin, append, rows = _write_puts(proxy)
        begin()
        zeros = np.zeros((FEW_ROWS, WIDTH), np.float16)
        threads = [
            threading.Thread(target=append, args=([(part, zeros) for part in parts[first::writers]],))
            for first in range(writers)
        ]
        proxy.reset()
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - started
        counts = dict(proxy.counts)
        assert rows() == len(keys)
    return {
        "writers": writers, "commits": count, "commits_per_second": round(count / seconds, 2),
        "requests_per_commit": round(sum(counts.values()) / count, 1),
    }  # fmt: skip


def _timed(proxy: StorageProxy, writer: Any, keys: Any, values: Any, parts: Any, writers: int) -> dict[str, Any]:
    begin, append, count = writer(proxy)
    begin()
    proxy.reset()
    started = time.perf_counter()
    threads = [
        threading.Thread(target=append, args=([(keys[part], values[part]) for part in parts[first::writers]],))
        for first in range(writers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    figures = {"seconds": round(seconds, 2), "requests": dict(proxy.counts), "bytes_sent": proxy.bytes_sent,
               "bytes_received": proxy.bytes_received}  # fmt: skip
    proxy.reset()
    started = time.perf_counter()
    rows = count()
    figures |= {"open_seconds": round(time.perf_counter() - started, 3), "open_requests": dict(proxy.counts)}
    assert rows == len(keys), (rows, len(keys))
    return figures


def _write_puts(proxy: StorageProxy) -> Any:
    from featcache.store import Column, create_store, open_store

    place = f"s3://{BUCKET}/store"

    def begin() -> None:
        create_store(place, kind="zarr", columns=[Column("features", (WIDTH,), "float16")])

    def append(parts: list[Any]) -> None:
        with open_store(place) as store, store.writer() as writer:
            for keys, values in parts:
                writer.append(keys, {"features": values})
                writer.commit()

    def count() -> int:
        with open_store(place) as store, store.reader() as reader:
            return len(reader)

    return begin, append, count


def _write_icechunk(proxy: StorageProxy) -> Any:
    import uuid

    import icechunk
    import zarr

    from featcache.store._record import row_checksums

    storage = icechunk.s3_storage(
        bucket=BUCKET, prefix="ice", region="us-east-1", endpoint_url=proxy.url, allow_http=True, from_env=True,
        force_path_style=True,
    )  # fmt: skip

    def begin() -> None:
        repository = icechunk.Repository.create(storage)
        session = repository.writable_session("main")
        zarr.create_group(session.store)
        session.commit("begin")

    def append(parts: list[Any]) -> None:
        repository = icechunk.Repository.open(storage)
        for keys, values in parts:
            session = repository.writable_session("main")
            group = zarr.create_group(session.store, path=uuid.uuid4().hex)
            for name, array in (("keys", keys), ("row_crc32c", row_checksums(keys, [values])), ("features", values)):
                stored = group.create_array(
                    name, shape=array.shape, chunks=array.shape, dtype=array.dtype, compressors=None
                )
                stored[:] = array
            session.commit("rows", rebase_with=icechunk.ConflictDetector(), rebase_tries=1000)

    def count() -> int:
        session = icechunk.Repository.open(storage).readonly_session("main")
        root = zarr.open_group(session.store, mode="r")
        return sum(group["keys"].shape[0] for _, group in root.groups())

    return begin, append, count
