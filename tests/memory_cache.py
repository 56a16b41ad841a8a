"""A cache over a store in memory, so that tests of heads need no images and no disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featcache.cache import FeatureCache
from featcache.cache.manifest import CACHE_VERSION
from featcache.datasets.listing import Listing
from featcache.datasets.samples import Samples
from featcache.datasets.splits import SPLITS
from featcache.recipe import Preprocessing, Recipe
from featcache.store import Column, create_store


def digests_of(count: int, *, salt: int = 0) -> np.ndarray:
    """Return `count` different digests (count, 32)."""
    return np.random.default_rng(1234 + salt).integers(0, 256, size=(count, 32), dtype=np.uint8)


def make_samples(
    labels: np.ndarray,
    splits: Sequence[str],
    *,
    classes: Sequence[str] | None = None,
    digests: np.ndarray | None = None,
    targets: np.ndarray | None = None,
    task: str = "classification",
    dataset: str = "toy",
) -> Samples:
    """Return samples with these labels (-1: none) and split names."""
    n = len(labels)
    names = tuple(classes) if classes is not None else tuple(f"class{i}" for i in range(int(labels.max()) + 1))
    listing = Listing(
        root="/photos",
        task=task,
        classes=names,
        paths=[f"{i:06}.jpg" for i in range(n)],
        stats=np.zeros((n, 4), dtype=np.int64),
        labels=np.asarray(labels, dtype=np.int32),
        targets=targets,
        given_splits=np.full(n, 255, dtype=np.uint8),
        ignored=0,
        failures=(),
        scanned_ns=0,
    )
    codes = np.array([SPLITS.index(split) for split in splits], dtype=np.uint8)
    return Samples(dataset, listing, digests_of(n) if digests is None else digests, codes, {}, 0)


class MemoryCache(FeatureCache):
    """A cache over a store in memory; the lists of samples are in memory, too.

    `weights_sha256`: of its Recipe, so that two caches differ. `arrays`: the store's own rows by
    column, unlocked, so that a test may spoil one.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        samples: Samples | Sequence[Samples],
        *,
        digests: np.ndarray | None = None,
        weights_sha256: str = "f" * 64,
    ) -> None:
        sets = [samples] if isinstance(samples, Samples) else list(samples)
        columns = [Column(name, values.shape[1:], "float32") for name, values in arrays.items()]
        store = create_store("", kind="memory", columns=columns)
        with store.writer() as writer:
            writer.append(sets[0].digests if digests is None else digests, arrays)
            writer.commit()
        self.arrays = store.content.values
        for values in self.arrays.values():
            values.flags.writeable = True
        outputs = tuple(name for name in arrays if "@" not in name)
        recipe = toy_recipe(weights_sha256=weights_sha256, outputs=outputs, views=len(arrays) // len(outputs))
        manifest = {"version": CACHE_VERSION, "recipe": recipe.to_json(), "request": {}, "store": "memory"}
        super().__init__(Path("/caches/memory"), manifest=manifest, store=store)
        self._sets = {one.dataset: one for one in sets}

    @property
    def datasets(self) -> tuple[str, ...]:
        return tuple(sorted(self._sets))

    def samples(self, dataset: str | None = None) -> Samples:
        return self._sets[dataset or self.datasets[0]]


def toy_recipe(*, weights_sha256: str, outputs: Sequence[str], views: int) -> Recipe:
    """Return a Recipe of a backbone that there is none of."""
    return Recipe(
        model="toy.model", model_kwargs={}, model_digest=None, weights_sha256=weights_sha256, outputs=tuple(outputs),
        preprocessing=Preprocessing(8, 8, 8, "bicubic", "center", (0.5,) * 3, (0.5,) * 3), decoder="fast",
        dct_scaling=False, orientation="exif", views=views, view_seed=0, engine="torch", engine_version="2",
        precision="fp32", dtype="float32", weights="toy",
    )  # fmt: skip


def blobs(
    *, n: int = 240, d: int = 16, k: int = 4, spread: float = 2.0, seed: int = 0, val: bool = True, **samples: Any
) -> MemoryCache:
    """Return a cache of `k` Gaussian classes: 60 % train, 20 % val (or train), 20 % test."""
    generator = np.random.default_rng(seed)
    centers = generator.normal(size=(k, d)) * 1.5
    labels = np.arange(n) % k
    features = centers[labels] + spread * generator.normal(size=(n, d))
    features = features * np.linspace(0.1, 10, d) + np.linspace(-5, 5, d)
    fifth = np.arange(n) // k % 5
    splits = ["val" if f == 3 and val else "test" if f == 4 else "train" for f in fifth]
    return MemoryCache({"features": features.astype(np.float32)}, make_samples(labels, splits, **samples))
