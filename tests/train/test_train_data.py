"""The rows that a head is fitted on: views, outputs, duplicates, and what is refused before the fit."""

from __future__ import annotations

import numpy as np
import pytest
from memory_cache import MemoryCache, blobs, make_samples
from train_caches import numbers_to_predict, refuse

from featcache.train.fit import train_head
from featcache.train.options import (
    LinearOptions,
    TrainOptions,
)


def test_views_become_training_rows_and_outputs_stand_side_by_side():
    generator = np.random.default_rng(0)
    base = blobs(spread=2.0)
    plain = base.arrays["features"]
    more = generator.normal(size=(len(plain), 3, 2)).astype(np.float32)
    columns = {"features": plain, "layer": more, "features@1": plain + 0.1, "layer@1": more}
    cache = MemoryCache(columns, base.samples())
    result = train_head(
        cache, head=LinearOptions(l2=0.1), options=TrainOptions(outputs=["layer", "features"], views=[0, 1])
    )
    assert result.n_train == 2 * 144
    assert result.num_features == 16 + 6
    assert result.head.columns == ("layer", "features")
    twice = np.concatenate([np.concatenate([more.reshape(-1, 6), x], axis=1) for x in (plain, plain + 0.1)])
    labels = cache.samples().labels
    train = np.tile(cache.samples().splits == 0, 2)
    by_hand = MemoryCache(
        {"features": twice}, make_samples(np.tile(labels, 2), np.where(train, "train", "test").tolist())
    )
    assert np.allclose(
        train_head(by_hand, head=LinearOptions(l2=0.1)).head.weight, result.head.weight, rtol=2e-3, atol=2e-4
    )


def test_duplicates_are_told_and_dropped_when_asked():
    cache = blobs()
    samples = cache.samples()
    train, val = np.flatnonzero(samples.splits == 0), np.flatnonzero(samples.splits == 1)
    samples.digests[train[0]] = samples.digests[val[0]]  # the same image in train and val
    samples.digests[train[1]] = samples.digests[train[2]]  # one image under two labels
    assert samples.labels[train[1]] != samples.labels[train[2]]
    kept = train_head(cache, head=LinearOptions(l2=1.0))
    assert kept.n_train == 144
    assert len(kept.notes) == 2
    assert train_head(cache, head=LinearOptions(l2=1.0), options=TrainOptions(drop_duplicates=True)).n_train == 141


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_features_that_are_not_finite_are_named(value, split):
    cache = blobs()
    row = cache.select(split=split).rows[2]
    cache.arrays["features"][row, 5] = value
    refuse(cache, f"1 rows, first that of '{row:06}.jpg'")


def test_a_class_without_a_training_row_is_named():
    cache = blobs(classes=("a", "b", "c", "d", "lonely"))
    refuse(cache, r"every class must have an image in the train split, got none for \['lonely'\]")


def test_one_class_is_refused():
    refuse(blobs(k=1), r"at least two classes, got \['class0'\]")


def test_no_labels_are_refused():
    cache = blobs()
    cache.samples().listing.labels[:] = -1
    refuse(cache, "labelled images")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"options": TrainOptions(views=(1,))}, "view must be 0 to 0"),
        ({"options": TrainOptions(outputs=["layer"])}, "output must be one of"),
        ({"head": LinearOptions(keep_features=0.01)}, "keep_features must leave room"),
        ({"memory_bytes": 0}, "memory_bytes must be above 0"),
    ],
    ids=["views", "outputs", "keep_features", "memory_bytes"],
)
def test_settings_that_the_cache_cannot_meet_are_refused(settings, message):
    refuse(blobs(), message, **settings)


def test_numbers_cannot_be_smoothed_as_labels_are():
    refuse(numbers_to_predict(), "label_smoothing needs classes", head=LinearOptions(label_smoothing=0.1))
