"""The prototype head picks the nearest mean, by distance or by angle."""

from __future__ import annotations

import numpy as np
import pytest
from head_examples import CLASSES, WIDTH

from featcache.heads.prototype import PrototypeHead, fit_prototypes


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(11, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_prototype_head_picks_the_nearest_mean(metric, rows):
    generator = np.random.default_rng(5)
    features, labels = generator.normal(size=(60, WIDTH)).astype(np.float32) * 3 + 1, np.arange(60) % 3
    head = PrototypeHead(classes=CLASSES, **fit_prototypes(features, labels, n_classes=3, metric=metric))
    z, queries = features - features.mean(axis=0), rows - features.mean(axis=0)
    if metric == "euclidean":
        z, queries = z / features.std(axis=0), queries / features.std(axis=0)
        means = np.stack([z[labels == c].mean(axis=0) for c in range(3)])
        expected = ((queries[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    else:
        z = z / np.linalg.norm(z, axis=1, keepdims=True)
        means = np.stack([z[labels == c].mean(axis=0) for c in range(3)])
        expected = (queries @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T).argmax(axis=1)
    assert np.array_equal(head.predict(rows), expected)
    import torch

    with torch.inference_mode():
        given = head.to_module()(torch.from_numpy(rows)).numpy()
    assert np.abs(given - head.predict_logits(rows)).max() < 1e-5
