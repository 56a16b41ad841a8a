"""The heads that are not solved exactly, and the tasks that a perceptron takes too."""

from __future__ import annotations

import numpy as np
import pytest
from memory_cache import MemoryCache, blobs, make_samples
from train_caches import TASKS, refuse, several_labels

from featcache.errors import InputError
from featcache.train.fit import train_head
from featcache.train.options import (
    KnnOptions,
    LinearOptions,
    MlpOptions,
    TrainOptions,
)


@pytest.mark.parametrize("task", TASKS)
def test_an_mlp_that_diverges_says_so(task):
    refuse(TASKS[task](), "loss of an MLP must stay finite.*smaller learning_rate", head=MlpOptions(learning_rate=1e30))


def test_the_seed_of_an_mlp_decides_its_bits():
    cache = blobs()
    same = [
        train_head(cache, head=MlpOptions(epochs=3), options=TrainOptions(seed=seed)).head.weights[0]
        for seed in (1, 1, 2)
    ]
    assert np.array_equal(same[0], same[1])
    assert not np.array_equal(same[0], same[2])


def test_multi_label_chooses_by_average_precision():
    cache = several_labels()
    features = cache.arrays["features"]
    for head in (LinearOptions(), MlpOptions(epochs=20)):
        result = train_head(cache, head=head)
        assert result.score == "mean_average_precision"
        assert result.test_score > 0.75
        assert result.test_accuracy > 0.75
        assert result.head.predict_proba(features).shape == (300, 4)
        assert result.head.predict(features).dtype == bool


def test_regression_chooses_by_r2_and_has_no_accuracy():
    generator = np.random.default_rng(3)
    features = generator.normal(size=(300, 12)).astype(np.float32)
    targets = (features @ generator.normal(size=(12, 2)) + 5).astype(np.float32)
    splits = (["train"] * 3 + ["val", "test"]) * 60
    samples = make_samples(
        np.zeros(300, dtype=int), splits, targets=targets, task="regression", classes=("height", "width")
    )
    cache = MemoryCache({"features": features}, samples)
    for head in (LinearOptions(), LinearOptions(l1="auto"), MlpOptions(epochs=40, dropout=0.0, learning_rate=0.01)):
        result = train_head(cache, head=head)
        assert result.test_score > 0.9, head
        assert result.test_accuracy is None
    for settings in (
        {"head": KnnOptions()},
        {"options": TrainOptions(calibrate=True)},
        {"options": TrainOptions(unknown="auto")},
        {"head": LinearOptions(class_weight="balanced")},
    ):
        with pytest.raises(InputError, match="classification"):
            train_head(cache, **settings)
