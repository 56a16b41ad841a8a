"""Caches that tests of training share: of several labels, of numbers, of a student and its teacher; on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from memory_cache import MemoryCache, blobs, digests_of, make_samples

from featcache.cache.creation import create_cache
from featcache.errors import InputError
from featcache.recipe import Preprocessing, Recipe
from featcache.train.fit import train_head


def several_labels(*, seed: int = 3) -> MemoryCache:
    """Return a multi-label cache of four labels that a linear head tells, with noise."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(300, 12)).astype(np.float32)
    targets = (features @ generator.normal(size=(12, 4)) + generator.normal(size=(300, 4)) > 0.5).astype(np.float32)
    splits = (["train"] * 3 + ["val", "test"]) * 60
    labels = targets.argmax(axis=1)
    return MemoryCache({"features": features}, make_samples(labels, splits, targets=targets, task="multilabel"))


def numbers_to_predict(*, noise: float = 1.0, seed: int = 3) -> MemoryCache:
    """Return a regression cache of two targets."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(300, 12)).astype(np.float32)
    targets = features @ generator.normal(size=(12, 2)) + 5 + noise * generator.normal(size=(300, 2))
    splits = (["train"] * 3 + ["val", "test"]) * 60
    samples = make_samples(
        np.zeros(300, dtype=int), splits, targets=targets.astype(np.float32), task="regression", classes=("a", "b")
    )
    return MemoryCache({"features": features}, samples)


TASKS = {
    "softmax": lambda: blobs(spread=2.0),
    "binary": lambda: blobs(k=2, spread=4.0),
    "multilabel": several_labels,
    "regression": numbers_to_predict,
}


def noisy_students(*, noise: float = 0.45, seed: int = 0, free: int = 0) -> tuple[MemoryCache, MemoryCache]:
    """Return a student's cache with noisy train labels and a teacher's cache, cleanly labelled, of the same images."""
    generator = np.random.default_rng(seed)
    n, d, k = 900, 20, 5
    labels = np.arange(n) % k
    centers = generator.normal(size=(k, d))
    student = (centers[labels] + 1.3 * generator.normal(size=(n, d))).astype(np.float32)
    teacher = (centers[labels] + 0.8 * generator.normal(size=(n, d))).astype(np.float32)
    splits = np.array(["train", "train", "train", "val", "test"])[np.arange(n) // k % 5]
    noisy = labels.copy()
    wrong = (generator.random(n) < noise) & (splits == "train")
    noisy[wrong] = (labels[wrong] + generator.integers(1, k, size=int(wrong.sum()))) % k
    if free:
        noisy[np.flatnonzero(splits == "train")[:free]] = -1
    names = [f"class{i}" for i in range(k)]
    digests = digests_of(n)
    students = make_samples(noisy, splits.tolist(), digests=digests, classes=names)
    order = generator.permutation(n)  # the teacher's rows and samples stand in another order
    masters = make_samples(labels[order], splits[order].tolist(), digests=digests[order], classes=names)
    return (
        MemoryCache({"features": student}, students),
        MemoryCache({"features": teacher[order]}, masters, weights_sha256="e" * 64),
    )


def refuse(cache, message, **settings):
    with pytest.raises(InputError, match=message) as caught:
        train_head(cache, **settings)
    assert "\n" not in str(caught.value)


def write_cache(path: Path, memory: MemoryCache, *, store: str = "lmdb", model: str = "toy.model") -> Path:
    """Write what `memory` holds as a cache at `path`."""
    recipe = Recipe(
        model=model,
        model_kwargs={},
        model_digest=None,
        weights_sha256="0" * 64,
        outputs=memory.recipe.outputs,
        preprocessing=Preprocessing(8, 8, 8, "bicubic", "center", (0.5,) * 3, (0.5,) * 3),
        decoder="fast",
        dct_scaling=False,
        orientation="exif",
        views=memory.recipe.views,
        view_seed=0,
        engine="torch",
        engine_version="2",
        precision="fp32",
        dtype="float32",
        weights="toy",
    )
    shapes = {column.name: column.shape for column in memory.columns if "@" not in column.name}
    samples = memory.samples()
    with create_cache(path, recipe, shapes=shapes, store=store, request={}) as cache:
        with cache.store.writer() as writer:
            writer.append(samples.digests, memory.arrays)
            writer.commit()
        cache.replace_samples(samples)
    return path
