"""A small head of every built-in kind, with every common field set."""

from __future__ import annotations

from typing import Any

import numpy as np

from featcache.heads import Head, LinearHead
from featcache.heads.calibration import Calibration
from featcache.heads.knn import NeighborsHead, unit_rows
from featcache.heads.mlp import MlpHead
from featcache.heads.prototype import PrototypeHead, fit_prototypes
from featcache.heads.unknown import UnknownRule

CLASSES = ("cat", "dog", "ütf ☃")
WIDTH = 7


def make_head(kind: str, **fields: Any) -> Head:
    """Return a head of `kind`, with `fields` in place of the common fields it would have."""
    generator = np.random.default_rng(7)

    def draw(*shape: int) -> np.ndarray:
        return generator.normal(size=shape).astype(np.float32)

    common = {
        "classes": CLASSES,
        "columns": ("features", "layer3"),
        "fingerprint": "a" * 64,
        "settings": {"kind": kind, "seed": 3},
        "calibration": Calibration(1.5, 0.2, 0.1, 30),
        "unknown": UnknownRule("energy", 0.25, 0.95, 40, 0.8, ("dog",)),
        **fields,
    }
    if kind == "linear":
        return LinearHead(weight=draw(3, WIDTH), bias=draw(3), **common)
    if kind == "mlp":
        return MlpHead(weights=(draw(5, WIDTH), draw(4, 5), draw(3, 4)), biases=(draw(5), draw(4), draw(3)), **common)
    features, labels = draw(30, WIDTH), np.arange(30) % 3
    if kind == "prototype":
        arrays = fit_prototypes(features, labels, n_classes=3, metric="cosine")
        return PrototypeHead(sharpness=8.0, **arrays, **common)
    center = features.mean(axis=0)
    return NeighborsHead(
        rows=unit_rows(features, center).astype(np.float16), labels=labels, center=center, n_neighbors=4, **common
    )
