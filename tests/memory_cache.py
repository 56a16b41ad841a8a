"""A cache in memory with the reading half of `FeatureCache`, so that tests of heads need no images and no store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from featcache.cache.cache import Selection
from featcache.datasets.listing import Listing
from featcache.datasets.samples import Samples
from featcache.datasets.splits import SPLITS, split_code
from featcache.errors import InputError


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


class MemoryCache:
    """Rows by digest, and the samples of one or several data sets."""

    def __init__(
        self,
        columns: Mapping[str, np.ndarray],
        samples: Samples | Sequence[Samples],
        *,
        digests: np.ndarray | None = None,
        fingerprint: str = "f" * 64,
    ) -> None:
        sets = [samples] if isinstance(samples, Samples) else list(samples)
        self._sets = {one.dataset: one for one in sets}
        keys = sets[0].digests if digests is None else digests
        self._row = {key.tobytes(): i for i, key in enumerate(keys)}
        self._columns = dict(columns)
        self.path = Path("/caches/memory")
        self.fingerprint = fingerprint
        outputs = tuple(name for name in columns if "@" not in name)
        views = 1 + max((int(name.split("@")[1]) for name in columns if "@" in name), default=0)
        self.recipe = SimpleNamespace(outputs=outputs, views=views, model="toy.model")
        self.columns = tuple(
            SimpleNamespace(name=name, shape=values.shape[1:], dtype="float32") for name, values in columns.items()
        )

    @property
    def datasets(self) -> tuple[str, ...]:
        return tuple(sorted(self._sets))

    def samples(self, dataset: str | None = None) -> Samples:
        return self._sets[dataset or self.datasets[0]]

    def reader(self) -> MemoryCache:
        return self

    def __enter__(self) -> MemoryCache:
        return self

    def __exit__(self, *details: Any) -> None:
        pass

    def find(self, keys: np.ndarray) -> np.ndarray:
        return np.array([self._row.get(key.tobytes(), -1) for key in keys], dtype=np.int64)

    def select(self, *, split: str | None = None, dataset: str | None = None, labelled: bool = True) -> Selection:
        samples = self.samples(dataset)
        wanted = samples.decoded
        if split is not None:
            wanted &= samples.splits == split_code(split)
        if labelled:
            wanted &= samples.labels >= 0
        indices = np.flatnonzero(wanted)
        rows = self.find(samples.digests[indices])
        indices, rows = indices[rows >= 0], rows[rows >= 0]
        labels = samples.labels[indices] if samples.targets is None else samples.targets[indices]
        return Selection(indices, rows, labels)

    def outputs(self, output: Sequence[str]) -> list[str]:
        for name in output:
            if name not in self.recipe.outputs:
                raise InputError(f"output must be one of {list(self.recipe.outputs)!r}, got {name!r}")
        return list(output)

    def check_views(self, views: Sequence[int]) -> Sequence[int]:
        for view in views:
            if not 0 <= view < self.recipe.views:
                raise InputError(f"view must be 0 to {self.recipe.views - 1}, got {view!r}")
        return views

    def gather(self, rows: np.ndarray, *, output: Any = None, views: Sequence[int] = (0,)) -> np.ndarray:
        outputs = [output or self.recipe.outputs[0]] if output is None or isinstance(output, str) else list(output)
        parts = []
        for view in views:
            names = [name if view == 0 else f"{name}@{view}" for name in outputs]
            parts.append(np.concatenate([self._columns[name][rows].reshape(len(rows), -1) for name in names], axis=1))
        return np.concatenate(parts).astype(np.float32)


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
