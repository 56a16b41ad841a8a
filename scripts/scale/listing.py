"""What a million samples take in the memory of the process that builds: their list, and the index of their keys."""

from __future__ import annotations

import tracemalloc
from argparse import Namespace
from typing import Any

import numpy as np


def section(arguments: Namespace) -> dict[str, Any]:
    """Return bytes per sample, of the list as a build holds it and of the index of the store's keys."""
    from featcache.datasets.listing import Listing
    from featcache.datasets.samples import Samples
    from featcache.store._index import KeyIndex

    rows = arguments.rows or 1_000_000
    digests = np.random.default_rng(0).integers(0, 256, (rows, 32), dtype=np.uint8)
    tracemalloc.start()
    try:
        listing = Listing(
            "s3://bucket/photos", "classification", ("a", "b"), [f"{i % 1000:04}/{i:012}.jpg" for i in range(rows)],
            np.zeros((rows, 4), np.int64), np.zeros(rows, np.int32), None, np.full(rows, 255, np.uint8), 0, (), 0,
        )  # fmt: skip
        samples = Samples("photos", listing, digests.copy(), np.zeros(rows, np.uint8), {}, 0)
        listed = tracemalloc.get_traced_memory()[0]
        index = KeyIndex()
        for start in range(0, rows, 8192):
            index.add(digests[start : start + 8192])
        indexed = tracemalloc.get_traced_memory()[0] - listed
    finally:
        tracemalloc.stop()
    return {
        "rows": len(samples), "list_bytes_per_sample": round(listed / rows, 1),
        "index_bytes_per_row": round(indexed / rows, 1),  # the keys themselves lie in a file
    }  # fmt: skip
