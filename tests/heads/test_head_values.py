"""Heads as values: what cannot be made, tasks without probabilities, softmax and sigmoid at the extremes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from head_examples import CLASSES, WIDTH

from featcache.errors import InputError
from featcache.heads import LinearHead, head_class
from featcache.heads.base import sigmoid, softmax


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(11, WIDTH)).astype(np.float32)


def test_a_head_with_odd_shapes_cannot_be_made():
    weight, bias = np.zeros((3, 4), dtype=np.float32), np.zeros(3, dtype=np.float32)
    with pytest.raises(InputError, match="2 classes"):
        LinearHead(classes=("a", "b"), weight=weight, bias=bias)
    with pytest.raises(InputError, match="distinct"):
        LinearHead(classes=("a", "a", "b"), weight=weight, bias=bias)
    with pytest.raises(InputError, match="finite"):
        LinearHead(classes=CLASSES, weight=weight, bias=bias * np.nan)
    with pytest.raises(InputError, match="task"):
        LinearHead(classes=CLASSES, weight=weight, bias=bias, task="ranking")
    with pytest.raises(InputError, match="kind"):
        head_class("forest")


def test_regression_has_values_and_no_probabilities(rows):
    head = LinearHead(
        classes=("height",), task="regression", weight=np.ones((1, WIDTH), np.float32), bias=np.zeros(1, np.float32)
    )
    assert np.allclose(head.predict(rows)[:, 0], rows.sum(axis=1), atol=1e-5)
    with pytest.raises(InputError, match="regression"):
        head.predict_proba(rows)


def test_softmax_and_sigmoid_survive_huge_logits():
    logits = np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4]], dtype=np.float32)
    assert np.allclose(softmax(logits), [[1, 0, 0], [1 / 3] * 3])
    assert np.allclose(sigmoid(logits), [[1, 0, 0.5], [0, 0, 0]])


def test_heads_load_neither_torch_nor_scikit_learn():
    code = (
        "import sys, featcache.heads as h;"
        "[h.head_class(k) for k in h.KINDS];"
        "bad = {'torch', 'sklearn', 'timm', 'scipy'} & set(sys.modules);"
        "sys.exit(f'loaded {bad}' if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
