#!/usr/bin/env python3
"""Time featcache's stores against numpy.memmap, zarr-python and LMDB with a record a row, alternated in one run.

    scripts/bench_store.py [--rows 200000] [--width 1024] [--pairs 7] [--threads 2] [--dir DIR] [--json OUT]
    scripts/bench_store.py --millions 10 --width 512 [--dir DIR]   # 10 GB: open, scan, gather, and the memory of it

Whole reads copy every row into a warm buffer of one block; gathers fetch 50,000 shuffled rows into new memory.
Ratios are above 1 where featcache is faster; each is a median over pairs run back to back, with their quartiles.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from peers import store_lmdb_rows, store_memmap, store_zarr_python

from featcache.store import Column, FeatureStore, create_store, open_store

GATHERED = 50_000
STEP = 4096
SLOW_PEER_PAIRS = 3
HUGE_STEP = 1 << 16


class Ours:
    """One of our stores, as the peers are driven."""

    def __init__(self, path: Path, kind: str, keys: np.ndarray, values: np.ndarray) -> None:
        self.name = f"featcache {kind}"
        store = create_store(path / kind, kind=kind, columns=[Column("features", values.shape[1:], "float16")])
        started = time.perf_counter()
        with store.writer() as writer:
            for start in range(0, len(keys), STEP):
                writer.append(keys[start : start + STEP], {"features": values[start : start + STEP]})
                writer.commit()
        self.write_seconds = time.perf_counter() - started
        self.nbytes = store.nbytes
        self.path = path / kind
        self.store: FeatureStore = open_store(self.path)
        self._reader = self.store.reader()

    def first_pass(self, buffer: np.ndarray) -> float:
        """Return the seconds of open, and a pass in which every block is mapped and checked."""
        started = time.perf_counter()
        with open_store(self.path) as store, store.reader() as reader:
            for _, block in reader.blocks("features"):
                buffer[: len(block)] = block
        return time.perf_counter() - started

    def read_all(self, buffer: np.ndarray) -> None:
        for _, block in self._reader.blocks("features"):
            buffer[: len(block)] = block

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return self._reader.gather("features", rows)


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare(ours: Callable[[], Any], theirs: Callable[[], Any], *, pairs: int) -> dict[str, Any]:
    """Return medians, and the ratio theirs / ours with its quartiles, over pairs whose order alternates."""
    ours(), theirs()
    mine, others = [], []
    for pair in range(pairs):
        for work, times in ((ours, mine), (theirs, others))[:: 1 if pair % 2 else -1]:
            times.append(seconds(work))
    ratios = sorted(b / a for a, b in zip(mine, others, strict=True))
    quartiles = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "seconds": statistics.median(mine),
        "peer_seconds": statistics.median(others),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [quartiles[0], quartiles[2]],
        "pairs": pairs,
    }


def compare_all(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    random = np.random.default_rng(0)
    keys = random.integers(0, 256, (args.rows, 32), dtype=np.uint8)
    values = random.standard_normal((args.rows, args.width), dtype=np.float32).astype(np.float16)
    rows = random.integers(0, args.rows, GATHERED)
    report: dict[str, Any] = {"raw_bytes": values.nbytes, "stores": {}}
    peers = []
    for module in (store_memmap, store_zarr_python, store_lmdb_rows):
        (folder / module.__name__).mkdir()
        peers.append(module.Peer(folder / module.__name__, values))
    buffer = np.zeros((STEP, args.width), dtype=np.float16)
    for kind in ("lmdb", "zarr"):
        ours = Ours(folder, kind, keys, values)
        assert np.array_equal(ours.gather(rows), values[rows])
        entry: dict[str, Any] = {
            "write_seconds": ours.write_seconds,
            "bytes_ratio": ours.nbytes() / values.nbytes,
            "first_pass_seconds": ours.first_pass(buffer),
            "peers": {},
        }
        for peer in peers:
            pairs = args.pairs if peer.name == "memmap" else min(args.pairs, max(SLOW_PEER_PAIRS, args.slow_pairs))
            entry["peers"][peer.name] = {
                "bytes_ratio": peer.nbytes() / values.nbytes,
                "read": compare(lambda o=ours: o.read_all(buffer), lambda p=peer: p.read_all(buffer), pairs=pairs),
                "gather": compare(lambda o=ours: o.gather(rows), lambda p=peer: p.gather(rows), pairs=pairs),
            }
        entry["read_gb_per_second"] = values.nbytes / 1e9 / entry["peers"]["memmap"]["read"]["seconds"]
        report["stores"][kind] = entry
    return report


def memory() -> dict[str, float]:
    """Return this process's own (not file-backed) memory now and its peak, in MB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return {name: int(status[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")}


