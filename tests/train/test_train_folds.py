"""Without a val split: folds choose, and say where they cannot."""

from __future__ import annotations

import numpy as np
import pytest
from memory_cache import MemoryCache, blobs, make_samples
from train_caches import refuse

from featcache.train.fit import train_head
from featcache.train.options import (
    KnnOptions,
    MlpOptions,
    PrototypeOptions,
    TrainOptions,
)


def test_without_val_folds_choose_and_val_is_null():
    result = train_head(blobs(spread=2.5, val=False), options=TrainOptions(folds=4))
    assert result.selection == "4 folds"
    assert result.val_accuracy is None
    assert result.n_val == 0
    assert result.n_train == 192
    assert 0 < max(point.value for point in result.path) < 1


@pytest.mark.parametrize("head", [PrototypeOptions(), KnnOptions(), MlpOptions(epochs=5)], ids=lambda head: head.kind)
def test_every_kind_trains_without_a_val_split(head):
    result = train_head(blobs(val=False), head=head)
    assert result.val_accuracy is None
    assert result.test_accuracy > 0.7
    assert result.objective is None


def test_too_few_images_for_folds_say_so():
    labels = np.array([0, 0, 0, 1])
    cache = MemoryCache({"features": np.eye(4, dtype=np.float32)}, make_samples(labels, ["train"] * 4))
    refuse(cache, "two training images of every class")
