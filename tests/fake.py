"""A stand-in for a backbone: features that are a fixed function of the pixels, computed in no time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from featcache.engines import Engine, Features, Images
from featcache.extract.build import BuildReport, Extractor, build_cache
from featcache.recipe import Preprocessing, Recipe

SIZE = 16
PREPROCESSING = Preprocessing(SIZE, SIZE, SIZE, "bicubic", "center", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def fake_recipe(**changes: object) -> Recipe:
    """Return a Recipe of the fake backbone, with fields changed."""
    values: dict[str, object] = {
        "model": "fake",
        "model_kwargs": {},
        "model_digest": None,
        "weights_sha256": "0" * 64,
        "outputs": ("features",),
        "preprocessing": PREPROCESSING,
        "decoder": "pillow",
        "dct_scaling": False,
        "orientation": "exif",
        "views": 1,
        "view_seed": 0,
        "engine": "torch",
        "engine_version": "2",
        "precision": "fp32",
        "dtype": "float16",
        "weights": "fake",
    }
    return Recipe(**{**values, **changes})  # type: ignore[arg-type]


class FakeEngine(Engine):
    """Rows are means over 4x4 patches: (48,) per image. `batches` counts the runs."""

    name = "torch"
    version = "2"
    precision = "fp32"
    batch_size = 8
    height = width = SIZE
    columns: tuple[tuple[str, tuple[int, ...]], ...] = (("features", (48,)),)
    workers = 1

    def __init__(self) -> None:
        self.batches = 0

    def _infer(self, batch: Images) -> tuple[Features, ...]:
        self.batches += 1
        patches = batch.reshape(len(batch), 4, SIZE // 4, 4, SIZE // 4, 3).astype(np.float32)
        return (patches.mean(axis=(2, 4)).reshape(len(batch), -1) / 255.0,)

    def _release(self) -> None:
        """Nothing is held."""


def fake_extractor(**changes: object) -> Extractor:
    """Return a fresh fake engine with its Recipe."""
    return Extractor(FakeEngine(), fake_recipe(**changes))


def build(photos: Path, cache: Path, **kwargs: object) -> BuildReport:
    return build_cache(photos, cache, **{"extractor": fake_extractor(), **kwargs})  # type: ignore[arg-type]
