"""The fit of a perceptron: when it stops, and which epoch it keeps."""

from __future__ import annotations

import numpy as np

from featcache.heads.mlp_fit import PATIENCE, MlpTargets, MlpTraining, fit_mlp


def test_an_mlp_stops_after_epochs_without_a_better_one_and_keeps_the_best():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(64, 5)).astype(np.float32)
    targets = np.eye(2, dtype=np.float32)[np.arange(64) % 2]
    training = MlpTraining(hidden=(4,), dropout=0.0, learning_rate=1e-2, weight_decay=0.0, epochs=90, mixup=0.0, seed=0)
    seen = []

    def evaluate(predict):
        seen.append(predict(features))
        return (1.0 if len(seen) == 3 else 0.5), 1.0

    supervision = MlpTargets(targets=targets, weights=np.ones(64, dtype=np.float32))
    (weights, biases), epoch = fit_mlp(
        features, supervision, task="classification", training=training, evaluate=evaluate
    )
    assert epoch == 3
    assert len(seen) == 3 + PATIENCE
    hidden = np.maximum(features @ weights[0].T + biases[0], 0)
    assert np.array_equal(hidden @ weights[1].T + biases[1], seen[2])
