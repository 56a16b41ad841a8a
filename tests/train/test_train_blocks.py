"""Rows that stay in the cache: the same head as from memory, of blocks that are as small as memory asks."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from memory_cache import MemoryCache, blobs
from object_storage import StorageProxy
from train_caches import noisy_students, refuse, write_cache

from featcache.cache import open_cache
from featcache.cache.conversion import convert
from featcache.system.objects import ObjectPath
from featcache.train.blocks import RowsOfCache, StreamedFeatures
from featcache.train.fit import train_head
from featcache.train.options import (
    DistillationOptions,
    KnnOptions,
    LinearOptions,
    MlpOptions,
    PrototypeOptions,
    TrainOptions,
)


@pytest.mark.parametrize("val", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {"head": LinearOptions(l2=0.05), "options": TrainOptions(calibrate=True, unknown="energy")},
        {"head": LinearOptions(l2="auto"), "options": TrainOptions(views=[0, 1])},
        {"head": LinearOptions(l1=0.02)},
        {"head": LinearOptions(group_l1="auto")},
        {"head": LinearOptions(keep_features=0.5, l2=0.05)},
        {
            "head": LinearOptions(l2=0.1, block_scales=[0.5, 2.0]),
            "options": TrainOptions(outputs=["layer", "features"]),
        },
        {"head": LinearOptions(l2=0.1, class_weight="balanced", label_smoothing=0.1)},
    ],
    ids=["after", "views", "l1", "group_l1", "keep_features", "block_scales", "targets"],
)
def test_rows_streamed_from_the_cache_give_the_same_head(settings, val):
    base = blobs(spread=2.0, val=val)
    plain = base.arrays["features"]
    more = np.random.default_rng(1).normal(size=(len(plain), 4)).astype(np.float32)
    columns = {"features": plain, "layer": more, "features@1": plain * np.float32(1.01), "layer@1": more}
    cache = MemoryCache(columns, base.samples())
    if not val and settings.get("options") == TrainOptions(calibrate=True, unknown="energy"):
        settings = {"head": settings["head"]}  # both are fitted on val
    whole, streamed = train_head(cache, **settings), train_head(cache, **settings, memory_bytes=20_000)
    assert "streamed" in streamed.notes[0]
    assert whole.notes == ()
    assert streamed.objective == pytest.approx(whole.objective, rel=3e-6)
    assert (streamed.l1, streamed.l2) == (whole.l1, whole.l2)
    assert streamed.group_l1 == pytest.approx(whole.group_l1)
    largest = np.abs(whole.head.weight).max()
    assert np.abs(streamed.head.weight - whole.head.weight).max() < 0.01 * largest
    assert streamed.val_score == whole.val_score
    assert streamed.test_accuracy == whole.test_accuracy
    if whole.head.unknown is not None:
        x = cache.gather(cache.select(split="test").rows)  # energies are known up to the constant that biases share
        strange = [one.head.unknown.is_unknown(one.head.predict_logits(x)) for one in (whole, streamed)]
        assert np.array_equal(*strange)
        assert streamed.head.calibration.temperature == pytest.approx(whole.head.calibration.temperature, rel=1e-2)


def test_streaming_holds_blocks_not_the_rows():
    cache = blobs(n=10_000, d=200, k=3, spread=3.0)  # 8 MB of features

    def peak(**settings):
        tracemalloc.start()
        train_head(cache, head=LinearOptions(l2=0.1), **settings)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak() > 16e6
    assert peak(memory_bytes=1_000_000) < 5e6


def test_unlabelled_images_take_part_in_a_streamed_fit():
    cache, teacher = noisy_students(noise=0.0, free=520)
    master = train_head(teacher, head=LinearOptions(l2=0.1)).head
    settings = {
        "head": LinearOptions(l2=0.05),
        "distillation": DistillationOptions(teacher=teacher, teacher_head=master, alpha=0.7),
    }
    whole, streamed = train_head(cache, **settings), train_head(cache, **settings, memory_bytes=1000)
    assert streamed.n_unlabelled == 520
    assert streamed.objective == pytest.approx(whole.objective, rel=3e-6)


@pytest.mark.parametrize(
    "head", [MlpOptions(), KnnOptions(), PrototypeOptions(), LinearOptions(mixup=0.2)], ids=lambda head: head.kind
)
def test_what_needs_the_rows_in_memory_refuses_to_stream(head):
    refuse(blobs(), "needs the rows in memory", memory_bytes=1000, head=head)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_streamed_features_that_are_not_finite_are_named(split):
    cache = blobs()
    row = cache.select(split=split).rows[2]
    cache.arrays["features"][row, 5] = np.nan
    refuse(cache, f"1 rows, first that of '{row:06}.jpg'", head=LinearOptions(l2=0.1), memory_bytes=1000)


def test_blocks_from_a_storage_are_read_one_ahead():
    """While one block is in use the next is read, no more: two are in memory."""
    cache = blobs(n=1000, d=4)
    read: list[int] = []

    class Remote(MemoryCache):
        path = ObjectPath("s3://bucket/cache")

        def __init__(self):
            self.store, self.recipe = cache.store, cache.recipe

        def gather(self, rows, **settings):
            read.append(int(rows[0]))
            return super().gather(rows, **settings)

    rows = np.arange(1000)
    part = RowsOfCache(Remote(), ("features",), rows, np.zeros(1000, dtype=int), rows, cache.samples)
    blocks = iter(StreamedFeatures([part], num_features=4, block_rows=100))
    next(blocks)
    deadline = time.monotonic() + 20
    while len(read) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert read == [0, 100]
    taken = [block for _, block in blocks]
    assert read == list(range(0, 1000, 100))
    assert np.array_equal(np.concatenate(taken), cache.arrays["features"][100:])


@pytest.mark.objects
def test_a_pass_asks_a_storage_once_what_is_in_it(tmp_path: Path, bucket: ObjectPath, s3_proxy: StorageProxy) -> None:
    """However many blocks it reads, and of however many parts."""
    base = blobs(n=400, d=4)
    convert(write_cache(tmp_path / "cache", base), out=bucket / "cache", store="zarr")
    with open_cache(bucket / "cache") as cache:
        rows = cache.select().rows
        one = RowsOfCache(cache, ("features",), rows, np.zeros(len(rows), int), np.arange(len(rows)), cache.samples)
        features = StreamedFeatures([one, one], num_features=4, block_rows=64)
        for number in (1, 2):
            s3_proxy.reset()
            taken = np.concatenate([block for _, block in features])
            assert s3_proxy.counts["LIST"] == 1, f"pass {number}"
        assert np.array_equal(taken, np.tile(cache.gather(rows), (2, 1)))
