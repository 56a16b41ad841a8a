#!/usr/bin/env python3
"""Measure what caches beyond one machine cost: commits, requests, bytes, seconds and memory, against a storage counted.

    scripts/bench_scale.py [--only SECTION,…] [--rows N] [--latency-ms 20] [--json OUT]

The storage is moto's server in a process of its own, behind a proxy that counts requests and may delay each; what it
answers in is not what S3 answers in, what it is asked is what S3 would be. Each section is a file in `scripts/scale/`
with a function ``section(arguments) -> JSON values``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# the checkout, if featcache is not installed; a cluster's workers find what they get under its own name
sys.path[:0] = [str(HERE.parent), str(HERE), str(HERE / "scale")]

from featcache.system.processor import processor_name  # noqa: E402

SECTIONS = {
    "commits": "scale.commits",  # conditional puts beside Icechunk
    "open": "scale.opening",  # a cache of ten million rows
    "million": "scale.million",  # a million rows appended, read, trained from
    "images": "scale.images",  # photos behind a slow storage beside the same on the disk
    "ray": "ray_cluster",  # Ray's path beside the plain engine, and one actor to sixteen
    "listing": "scale.listing",  # what a sample takes in memory
    "memory": "scale.memory",  # what an image more takes of a build and of a fit
    "train": "scale.train",  # paths on rows in parts, in reads and bytes
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="sections, by commas: " + ", ".join(SECTIONS))
    parser.add_argument("--rows", type=int, help="instead of the section's own number")
    parser.add_argument("--latency-ms", type=float, default=20.0, help="that each request takes longer")
    parser.add_argument("--json", type=Path, help="where the figures go, too")
    arguments = parser.parse_args()
    figures = {"processor": processor_name()}
    for name in arguments.only.split(",") if arguments.only else SECTIONS:
        figures[name] = importlib.import_module(SECTIONS[name]).section(arguments)
        print(json.dumps({name: figures[name]}, indent=1), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
