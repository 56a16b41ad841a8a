"""Make the golden caches of this version's format: tests/cache/golden_caches/KIND-vVERSION, kept for ever once made.

    scripts/make_golden_caches.py [--out tests/cache/golden_caches]

Each holds 12 photos of two classes, two outputs and a second view, two data sets, a failure and a path that is not
UTF-8, so that a later version can show that it reads all of a format, or refuses it by name. ``expected.json`` says
what must be read. A format that was released is never made again: raise its version first.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from featcache.engines import Engine

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))


class TwoOutputs(Engine):
    """An engine with two outputs that are fixed functions of the pixels."""

    name, version, precision, batch_size = "torch", "2", "fp32", 8
    height = width = 16
    workers = 1
    columns = (("features", (6,)), ("map", (2, 2)))

    def _infer(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        pixels = batch.astype(np.float32) / 255
        features = np.concatenate([pixels.mean((1, 2)), pixels.max((1, 2))], axis=1)
        return features, pixels.reshape(len(batch), 2, 8, 2, 8, 3).mean((2, 4, 5))

    def _release(self) -> None:
        """Nothing is held."""


def make(out: Path, kind: str) -> None:
    from conftest import write_photo
    from fake import fake_recipe

    from featcache.cache import open_cache
    from featcache.cache.creation import create_cache
    from featcache.cache.manifest import CACHE_VERSION
    from featcache.extract.build import Extractor, build_cache
    from featcache.extract.opening import resolved_under
    from featcache.extract.request import Request
    from featcache.store import StoreSettings

    place = out / f"{kind}-v{CACHE_VERSION}"
    if place.exists():
        raise SystemExit(f"{place} exists; a golden cache is never replaced: raise the version of the format first")
    recipe = fake_recipe(outputs=("features", "map"), views=2, view_seed=7, dtype="float32")
    with tempfile.TemporaryDirectory() as scratch:
        photos, cache = Path(scratch, "photos"), Path(scratch, "cache")
        for number in range(12):
            write_photo(photos / ["cat", "dog"][number % 2] / f"{number:02}.jpg", seed=number, hue=number % 2)
        shutil.copy(photos / "cat" / "00.jpg", os.fsdecode(bytes(photos / "dog") + b"/caf\xe9.jpg"))
        (photos / "cat" / "torn.jpg").write_bytes(b"\xff\xd8\xff")
        settings = StoreSettings(block_rows=8, key_block_rows=8)  # small files with several blocks
        request, shapes = Request(backbone="mobilenetv2_100"), dict(TwoOutputs.columns)
        with create_cache(
            cache, recipe, shapes=shapes, store=kind, request=request.to_json(), store_settings=settings
        ) as empty:
            empty.remember_request(resolved_under(request, recipe))
        for name in ("photos", "more photos"):
            build_cache(photos, cache, dataset=name, store=kind, extractor=Extractor(TwoOutputs(), recipe))
            shutil.rmtree(photos / "dog", ignore_errors=True)
        with open_cache(cache) as opened:
            for name in opened.datasets:
                samples = opened.samples(name)
                stats = np.arange(4 * len(samples), dtype=np.int64).reshape(-1, 4)
                listing = dataclasses.replace(samples.listing, root="/photos", stats=stats, scanned_ns=1)
                opened.replace_samples(dataclasses.replace(samples, listing=listing))
            features, labels = opened.numpy(dataset="photos", output=["features", "map"], view=[0, 1])
            expected = {
                "content_digest": opened.content_digest(),
                "rows": 12,
                "samples": {name: len(opened.samples(name)) for name in opened.datasets},
                "failures": {name: len(opened.samples(name).failures) for name in opened.datasets},
                "labels": labels.tolist(),
                "feature_sum": float(features.astype(np.float64).sum()),
            }
        for lock in cache.rglob("*lock"):
            lock.unlink()
        out.mkdir(parents=True, exist_ok=True)
        shutil.copytree(cache, place)
        place.with_suffix(".json").write_text(json.dumps(expected, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "cache" / "golden_caches")
    arguments = parser.parse_args()
    for kind in ("lmdb", "zarr"):
        make(arguments.out, kind)


if __name__ == "__main__":
    main()
