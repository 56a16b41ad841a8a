#!/usr/bin/env python3
"""Write scripts/SCALE.md: what 10^8 and 10^9 images cost, computed from what `scripts/bench_scale.py` measured.

    scripts/bench_scale.py --json scripts/scale/measured.json
    scripts/scale/page.py

Nothing on the page was run at that size. Each figure is a measured constant times a count, and the page says which.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MEASURED = HERE / "measured.json"
PAGE = HERE.parent / "SCALE.md"
SIZES = (10**8, 10**9)
MACHINES = 64
WIDTH = 1280  # of a MobileNetV2's features, float16
IMAGE_BYTES = 100_000  # of a photo as ImageNet has them, an assumption
COMMIT_ROWS = 16_384
LISTED_AT_ONCE = 1000  # names in an answer of S3
MEMORY = 64e9  # of the machine that builds, an assumption


def page(measured: dict[str, Any]) -> str:
    """Return the page as Markdown."""
    rate = measured["ray"]["together_images_per_second"]["median"]
    processors = measured["ray"]["processors"]
    commit = sum(measured["open"]["requests_of_a_commit"].values())
    extra = measured["open"]["bytes_per_row_of_2"] - 2
    row = 2 * WIDTH + extra
    opening = measured["open"]
    million = measured["million"]
    sample = million["samples_bytes"] / million["rows"]
    listed = measured["listing"]["list_bytes_per_sample"]
    index = measured["listing"]["index_bytes_per_row"]

    per_commit = opening["open_bytes"] / opening["commits"]
    hours = f"{rate:.0f} images/s a machine, Ray's path"
    table: list[tuple[str, Any, str]] = [
        ("machine hours", lambda n: f"{n / rate / 3600:,.0f}", hours),
        (f"hours on {MACHINES} machines", lambda n: f"{n / rate / 3600 / MACHINES:,.1f}", "the same"),
        ("images read, TB", lambda n: f"{n * IMAGE_BYTES / 1e12:,.0f}", f"{IMAGE_BYTES // 1000} kB each, assumed"),
        ("GET, one object an image", lambda n: f"{n:,}", "one request an image, counted"),
        ("LIST, one object an image", lambda n: f"{n // LISTED_AT_ONCE:,}", f"{LISTED_AT_ONCE:,} names an answer"),
        ("requests to commit", lambda n: f"{n // COMMIT_ROWS * commit:,}", f"{commit} for {COMMIT_ROWS:,} rows"),
        ("cache, TB", lambda n: f"{n * row / 1e12:,.2f}", f"{row:,.0f} bytes a row, {extra:.1f} beside its values"),
        ("sample list, GB", lambda n: f"{n * sample / 1e9:,.1f}", f"{sample:.0f} bytes a sample, as put"),
        ("the builder's list in memory, GB", lambda n: f"{n * listed / 1e9:,.0f}", f"{listed:.0f} bytes a sample"),
        ("keys to find rows by, GB a process", lambda n: f"{n * index / 1e9:,.1f}", f"{index:.0f} bytes a row"),
        ("read to open it, MB", lambda n: f"{n / COMMIT_ROWS * per_commit / 1e6:,.1f}", f"{per_commit:.0f} a commit"),
    ]
    lines = [
        "# What 10⁸ and 10⁹ images cost",
        "",
        "Made by `scripts/scale/page.py` from `scripts/scale/measured.json`, which `scripts/bench_scale.py` wrote.",
        f"Computed, not run: from what {processors} processors measured ({measured['processor']}), for a MobileNetV2's",
        f"rows of {WIDTH} float16 and {MACHINES} such machines. Requests are counted, prices are the storage's.",
        "",
        "| | 10⁸ | 10⁹ | from |",
        "|---|---|---|---|",
        *(f"| {name} | {' | '.join(map(value, SIZES))} | {source} |" for name, value, source in table),
        "",
        f"Opening {opening['rows']:,} rows took {opening['open_seconds_at_20_ms']} s at 20 ms a request and "
        f"{sum(opening['open_requests'].values())} requests.",
        "",
        "## What breaks first",
        "",
        *breaks(listed, index),
        "",
    ]
    return "\n".join(lines)


def breaks(listed: float, index: float) -> list[str]:
    """Return the limits in the order in which a growing data set meets them."""
    limits = [
        (MEMORY / (listed + index), "the builder's 64 GB (assumed): it holds the whole list of samples and the keys"),
        (MEMORY / index, "64 GB of each process that finds rows by key: a writer, `train`"),
        (2.0**32, "the index of keys counts rows in 32 bits: several caches then"),
    ]
    return [
        f"{number}. **{count:.1e} images**: {what}." for number, (count, what) in enumerate(sorted(limits), start=1)
    ]


def main() -> int:
    if not MEASURED.exists():
        sys.exit(f"{MEASURED} must be there: scripts/bench_scale.py --json {MEASURED.relative_to(HERE.parent.parent)}")
    PAGE.write_text(page(json.loads(MEASURED.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
