"""What an image more takes in the memory of a process that builds a cache on object storage, or trains from it.

A fake network of three features, commits and parts of the list that are small beside the number of images: what does
not grow with that does not count. Counted are the bytes that Python asks for at the peak, which are steadier than the
pages of a process.
"""

from __future__ import annotations

import sys
import tempfile
import tracemalloc
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import bench_memory
from scale.storage import BUCKET, counted_storage

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

FEW, COMMIT_ROWS, ENTRIES, STREAMED = 8_000, 1000, 512, 100_000


def section(arguments: Namespace) -> dict[str, Any]:
    """Return the peaks with few small images and with three times as many, and what lies between them for each."""
    from featcache.cache import object_sample_lists

    few = arguments.rows or FEW
    with (
        patch.object(object_sample_lists, "MOST_ENTRIES", ENTRIES),
        tempfile.TemporaryDirectory(prefix="bench_build_") as name,
        counted_storage(),
    ):
        _peaks(_images(Path(name), 1000), "warm")
        peaks = [_peaks(_images(Path(name), count), f"{count}") for count in (few, 3 * few)]
    build, train = (round((there - here) / (2 * few)) for here, there in zip(*peaks, strict=True))
    return {
        "images": [few, 3 * few], "peak_bytes": peaks, "build_bytes_per_image": build, "train_bytes_per_image": train,
    }  # fmt: skip


def _images(folder: Path, count: int) -> Path:
    """Write so many images of four classes."""
    bench_memory.PER_FOLDER = count // 4
    return bench_memory.write_images(folder / f"{count}", count)


def _peaks(images: Path, cache: str) -> tuple[int, int]:
    """Return the most bytes that a build had at once, and that a fit to its cache had."""
    from fake import fake_extractor

    import featcache
    from featcache.extract.build import build_cache
    from featcache.extract.settings import ExtractSettings

    place, settings = f"s3://{BUCKET}/{cache}", ExtractSettings(commit_rows=COMMIT_ROWS)
    build = _peak(partial(build_cache, images, place, extractor=fake_extractor(), settings=settings))
    return build, _peak(
        partial(featcache.train_head, place, head=featcache.LinearOptions(l2=0.1), memory_bytes=STREAMED)
    )


def _peak(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
