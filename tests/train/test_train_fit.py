"""train_head: what it promises to return, what it chooses by, and that its settings make the head again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from memory_cache import blobs

from featcache.heads import load_fit, load_head
from featcache.train.fit import refit_head, train_head
from featcache.train.options import (
    KnnOptions,
    LinearOptions,
    MlpOptions,
    PrototypeOptions,
    TrainOptions,
)

TRAIN_KEYS = {
    *("kind", "l1", "l2", "objective", "gap", "nonzero_fraction", "features_used", "n_train", "n_classes"),
    *("train_accuracy", "val_accuracy", "test_accuracy", "wall_seconds"),
}


def test_the_result_has_the_promised_keys_and_is_json(tmp_path):
    result = train_head(blobs())
    values = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert set(values) >= TRAIN_KEYS
    assert (values["n_train"], values["n_val"], values["n_test"], values["n_classes"]) == (144, 48, 48, 4)
    result.save(tmp_path / "head")
    assert load_fit(tmp_path / "head")["objective"] == result.objective
    lines = (tmp_path / "head" / "path.csv").read_text().splitlines()
    assert len(lines) == len(result.path) + 1
    assert sum(line.endswith(",1") for line in lines) == 1


def test_no_flag_chooses_l2_on_val_and_one_flag_zeroes_the_other():
    cache = blobs(spread=2.5)
    chosen = train_head(cache)
    assert chosen.selection == "val"
    assert chosen.l1 == chosen.group_l1 == 0
    assert chosen.l2 > 0
    best = max(point.value for point in chosen.path)
    assert chosen.val_accuracy == pytest.approx(best)
    assert train_head(cache, head=LinearOptions(l1=0.01)).l2 == 0


def test_val_selects_and_test_is_never_looked_at():
    cache = blobs(spread=2.5)
    before = train_head(cache)
    test_rows = cache.select(split="test").rows
    cache.arrays["features"][test_rows] = 0.0
    after = train_head(cache)
    assert np.array_equal(before.head.weight, after.head.weight)
    assert before.test_accuracy != after.test_accuracy


def test_train_rows_alone_are_fitted_on():
    cache = blobs(spread=2.5)
    before = train_head(cache, head=LinearOptions(l2=0.1))
    cache.arrays["features"][cache.select(split="val").rows] *= 3
    assert np.array_equal(before.head.weight, train_head(cache, head=LinearOptions(l2=0.1)).head.weight)


def test_without_test_the_test_figures_are_null():
    cache = blobs()
    samples = cache.samples()
    samples.splits[samples.splits == 2] = 0
    assert train_head(cache, head=LinearOptions(l2=1.0)).test_accuracy is None


KINDS = [
    {},
    {"head": LinearOptions(l1="auto")},
    {"head": LinearOptions(group_l1=0.02)},
    {"head": PrototypeOptions()},
    {"head": KnnOptions()},
    {"head": MlpOptions(epochs=8, hidden=(16,), mixup=0.2)},
    {"head": LinearOptions(label_smoothing=0.1)},
    {"head": LinearOptions(mixup=0.4, class_weight="balanced")},
    {"options": TrainOptions(calibrate=True, unknown="auto")},
]


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_the_settings_of_a_result_fit_the_same_head_again(settings, tmp_path):
    cache = blobs(spread=2.0)
    first = train_head(cache, **settings)
    again = refit_head(cache, first.settings)
    for name, array in first.head.arrays().items():
        assert np.array_equal(array, again.head.arrays()[name]), name
    assert again.settings == first.settings == dict(first.head.settings)
    assert again.val_accuracy == first.val_accuracy
    first.save(tmp_path / "head")
    assert load_head(tmp_path / "head").settings == first.settings
    assert first.val_accuracy > 0.5


def test_training_a_linear_head_imports_no_torch_and_no_scikit_learn():
    code = (
        "import sys; sys.path.insert(0, 'tests');"
        "from memory_cache import blobs;"
        "from featcache import KnnOptions, LinearOptions, PrototypeOptions, TrainOptions, train_head;"
        "heads = [None, LinearOptions(l1='auto'), KnnOptions()];"
        "[train_head(blobs(), head=head) for head in heads];"
        "after = TrainOptions(calibrate=True, unknown='auto');"
        "train_head(blobs(), head=PrototypeOptions(), options=after, memory_bytes=10**9);"
        "bad = {'torch', 'sklearn', 'timm'} & set(sys.modules);"
        "sys.exit(f'loaded {bad}' if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent.parent)
