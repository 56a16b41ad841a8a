#!/usr/bin/env python3
"""Write scripts/SCALE.md: what 10^8 and 10^9 images cost, computed from what `scripts/bench_scale.py` measured.

    scripts/bench_scale.py --json scripts/scale/measured.json
    scripts/scale/page.py

Nothing on the page was run at that size. Each figure is a measured constant times a count, and the page says which.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MEASURED = HERE / "measured.json"
PAGE = HERE.parent / "SCALE.md"
REMAKE = "scripts/scale/page.py"
SIZES = (10**8, 10**9)

# assumed
MACHINES = 64
IMAGE_BYTES = 100_000  # of a photo as ImageNet has them
MEMORY = 64e9  # of a machine
TEMPORARY = 1e12  # of its disk, for temporary files
CLASSES, PENALTIES = 10, 6  # as the measured fits have

# documented: by S3, and by featcache's own settings
LISTED_AT_ONCE = 1000  # names in an answer of S3
READS_A_SECOND = 5500  # that S3 takes below one prefix
KEY_BYTES, KEYS_AT_ONCE = 32, 8192  # of a row; rows of an object of keys
SHARE_PIXELS = (64 << 20) // (224 * 224 * 3)  # images in a share that is decoded apart
HELD_SHARE = 0.5  # of a machine's memory that an actor of `train` holds rows in

Row = tuple[str, Callable[[int], str], str]


class Constants:
    """What was measured, under the names that the page computes with."""

    def __init__(self, measured: dict[str, Any]) -> None:
        ray, opening, million = measured["ray"], measured["open"], measured["million"]
        self.processor, self.processors = measured["processor"], ray["processors"]
        self.rate = ray["together_images_per_second"]["median"]
        self.ratio = ray["ratio"]
        self.most_actors = ray["scale"][-1]
        self.commit_rows = opening["commit_rows"]
        self.commit_puts = opening["requests_of_a_commit"]["PUT"]
        self.value_bytes, self.row_bytes = opening["row_bytes"], opening["bytes_per_row"]
        self.opening = opening
        self.name_bytes = opening["open_bytes"]["LIST"] / min(opening["commits"], LISTED_AT_ONCE)
        self.entry_bytes = opening["open_bytes"]["GET"] / opening["commits"]
        self.sample_bytes = million["samples_bytes"] / million["rows"]
        self.reads, self.looks = million["train_reads_of_the_rows"], million["looks"]
        self.build_bytes = measured["memory"]["build_bytes_per_image"]
        self.train_bytes = measured["memory"]["train_bytes_per_image"]
        self.index_bytes = measured["listing"]["index_bytes_per_row"]
        self.commits = commits = measured["commits"]
        self.crowd = commits["small_commits"][-1]
        self.log_rate = self.crowd["commits_per_second"]
        self.latency = commits["latency_ms"]
        self.alone, self.icechunk = commits["conditional_puts_1_writers"], commits["icechunk_1_writers"]
        self.train = train = measured["train"]
        self.passes = train["l2"]["passes"]
        self.product_bytes = 4 * train["rows"] * train["features"] * self.passes / train["l2"]["seconds"]
        self.features = self.value_bytes // 2
        self.images = measured["images"]


def page(measured: dict[str, Any]) -> str:
    """Return the page as Markdown."""
    m = Constants(measured)
    apart = m.log_rate * SHARE_PIXELS
    lines = [
        "# What 10⁸ and 10⁹ images cost",
        "",
        *_paragraph(
            f"Made by `{REMAKE}` from `scripts/scale/measured.json`, which `scripts/bench_scale.py` wrote. **Computed,",
            "not run**: each figure is a constant of the first table, or one that its row names, times a count. For a",
            f"MobileNetV2's rows of {m.features:,} float16 and {MACHINES} machines of {m.processors} processors each,",
            f"as the one that measured. Assumed: {IMAGE_BYTES // 1000} kB an image; {MEMORY / 1e9:.0f} GB memory and",
            f"{TEMPORARY / 1e12:.0f} TB for temporary files a machine. Requests are counted; their prices are the",
            "storage's.",
        ),
        "",
        "## Measured",
        "",
        *_paragraph(
            f"On {m.processors} processors ({m.processor}) with other work beside, which makes seconds longer; ratios",
            "are medians and quartiles of neighbours in turns. The storage is moto's S3 server on the same machine",
            f"behind a proxy that counts and, where it says so, takes {m.latency:.0f} ms longer for each request:",
            "counts and bytes are what S3 would be asked for, seconds are not S3's.",
        ),
        "",
        "| what | figure |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in _measured(m)),
        "",
        "## Computed: building",
        "",
        *_table(_building(m)),
        "",
        "## Computed: opening and training",
        "",
        *_table(_training(m)),
        "",
        "## Computed: what breaks first",
        "",
        "As images become more:",
        "",
        *_numbered(_limits_of_images(m), lambda count: f"{_power(count)} images"),
        "",
        "As machines become more:",
        "",
        *_numbered(_limits_of_machines(m), lambda count: f"{count:.0f} machines"),
        "",
        *_paragraph(
            f"With GPUs (`--gpus-per-actor`), where images are decoded apart, a share is {SHARE_PIXELS} images (64 MiB",
            f"of 224 x 224 pixels) and a commit: the log's {m.log_rate:.1f} commits a second then hold",
            f"**{apart:,.0f} images a second in all**. Decode where the network runs (no `--gpus-per-actor`), or",
            "build several caches.",
        ),
        "",
    ]
    return "\n".join(lines)


def _measured(m: Constants) -> list[tuple[str, str]]:
    low, high = m.ratio["quartiles"]
    slow_low, slow_high = m.images["quartiles"]
    at = f"at {m.latency:.0f} ms a request"
    return [
        ("images a second in a Ray cluster of this one machine, MobileNetV2, decoded where it runs", f"{m.rate:.0f}"),
        ("the same over the plain engine, in turns", f"{m.ratio['median']:.2f} ({low:.2f} to {high:.2f})"),
        (
            f"time of an image with {m.most_actors['actors']} actors over that with one, engines that sleep",
            f"{m.most_actors['of_one_actor']:.2f}",
        ),
        (
            f"images a second of `featcache_nano` from a web server that takes {m.images['delay'] * 1e3:.0f} ms, and "
            "computes on the same processors, over those from the disk, in turns",
            f"{m.images['ratio']:.2f} ({slow_low:.2f} to {slow_high:.2f})",
        ),
        (f"requests that write in a commit of {m.commit_rows:,} rows of {m.features:,}", f"{m.commit_puts}"),
        ("bytes a row, of which its values", f"{m.row_bytes:,.0f}, {m.value_bytes:,}"),
        (
            f"seconds to open {m.opening['rows']:,} rows of {m.opening['commits']} commits, without delay and {at}",
            f"{m.opening['open_seconds_at_0_ms']:.2f}, {m.opening['open_seconds_at_20_ms']:.2f}",
        ),
        (f"commits a second of {m.crowd['writers']} writers at once, {at}", f"{m.log_rate:.1f}"),
        (
            f"seconds of {m.commits['commits']} commits of one writer {at}, and Icechunk's of the same rows",
            f"{m.alone['seconds']:.1f}, {m.icechunk['seconds']:.1f}",
        ),
        (
            "bytes of memory an image at the peak of a build, and of a fit to streamed rows",
            f"{m.build_bytes}, {m.train_bytes}",
        ),
        ("bytes of memory a row, of the index that finds rows by key", f"{m.index_bytes:.0f}"),
        (
            f"reads of each row in a fit streamed from object storage, {m.looks} penalties tried, {CLASSES} classes",
            f"{m.reads:.0f}",
        ),
        (f"passes over the rows in {PENALTIES} fits with L2, {CLASSES} classes, to a gap of 1e-5", f"{m.passes:.0f}"),
        ("GB of float32 rows a second in those passes", f"{m.product_bytes / 1e9:.1f}"),
    ]


def _building(m: Constants) -> list[Row]:
    others = MACHINES - 1
    keys = -(-m.commit_rows // KEYS_AT_ONCE)
    asked = 3 + keys * others

    def commits(n: int) -> int:
        return -(-n // m.commit_rows)

    def hours(n: int) -> float:
        return n / m.rate / 3600

    return [
        ("machine hours", lambda n: _figure(hours(n)), f"{m.rate:.0f} images a second"),
        (f"hours on {MACHINES} machines", lambda n: _figure(hours(n) / MACHINES), "none waits for another"),
        ("images read, TB", lambda n: _figure(n * IMAGE_BYTES / 1e12), f"{IMAGE_BYTES // 1000} kB each"),
        ("GET, where each image is an object", lambda n: f"{n:,}", "one an image"),
        (
            "LIST, where each image is an object",
            lambda n: f"{n // LISTED_AT_ONCE:,}",
            f"{LISTED_AT_ONCE:,} names an answer",
        ),
        (
            "PUT of rows and commits",
            lambda n: f"{commits(n) * m.commit_puts:,}",
            f"{m.commit_puts} a commit of {m.commit_rows:,} rows",
        ),
        (
            "requests of writers to see what others put",
            lambda n: f"{commits(n) * asked:,}",
            f"{asked} a commit: one refused, a LIST, a GET, and {keys} GET of keys for each commit of {others} others",
        ),
        (
            "keys that each machine fetches into a temporary file, GB",
            lambda n: _figure(KEY_BYTES * n / 1e9),
            f"{KEY_BYTES} bytes a row",
        ),
        ("cache, TB", lambda n: _figure(n * m.row_bytes / 1e12), f"{m.row_bytes:,.0f} bytes a row"),
        ("list of samples, GB", lambda n: _figure(n * m.sample_bytes / 1e9), f"{m.sample_bytes:.0f} bytes a sample"),
        (
            "memory of the process that builds, GB",
            lambda n: _figure(n * m.build_bytes / 1e9),
            f"{m.build_bytes} bytes an image",
        ),
        (
            "the same in a cluster, for a cache that has so many rows, beside it, GB",
            lambda n: _figure(2 * KEY_BYTES * n / 1e9),
            f"the keys and a sorted copy, {KEY_BYTES} bytes each, by construction",
        ),
        (
            "memory of each writer's index, GB",
            lambda n: _figure(n * m.index_bytes / 1e9),
            f"{m.index_bytes:.0f} bytes a row",
        ),
    ]


def _training(m: Constants) -> list[Row]:
    train = m.train
    traffic = train["l2"]["traffic_mb"] * m.features / train["features"] * MACHINES / train["parts"]
    gets = m.opening["open_requests"]["GET"]

    def opened(n: int) -> float:
        commits = -(-n // m.commit_rows)
        return min(commits, LISTED_AT_ONCE) * m.name_bytes + commits * m.entry_bytes

    def hours(n: int) -> float:
        return 4 * n * m.features * m.passes / m.product_bytes / MACHINES / 3600

    return [
        (
            "read to open the cache, MB",
            lambda n: _figure(opened(n) / 1e6),
            f"{m.name_bytes:.0f} bytes a name in a LIST of at most {LISTED_AT_ONCE:,}, {m.entry_bytes:.0f} bytes a "
            f"commit in {gets} GET",
        ),
        (
            "memory of the process that trains, beside blocks of rows, GB",
            lambda n: _figure(n * m.train_bytes / 1e9),
            f"{m.train_bytes} bytes an image",
        ),
        (
            "one machine, rows streamed: read from the storage, TB",
            lambda n: _figure(n * m.value_bytes * m.reads / 1e12),
            f"each row {m.reads:.0f} times",
        ),
        (
            f"`--ray`, {MACHINES} machines: read from the storage, TB",
            lambda n: _figure(n * m.value_bytes * train["reads_of_each_row"] / 1e12),
            f"each row {train['reads_of_each_row']:.0f} time, counted",
        ),
        (
            "the same: rows held as float32, GB a machine",
            lambda n: _figure(4 * n * m.features / MACHINES / 1e9),
            f"4 bytes a number; beyond {HELD_SHARE:.0%} of memory in a temporary file",
        ),
        (
            f"the same: hours of products for {PENALTIES} penalties of L2, {CLASSES} classes",
            lambda n: _figure(hours(n)),
            f"{m.passes:.0f} passes at {m.product_bytes / 1e9:.1f} GB a second a machine, rows in memory",
        ),
        (
            "the same: sent between machines, GB",
            lambda n: _figure((traffic * 1e6 + train["setup_bytes_per_row"] * n) / 1e9),
            f"{train['setup_bytes_per_row']:.0f} bytes a row once, {traffic / 1e3:.1f} GB of weights and sums",
        ),
    ]


def _limits_of_images(m: Constants) -> list[tuple[float, str]]:
    memory = f"{MEMORY / 1e9:.0f} GB of the process that"
    return [
        (MEMORY / m.train_bytes, f"{memory} trains, {m.train_bytes} bytes an image: more memory, or several data sets"),
        (MEMORY / m.build_bytes, f"{memory} builds, {m.build_bytes} bytes an image: several data sets in one cache"),
        (
            MACHINES * MEMORY * HELD_SHARE / (4 * m.features),
            f"what {MACHINES} actors of `train --ray` hold in memory: the rest lies in temporary files, and is read "
            "from the disk at every pass",
        ),
        (2.0**32, "the index of keys counts rows in 32 bits: several caches"),
        (MEMORY / m.index_bytes, f"{MEMORY / 1e9:.0f} GB of each writer's index: several caches"),
        (TEMPORARY / KEY_BYTES, f"{TEMPORARY / 1e12:.0f} TB of temporary files for each writer's keys: several caches"),
    ]


def _limits_of_machines(m: Constants) -> list[tuple[float, str]]:
    return [
        (
            READS_A_SECOND / m.rate,
            f"S3 documents {READS_A_SECOND:,} GET a second below a prefix: images below several, or tars and "
            "Parquet files",
        ),
        (
            m.log_rate * m.commit_rows / m.rate,
            f"the log of one cache, {m.log_rate:.1f} commits of {m.commit_rows:,} rows a second: several caches",
        ),
    ]


def _paragraph(*parts: str) -> list[str]:
    return textwrap.wrap(" ".join(parts), 120, break_long_words=False, break_on_hyphens=False)


def _table(rows: list[Row]) -> list[str]:
    return [
        "| | 10⁸ | 10⁹ | from |",
        "|---|---|---|---|",
        *(f"| {name} | {' | '.join(map(value, SIZES))} | {source} |" for name, value, source in rows),
    ]


def _numbered(limits: list[tuple[float, str]], text: Callable[[float], str]) -> list[str]:
    """Return the limits in the order in which they are met."""
    return [f"{number}. **{text(count)}**: {limit}." for number, (count, limit) in enumerate(sorted(limits), start=1)]


def _figure(value: float) -> str:
    """Return a number with two digits at least, and none behind the point that would say nothing."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _power(value: float) -> str:
    digits, power = f"{value:.1e}".split("e")
    return f"{digits} · 10{str(int(power)).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def main() -> int:
    if not MEASURED.exists():
        sys.exit(f"{MEASURED} must be there: scripts/bench_scale.py --json {MEASURED.relative_to(HERE.parent.parent)}")
    PAGE.write_text(page(json.loads(MEASURED.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