def write_huge(path: Path, kind: str, count: int, width: int) -> dict[str, Any]:
    """Bring the store at `path` to `count` rows, going on where an interrupted run stopped."""
    columns = [Column("features", (width,), "float16")]
    store = open_store(path) if path.exists() else create_store(path, kind=kind, columns=columns)
    block = np.random.default_rng(0).standard_normal((HUGE_STEP, width), dtype=np.float32).astype(np.float16)
    started = time.perf_counter()
    with store, store.writer() as writer:
        before = len(writer)
        for start in range(before, count, HUGE_STEP):
            size = min(HUGE_STEP, count - start)
            keys = np.random.default_rng([1, start]).integers(0, 256, (size, 32), dtype=np.uint8)
            writer.append(keys, {"features": block[:size]})
            writer.commit()
        seconds = time.perf_counter() - started
        return {"write_seconds": seconds, "rows_written": count - before, "bytes": store.nbytes()}


def huge(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Write `--millions` million rows; then time opening, a scan, gathers and look-ups, and what memory they took."""
    count = args.millions * 1_000_000
    report: dict[str, Any] = {"rows": count, "raw_bytes": count * args.width * 2, "stores": {}}
    for kind in args.kinds.split(","):
        entry: dict[str, Any] = write_huge(folder / kind, kind, count, args.width)
        random = np.random.default_rng(0)
        before = memory()
        started = time.perf_counter()
        opened = open_store(folder / kind)
        reader = opened.reader()
        entry["open_seconds"] = time.perf_counter() - started
        wanted = random.integers(0, count, GATHERED)
        entry["first_gather_seconds"] = seconds(lambda r=reader, w=wanted: r.gather("features", w))
        entry["gather_seconds"] = seconds(lambda r=reader, w=wanted: r.gather("features", w))
        total = np.zeros(args.width, dtype=np.float32)
        started = time.perf_counter()
        for _, part in reader.blocks("features"):
            total += part[0]
        entry["scan_seconds"] = time.perf_counter() - started
        entry["anonymous_mb"] = memory()["RssAnon"] - before["RssAnon"]
        keys = np.concatenate([reader.keys()[row : row + 1] for row in wanted])
        started = time.perf_counter()
        found = reader.find(keys)
        entry["first_find_seconds"] = time.perf_counter() - started
        assert np.array_equal(found, wanted)
        entry["find_seconds"] = seconds(lambda r=reader, k=keys: r.find(k))
        entry["anonymous_mb_with_find"] = memory()["RssAnon"] - before["RssAnon"]
        report["stores"][kind] = entry
        reader.close()
        opened.close()
        if args.dir is None:
            shutil.rmtree(folder / kind)
    return report


def show(report: dict[str, Any]) -> None:
    for kind, entry in report["stores"].items():
        print(f"\n{kind}: " + ", ".join(f"{k} {v:.4g}" for k, v in entry.items() if not isinstance(v, dict)))
        for peer, result in entry.get("peers", {}).items():
            for what in ("read", "gather"):
                r = result[what]
                low, high = r["ratio_quartiles"]
                print(
                    f"  {what:6} {r['seconds'] * 1e3:9.1f} ms   {peer:22} {r['peer_seconds'] * 1e3:9.1f} ms   "
                    f"ratio {r['ratio']:7.2f} ({low:.2f} to {high:.2f}, {r['pairs']} pairs)   "
                    f"its bytes {result['bytes_ratio']:.3f} of the rows'"
                )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=7, help="with memmap; at least 5")
    parser.add_argument("--slow-pairs", type=int, default=5, help="with the peers that take seconds")
    parser.add_argument("--threads", type=int, default=2, help="processors to use")
    parser.add_argument("--millions", type=int, default=0, help="only this: a store of so many million rows")
    parser.add_argument("--kinds", default="lmdb,zarr", help="for --millions")
    parser.add_argument(
        "--dir", type=Path, default=None, help="where; what --millions wrote is kept, and a next run goes on with it"
    )
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    if args.millions and args.dir is not None:
        args.dir.mkdir(parents=True, exist_ok=True)
        report = huge(args.dir, args)
    else:
        with tempfile.TemporaryDirectory(dir=args.dir, prefix="bench_store_") as folder:
            report = (huge if args.millions else compare_all)(Path(folder), args)
    report["threads"] = len(os.sched_getaffinity(0))
    report["arguments"] = {name: str(value) for name, value in vars(args).items()}
    show(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
