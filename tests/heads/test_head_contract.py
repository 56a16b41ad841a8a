"""Every kind of head keeps the contract that is published for others (`featcache.testing.heads`)."""

from __future__ import annotations

import numpy as np
from head_examples import WIDTH, make_head

from featcache.heads.prototype import PrototypeHead, fit_prototypes
from featcache.testing.heads import HeadContract


class TestLinearHead(HeadContract):
    def make_head(self, **common):
        return make_head("linear", **common)


class TestMlpHead(HeadContract):
    def make_head(self, **common):
        return make_head("mlp", **common)


class TestCosinePrototypes(HeadContract):
    def make_head(self, **common):
        return make_head("prototype", **common)


class TestEuclideanPrototypes(HeadContract):
    def make_head(self, **common):
        features = np.random.default_rng(3).normal(size=(30, WIDTH)).astype(np.float32)
        return PrototypeHead(**fit_prototypes(features, np.arange(30) % 3, n_classes=3, metric="euclidean"), **common)


class TestNeighborsHead(HeadContract):
    def make_head(self, **common):
        return make_head("knn", **common)
