"""train_head: what it fits on, what it chooses by, what it returns, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_cache import MemoryCache, blobs, digests_of, make_samples

from featcache.errors import InputError
from featcache.heads import load_fit, load_head
from featcache.heads.mlp_fit import PATIENCE, MlpOptions, MlpTargets, fit_mlp
from featcache.train import blocks, compare, train_head
from featcache.train.score import Score, average_precisions, score_logits
from featcache.train.search import choose, search

TRAIN_KEYS = {
    *("kind", "l1", "l2", "objective", "gap", "nonzero_fraction", "features_used", "n_train", "n_classes"),
    *("train_accuracy", "val_accuracy", "test_accuracy", "wall_seconds"),
}


def objective_by_hand(head, cache, *, l1=0.0, l2=0.0, group_l1=0.0) -> float:
    """Return the documented objective of a saved head, in float64, from nothing but its raw weights."""
    selection = cache.select(split="train")
    x = cache.gather(selection.rows).astype(np.float64)
    mean, std = x.mean(axis=0), x.std(axis=0)
    weight = head.weight.astype(np.float64) * std
    logits = ((x - mean) / std) @ weight.T + head.bias + head.weight.astype(np.float64) @ mean
    logits -= logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(x)), selection.labels]
    groups = np.sqrt((weight**2).sum(axis=0)).sum()
    return float(losses.mean() + l1 * np.abs(weight).sum() + l2 / 2 * (weight**2).sum() + group_l1 * groups)


@pytest.mark.parametrize("penalty", [{"l2": 1e-2}, {"l1": 1e-2}, {"l1": 1e-2, "l2": 1e-2}, {"group_l1": 2e-2}])
def test_the_reported_objective_is_the_documented_one(penalty):
    cache = blobs(spread=2.0)
    result = train_head(cache, **penalty)
    assert result.objective == pytest.approx(objective_by_hand(result.head, cache, **penalty), rel=1e-4)
    assert result.gap < 1e-4
    assert (result.l1, result.l2, result.group_l1) == tuple(penalty.get(name, 0.0) for name in ("l1", "l2", "group_l1"))
    assert result.nonzero_fraction == np.count_nonzero(result.head.weight) / result.head.weight.size
    assert result.features_used == np.count_nonzero(result.head.weight.any(axis=0))


def several_labels(*, seed: int = 3) -> MemoryCache:
    """Return a multi-label cache of four labels that a linear head tells, with noise."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(300, 12)).astype(np.float32)
    targets = (features @ generator.normal(size=(12, 4)) + generator.normal(size=(300, 4)) > 0.5).astype(np.float32)
    splits = (["train"] * 3 + ["val", "test"]) * 60
    labels = targets.argmax(axis=1)
    return MemoryCache({"features": features}, make_samples(labels, splits, targets=targets, task="multilabel"))


def numbers_to_predict(*, noise: float = 1.0, seed: int = 3) -> MemoryCache:
    """Return a regression cache of two targets."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(300, 12)).astype(np.float32)
    targets = features @ generator.normal(size=(12, 2)) + 5 + noise * generator.normal(size=(300, 2))
    splits = (["train"] * 3 + ["val", "test"]) * 60
    samples = make_samples(
        np.zeros(300, dtype=int), splits, targets=targets.astype(np.float32), task="regression", classes=("a", "b")
    )
    return MemoryCache({"features": features}, samples)


TASKS = {
    "softmax": lambda: blobs(spread=2.0),
    "binary": lambda: blobs(k=2, spread=4.0),
    "multilabel": several_labels,
    "regression": numbers_to_predict,
}
PENALTIES = [
    {"l2": 1e-2}, {"l1": 1e-2}, {"l1": 1e-2, "l2": 1e-2}, {"group_l1": 2e-2}, {"group_l1": 2e-2, "l2": 1e-2},
    {"l2": "auto"}, {"l1": "auto"}, {"group_l1": "auto"}, {"l1": "auto", "l2": 1e-2},
]  # fmt: skip


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
@pytest.mark.parametrize("task", TASKS)
def test_every_task_takes_every_penalty_and_certifies_the_fit(task, penalty):
    cache = TASKS[task]()
    result = train_head(cache, **penalty)
    assert result.gap_kind == "duality"
    assert 0 <= result.gap < 1e-5
    assert result.gap < 2e-6 or not result.details["converged"]
    assert result.passes > 0
    assert result.notes == ()
    # the objective by its definition, from the raw weights alone
    selection = cache.select(split="train")
    x = cache.gather(selection.rows).astype(np.float64)
    std = x.std(axis=0)
    raw = result.head.weight.astype(np.float64)
    weight, logits = raw * std, x @ raw.T + result.head.bias
    if task in ("softmax", "binary"):
        shifted = logits - logits.max(axis=1, keepdims=True)
        losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(x)), selection.labels]
    elif task == "multilabel":
        losses = (np.logaddexp(0, logits) - selection.labels * logits).sum(axis=1)
    else:
        losses = 0.5 * ((logits - selection.labels) ** 2).sum(axis=1)
    penalties = (
        result.l1 * np.abs(weight).sum()
        + result.l2 / 2 * (weight**2).sum()
        + result.group_l1 * np.sqrt((weight**2).sum(axis=0)).sum()
    )
    assert result.objective == pytest.approx(losses.mean() + penalties, rel=1e-4)
    assert (result.selection == "val") == ("auto" in penalty.values())


def test_a_fit_that_float32_cannot_finish_says_so():
    result = train_head(blobs(), l2=1e-12)
    assert not result.details["converged"]
    assert len(result.notes) == 1
    assert "relative gap" in result.notes[0] and "l2 1e-12" in result.notes[0]


def test_kept_features_are_chosen_by_group_l1_and_weighed_by_l2_alone():
    cache = blobs(spread=2.0)
    result = train_head(cache, keep_features=0.5, l2=1e-2)
    kept = result.details["kept"]["features"]
    assert kept == np.flatnonzero(result.head.weight.any(axis=0)).tolist()
    assert result.features_used == len(kept) <= 8
    assert result.nonzero_fraction == pytest.approx(np.count_nonzero(result.head.weight) / result.head.weight.size)
    assert (result.l1, result.group_l1, result.l2) == (0.0, 0.0, 1e-2)
    assert result.objective == pytest.approx(objective_by_hand(result.head, cache, l2=1e-2), rel=1e-4)
    groups = train_head(cache, **{name: result.details["kept"][name] for name in ("group_l1", "l2")})
    assert np.array_equal(groups.head.weight.any(axis=0), result.head.weight.any(axis=0))
    again = train_head(cache, **train_head(cache, keep_features=0.5).settings)
    assert np.array_equal(again.head.weight, train_head(cache, keep_features=0.5).head.weight)


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
    assert train_head(cache, l1=0.01).l2 == 0


def test_val_selects_and_test_is_never_looked_at():
    cache = blobs(spread=2.5)
    before = train_head(cache)
    test_rows = cache.select(split="test").rows
    cache._columns["features"][test_rows] = 0.0
    after = train_head(cache)
    assert np.array_equal(before.head.weight, after.head.weight)
    assert before.test_accuracy != after.test_accuracy


def test_train_rows_alone_are_fitted_on():
    cache = blobs(spread=2.5)
    before = train_head(cache, l2=0.1)
    cache._columns["features"][cache.select(split="val").rows] *= 3
    assert np.array_equal(before.head.weight, train_head(cache, l2=0.1).head.weight)


def test_without_val_folds_choose_and_val_is_null():
    result = train_head(blobs(spread=2.5, val=False), folds=4)
    assert result.selection == "4 folds"
    assert result.val_accuracy is None
    assert result.n_val == 0
    assert result.n_train == 192
    assert 0 < max(point.value for point in result.path) < 1


def test_without_test_the_test_figures_are_null():
    cache = blobs()
    samples = cache.samples()
    samples.splits[samples.splits == 2] = 0
    assert train_head(cache, l2=1.0).test_accuracy is None


def curve(*pairs):
    return {10.0**-i: Score(value, 0.02, value, loss, 100) for i, (value, loss) in enumerate(pairs)}


def test_the_one_standard_error_rule_takes_a_stronger_penalty_within_the_error():
    scores = curve((0.5, 1), (0.87, 1), (0.885, 1), (0.9, 1), (0.88, 1))
    assert choose(scores, one_standard_error=False) == 1e-3
    assert choose(scores, one_standard_error=True) == 1e-2
    cache = blobs(spread=2.5)
    careful = train_head(cache, standard_error_rule=True)
    assert careful.l2 >= train_head(cache).l2
    assert np.array_equal(train_head(cache, **careful.settings).head.weight, careful.head.weight)


def test_equal_scores_go_to_the_smaller_loss_then_to_the_stronger_penalty():
    assert choose(curve((0.9, 0.5), (0.9, 0.3), (0.9, 0.4)), one_standard_error=False) == 0.1
    assert choose(curve((0.9, 0.3), (0.9, 0.3)), one_standard_error=False) == 1.0


@given(peak=st.integers(0, 44), width=st.floats(2, 30))
def test_the_search_finds_the_best_of_the_grid_where_there_is_one_peak(peak, width):
    grid = np.logspace(1, -4, 45).tolist()
    looked = []

    def score(value):
        looked.append(value)
        distance = abs(grid.index(value) - peak)
        return Score(1 - distance / 100, 0.01, None, (distance / width) ** 2, 50)

    scores, chosen = search(grid, score, one_standard_error=False)
    assert chosen == grid[peak]
    assert len(looked) == len(set(looked)) == len(scores) <= peak // 4 + 8
    assert list(scores) == sorted(scores, reverse=True)
    _, careful = search(grid, score, one_standard_error=True)
    assert careful == grid[max(peak - 1, 0)]


KINDS = [
    {},
    {"l1": "auto"},
    {"group_l1": 0.02},
    {"kind": "prototype"},
    {"kind": "knn"},
    {"kind": "mlp", "epochs": 8, "hidden": (16,), "mixup": 0.2},
    {"label_smoothing": 0.1},
    {"mixup": 0.4, "class_weight": "balanced"},
    {"calibrate": True, "unknown": "auto"},
]


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_the_settings_of_a_result_fit_the_same_head_again(settings, tmp_path):
    cache = blobs(spread=2.0)
    first = train_head(cache, **settings)
    again = train_head(cache, **first.settings)
    for name, array in first.head.arrays().items():
        assert np.array_equal(array, again.head.arrays()[name]), name
    assert again.settings == first.settings == dict(first.head.settings)
    assert again.val_accuracy == first.val_accuracy
    first.save(tmp_path / "head")
    assert load_head(tmp_path / "head").settings == first.settings
    assert first.val_accuracy > 0.5


@pytest.mark.parametrize("settings", [{"kind": "prototype"}, {"kind": "knn"}, {"kind": "mlp", "epochs": 5}], ids=str)
def test_every_kind_trains_without_a_val_split(settings):
    result = train_head(blobs(val=False), **settings)
    assert result.val_accuracy is None
    assert result.test_accuracy > 0.7
    assert result.objective is None


def test_an_mlp_stops_after_epochs_without_a_better_one_and_keeps_the_best():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(64, 5)).astype(np.float32)
    targets = np.eye(2, dtype=np.float32)[np.arange(64) % 2]
    options = MlpOptions(hidden=(4,), dropout=0.0, learning_rate=1e-2, weight_decay=0.0, epochs=90, mixup=0.0, seed=0)
    seen = []

    def evaluate(predict):
        seen.append(predict(features))
        return (1.0 if len(seen) == 3 else 0.5), 1.0

    supervision = MlpTargets(targets=targets, weights=np.ones(64, dtype=np.float32))
    (weights, biases), epoch = fit_mlp(features, supervision, task="classification", options=options, evaluate=evaluate)
    assert epoch == 3
    assert len(seen) == 3 + PATIENCE
    hidden = np.maximum(features @ weights[0].T + biases[0], 0)
    assert np.array_equal(hidden @ weights[1].T + biases[1], seen[2])


@pytest.mark.parametrize("task", TASKS)
def test_an_mlp_that_diverges_says_so(task):
    refuse(TASKS[task](), "loss of an MLP must stay finite.*smaller learning_rate", kind="mlp", learning_rate=1e30)


def test_the_seed_of_an_mlp_decides_its_bits():
    cache = blobs()
    same = [train_head(cache, kind="mlp", epochs=3, seed=seed).head.weights[0] for seed in (1, 1, 2)]
    assert np.array_equal(same[0], same[1])
    assert not np.array_equal(same[0], same[2])


def test_calibration_makes_probabilities_more_honest_and_changes_no_decision():
    cache = blobs(n=1200, spread=3.0)
    plain, calibrated = train_head(cache, l2=1e-6), train_head(cache, l2=1e-6, calibrate=True)
    figures = calibrated.head.calibration
    assert figures.temperature > 1
    assert figures.ece_after < figures.ece_before
    x = cache.gather(np.arange(100))
    assert np.array_equal(plain.head.predict(x), calibrated.head.predict(x))
    assert np.allclose(plain.head.predict_logits(x) / figures.temperature, calibrated.head.predict_logits(x), atol=1e-3)


def test_the_unknown_rule_is_measured_on_classes_left_out():
    result = train_head(blobs(n=600, k=6, d=24, spread=0.8), l2=0.03, unknown="auto", unknown_accept=0.9)
    rule = result.head.unknown
    assert len(rule.held_out) == 5
    assert rule.auroc > 0.8
    assert rule.accepted == pytest.approx(0.9, abs=0.02)


def test_unknown_with_two_classes_has_a_threshold_and_no_area():
    rule = train_head(blobs(k=2), l2=0.03, unknown="max_probability").head.unknown
    assert rule.auroc is None
    assert rule.held_out == ()


def test_views_become_training_rows_and_outputs_stand_side_by_side():
    generator = np.random.default_rng(0)
    base = blobs(spread=2.0)
    plain = base._columns["features"]
    more = generator.normal(size=(len(plain), 3, 2)).astype(np.float32)
    columns = {"features": plain, "layer": more, "features@1": plain + 0.1, "layer@1": more}
    cache = MemoryCache(columns, base.samples())
    result = train_head(cache, l2=0.1, outputs=["layer", "features"], views=[0, 1])
    assert result.n_train == 2 * 144
    assert result.num_features == 16 + 6
    assert result.head.columns == ("layer", "features")
    twice = np.concatenate([np.concatenate([more.reshape(-1, 6), x], axis=1) for x in (plain, plain + 0.1)])
    labels = cache.samples().labels
    train = np.tile(cache.samples().splits == 0, 2)
    by_hand = MemoryCache(
        {"features": twice}, make_samples(np.tile(labels, 2), np.where(train, "train", "test").tolist())
    )
    assert np.allclose(train_head(by_hand, l2=0.1).head.weight, result.head.weight, rtol=2e-3, atol=2e-4)


def test_block_scales_make_an_output_count_more():
    generator = np.random.default_rng(0)
    base = blobs(spread=2.0)
    plain = base._columns["features"]
    cache = MemoryCache(
        {"features": plain, "layer": generator.normal(size=(240, 4)).astype(np.float32)}, base.samples()
    )
    penalty, scales = 0.05, np.repeat([3.0, 0.5], [4, 16])
    result = train_head(cache, l2=penalty, outputs=["layer", "features"], block_scales=[3.0, 0.5])
    # the same by hand: one more factor on standardised features is a factor on their weights in the penalty
    x = cache.gather(cache.select(split="train").rows, output=["layer", "features"]).astype(np.float64)
    labels = cache.select(split="train").labels
    z = (x - x.mean(axis=0)) / x.std(axis=0) * scales
    weight = result.head.weight.astype(np.float64) * x.std(axis=0) / scales
    bias = result.head.bias + result.head.weight.astype(np.float64) @ x.mean(axis=0)
    logits = z @ weight.T + bias
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    gradient = (p - np.eye(4)[labels]).T @ z / len(z) + penalty * weight
    assert np.abs(gradient).max() < 1e-3
    assert np.abs(gradient - penalty * weight).max() > 1e-2
    same = train_head(cache, l2=penalty, outputs=["layer", "features"], block_scales=[1.0, 1.0])
    assert np.array_equal(same.head.weight, train_head(cache, l2=penalty, outputs=["layer", "features"]).head.weight)
    auto = train_head(cache, l2=penalty, outputs=["layer", "features"], block_scales="auto")
    by_width = train_head(cache, l2=penalty, outputs=["layer", "features"], block_scales=[4**0.25, 1.0])
    assert np.allclose(auto.head.weight, by_width.head.weight, atol=1e-5)
    assert auto.settings["block_scales"] == "auto"
    refuse(cache, "one number per output", l2=1.0, block_scales=[1.0, 2.0])


def test_class_weights_count_rows_as_that_many():
    cache = blobs(spread=2.5)
    samples = cache.samples()
    dropped = np.flatnonzero((samples.labels == 0) & (samples.splits == 0))[::2]
    samples.splits[dropped] = 2
    balanced = train_head(cache, l2=0.05, class_weight="balanced")
    plain = train_head(cache, l2=0.05)
    x = cache.gather(cache.select(split="test").rows)
    assert balanced.head.predict_proba(x)[:, 0].mean() > plain.head.predict_proba(x)[:, 0].mean() + 0.01


def test_duplicates_are_told_and_dropped_when_asked():
    cache = blobs()
    samples = cache.samples()
    train, val = np.flatnonzero(samples.splits == 0), np.flatnonzero(samples.splits == 1)
    samples.digests[train[0]] = samples.digests[val[0]]  # the same image in train and val
    samples.digests[train[1]] = samples.digests[train[2]]  # one image under two labels
    assert samples.labels[train[1]] != samples.labels[train[2]]
    kept = train_head(cache, l2=1.0)
    assert kept.n_train == 144
    assert len(kept.notes) == 2
    assert train_head(cache, l2=1.0, drop_duplicates=True).n_train == 141


# --- other tasks ---


def test_multi_label_chooses_by_average_precision():
    cache = several_labels()
    features = cache._columns["features"]
    for settings in ({}, {"kind": "mlp", "epochs": 20}):
        result = train_head(cache, **settings)
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
    for settings in ({}, {"l1": "auto"}, {"kind": "mlp", "epochs": 40, "dropout": 0.0, "learning_rate": 0.01}):
        result = train_head(cache, **settings)
        assert result.test_score > 0.9, settings
        assert result.test_accuracy is None
    for settings in ({"kind": "knn"}, {"calibrate": True}, {"unknown": "auto"}, {"class_weight": "balanced"}):
        with pytest.raises(InputError, match="classification"):
            train_head(cache, **settings)


def test_average_precision_by_hand():
    logits = np.array([[3.0], [2.0], [1.0], [0.0]])
    assert average_precisions(logits, np.array([[1], [0], [1], [0]])) == pytest.approx([(1 + 2 / 3) / 2])
    assert np.isnan(average_precisions(logits, np.zeros((4, 1)))).all()
    assert score_logits(logits, np.zeros((4, 1)), task="multilabel").accuracy == 0.25


def test_r2_of_equal_targets_is_one_or_zero():
    """As scikit-learn's, where R² is 0/0 or minus infinity: folds may hold one row."""
    same = np.full((3, 2), 7.0)
    assert score_logits(same, same, task="regression").value == 1.0
    missed = score_logits(same + 1, same, task="regression")
    assert (missed.value, missed.standard_error, missed.loss) == (0.0, 0.0, 1.0)
    cache = numbers_to_predict()
    cache.samples().splits[:] = 2
    cache.samples().splits[:24] = 0
    each_alone = train_head(cache, folds=10_000)
    assert each_alone.selection == "24 folds"
    json.dumps(each_alone.to_json(), allow_nan=False)


# --- larger than memory ---


@pytest.mark.parametrize("val", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {"l2": 0.05, "calibrate": True, "unknown": "energy"},
        {"l2": "auto", "views": [0, 1]},
        {"l1": 0.02},
        {"group_l1": "auto"},
        {"keep_features": 0.5, "l2": 0.05},
        {"l2": 0.1, "block_scales": [0.5, 2.0], "outputs": ["layer", "features"]},
        {"l2": 0.1, "class_weight": "balanced", "label_smoothing": 0.1},
    ],
    ids=str,
)
def test_rows_streamed_from_the_cache_give_the_same_head(settings, val, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4 * 20 * 50)  # fifty rows of up to twenty features
    base = blobs(spread=2.0, val=val)
    plain = base._columns["features"]
    more = np.random.default_rng(1).normal(size=(len(plain), 4)).astype(np.float32)
    columns = {"features": plain, "layer": more, "features@1": plain * np.float32(1.01), "layer@1": more}
    cache = MemoryCache(columns, base.samples())
    if not val:
        settings = {name: value for name, value in settings.items() if name not in ("calibrate", "unknown")}
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


def test_streaming_holds_blocks_not_the_rows(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1 << 18)
    cache = blobs(n=10_000, d=200, k=3, spread=3.0)  # 8 MB of features

    def peak(**settings):
        tracemalloc.start()
        train_head(cache, l2=0.1, **settings)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak() > 16e6
    assert peak(memory_bytes=1_000_000) < 5e6


def test_unlabelled_images_take_part_in_a_streamed_fit(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4 * 20 * 64)
    cache, teacher = noisy_students(noise=0.0, free=520)
    settings = {"teacher": teacher, "teacher_head": train_head(teacher, l2=0.1).head, "alpha": 0.7, "l2": 0.05}
    whole, streamed = train_head(cache, **settings), train_head(cache, **settings, memory_bytes=1000)
    assert streamed.n_unlabelled == 520
    assert streamed.objective == pytest.approx(whole.objective, rel=3e-6)


@pytest.mark.parametrize("settings", [{"kind": "mlp"}, {"kind": "knn"}, {"kind": "prototype"}, {"mixup": 0.2}], ids=str)
def test_what_needs_the_rows_in_memory_refuses_to_stream(settings):
    refuse(blobs(), "needs the rows in memory", memory_bytes=1000, **settings)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_streamed_features_that_are_not_finite_are_named(split):
    cache = blobs()
    row = cache.select(split=split).rows[2]
    cache._columns["features"][row, 5] = np.nan
    refuse(cache, f"1 rows, first that of '{row:06}.jpg'", l2=0.1, memory_bytes=1000)


# --- distillation ---


def noisy_students(*, noise: float = 0.45, seed: int = 0, free: int = 0) -> tuple[MemoryCache, MemoryCache]:
    """Return a student's cache with noisy train labels and a teacher's cache, cleanly labelled, of the same images."""
    generator = np.random.default_rng(seed)
    n, d, k = 900, 20, 5
    labels = np.arange(n) % k
    centers = generator.normal(size=(k, d))
    student = (centers[labels] + 1.3 * generator.normal(size=(n, d))).astype(np.float32)
    teacher = (centers[labels] + 0.8 * generator.normal(size=(n, d))).astype(np.float32)
    splits = np.array(["train", "train", "train", "val", "test"])[np.arange(n) // k % 5]
    noisy = labels.copy()
    wrong = (generator.random(n) < noise) & (splits == "train")
    noisy[wrong] = (labels[wrong] + generator.integers(1, k, size=int(wrong.sum()))) % k
    if free:
        noisy[np.flatnonzero(splits == "train")[:free]] = -1
    names = [f"class{i}" for i in range(k)]
    digests = digests_of(n)
    students = make_samples(noisy, splits.tolist(), digests=digests, classes=names)
    order = generator.permutation(n)  # the teacher's rows and samples stand in another order
    masters = make_samples(labels[order], splits[order].tolist(), digests=digests[order], classes=names)
    return (
        MemoryCache({"features": student}, students),
        MemoryCache({"features": teacher[order]}, masters, fingerprint="e" * 64),
    )


def test_a_teacher_helps_where_labels_are_noisy():
    cache, teacher = noisy_students()
    plain, guided = train_head(cache), train_head(cache, teacher=teacher, alpha=0.5)
    none = train_head(cache, teacher=teacher, alpha=0.0)
    assert np.array_equal(none.head.weight, plain.head.weight)
    assert guided.test_accuracy >= plain.test_accuracy + 0.03
    assert guided.details["teacher"]["head"] == "trained"


def distilled_loss(weight, bias, cache, teacher_q, *, alpha, temperature, l2):
    selection = cache.select(split="train")
    x = cache.gather(selection.rows).astype(np.float64)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    logits = z @ weight.T + bias

    def log_softmax(u):
        u = u - u.max(axis=1, keepdims=True)
        return u - np.log(np.exp(u).sum(axis=1, keepdims=True))

    hard = -log_softmax(logits)[np.arange(len(x)), selection.labels].mean()
    soft = (teacher_q * (np.log(teacher_q) - log_softmax(logits / temperature))).sum(axis=1).mean()
    return (1 - alpha) * hard + alpha * temperature**2 * soft + l2 / 2 * (weight**2).sum()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_distilled_head_is_a_minimum_of_hintons_loss(temperature):
    """The gradient, by central differences of the loss written out here, vanishes at the solution and not beside it."""
    cache, teacher = noisy_students()
    master = train_head(teacher, l2=0.1).head
    settings = {"alpha": 0.4, "temperature": temperature, "l2": 0.05}
    head = train_head(cache, teacher=teacher, teacher_head=master, **settings).head
    selection = cache.select(split="train")
    rows = teacher.find(cache.samples().digests[selection.indices])
    logits = master.predict_logits(teacher.gather(rows)).astype(np.float64) / temperature
    q = np.exp(logits - logits.max(axis=1, keepdims=True))
    q /= q.sum(axis=1, keepdims=True)
    x = cache.gather(selection.rows).astype(np.float64)
    weight = head.weight.astype(np.float64) * x.std(axis=0)
    bias = head.bias + head.weight.astype(np.float64) @ x.mean(axis=0)

    def slope(at_weight, direction):
        step = 1e-4
        plus, minus = (distilled_loss(at_weight + s * direction, bias, cache, q, **settings) for s in (step, -step))
        return (plus - minus) / (2 * step)

    generator = np.random.default_rng(0)
    for _ in range(8):
        direction = generator.normal(size=weight.shape)
        direction /= np.linalg.norm(direction)
        assert abs(slope(weight, direction)) < 1e-3
        assert abs(slope(weight + 0.5 * direction, direction)) > 1e-2


def test_unlabelled_images_take_part_through_the_teacher():
    cache, teacher = noisy_students(noise=0.0, free=520)
    plain = train_head(cache)
    guided = train_head(cache, teacher=teacher, alpha=0.7)
    assert plain.n_unlabelled == 0
    assert guided.n_unlabelled == 520
    assert guided.n_train == plain.n_train == 20
    assert guided.test_accuracy >= plain.test_accuracy + 0.03


def test_an_mlp_learns_from_a_teacher():
    cache, teacher = noisy_students()
    plain = train_head(cache, kind="mlp", epochs=15, hidden=(64,))
    guided = train_head(cache, kind="mlp", epochs=15, hidden=(64,), teacher=teacher, alpha=0.9)
    assert guided.test_accuracy >= plain.test_accuracy + 0.03


def test_stored_logits_serve_as_the_teacher_where_they_fit():
    cache, teacher = noisy_students()
    logits = train_head(teacher, l2=0.1).head.predict_logits(teacher._columns["features"])
    with_logits = MemoryCache({"features": teacher._columns["features"], "logits": logits}, teacher.samples())
    guided = train_head(cache, teacher=with_logits, l2=0.1)
    assert guided.details["teacher"]["head"] == "logits"
    named = train_head(cache, teacher=teacher, teacher_head={"l2": 0.1}, l2=0.1)
    assert np.allclose(named.head.weight, guided.head.weight, atol=1e-4)


# --- refusals ---


def refuse(cache, message, **settings):
    with pytest.raises(InputError, match=message) as caught:
        train_head(cache, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_features_that_are_not_finite_are_named(value, split):
    cache = blobs()
    row = cache.select(split=split).rows[2]
    cache._columns["features"][row, 5] = value
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
        ({"l1": -1.0}, "l1 must be 'auto' or a number of at least 0, got -1.0"),
        ({"l2": float("nan")}, "l2 must be"),
        ({"group_l1": "most"}, "group_l1 must be"),
        ({"l1": "auto", "l2": "auto"}, "at most one penalty"),
        ({"l1": 0.1, "group_l1": 0.1}, "cannot both"),
        ({"l2": 0.0}, "above 0"),
        ({"kind": "forest"}, "kind must be one of"),
        ({"kind": "knn", "l2": 1.0}, "l2 needs kind 'linear'"),
        ({"kind": "knn", "mixup": 1.0}, "mixup needs kind"),
        ({"metric": "cosine"}, "metric needs kind 'prototype'"),
        ({"label_smoothing": 1.0}, "label_smoothing must be"),
        ({"alpha": 1.5}, "alpha must be"),
        ({"temperature": 0.0}, "temperature must be"),
        ({"folds": 1}, "folds must be"),
        ({"folds": 2.5}, "folds must be a whole number"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"l1": True}, "l1 must be 'auto' or a number"),
        ({"kind": "mlp", "hidden": (2.5,)}, "hidden must be"),
        ({"kind": "knn", "sharpness": -1.0}, "sharpness must be above 0"),
        ({"views": (0, 0)}, "views must not name one twice"),
        ({"views": (1,)}, "view must be 0 to 0"),
        ({"outputs": ["features", "features"]}, "outputs must not name one twice"),
        ({"outputs": []}, "outputs must name one or more"),
        ({"outputs": ["layer"]}, "output must be one of"),
        ({"standard_error_rule": True, "l2": 1.0}, "standard_error_rule needs a penalty to choose"),
        ({"standard_error_rule": True, "kind": "knn"}, "standard_error_rule needs a penalty to choose"),
        ({"memory_bytes": 0}, "memory_bytes must be above 0"),
        ({"unknown": "entropy"}, "unknown must be"),
        ({"class_weight": "heavy"}, "class_weight must be"),
        ({"views": ()}, "views must be"),
        ({"block_scales": [0.0]}, "block_scales must be"),
        ({"block_scales": "equal"}, "block_scales must be"),
        ({"block_scales": "auto", "kind": "mlp"}, "block_scales needs kind"),
        ({"keep_features": 0.0}, "keep_features must be above 0 and at most 1"),
        ({"keep_features": 0.5, "l1": 0.1}, "keep_features goes with l2 alone"),
        ({"keep_features": 0.5, "kind": "knn"}, "keep_features needs kind"),
        ({"keep_features": 0.5, "block_scales": "auto"}, "cannot go together"),
        ({"keep_features": 0.01}, "keep_features must leave room"),
        ({"teacher_head": "x"}, "teacher_head needs a teacher"),
        ({"unlabelled": "x"}, "unlabelled needs a teacher"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(settings, message):
    refuse(blobs(), message, **settings)


def test_numbers_cannot_be_smoothed_as_labels_are():
    refuse(numbers_to_predict(), "label_smoothing needs classes", label_smoothing=0.1)


def test_a_teacher_with_other_classes_is_refused():
    cache, teacher = noisy_students()
    names = ("class0", "class1", "class2", "class3", "extra")
    other = MemoryCache(teacher._columns, make_samples(teacher.samples().labels, ["train"] * 900, classes=names))
    head = train_head(other, l2=1.0).head
    refuse(cache, r"it lacks \['class4'\] and it has besides \['extra'\]", teacher=teacher, teacher_head=head)


def test_a_teacher_of_other_images_is_refused():
    cache, teacher = noisy_students()
    others = MemoryCache(teacher._columns, teacher.samples(), digests=digests_of(900, salt=1))
    head = train_head(teacher, l2=1.0).head
    refuse(cache, "540 of 540 are missing", teacher=others, teacher_head=head)


def test_a_teacher_that_cannot_be_used_is_refused():
    cache, teacher = noisy_students()
    refuse(cache, "teacher needs kind", teacher=teacher, kind="knn")
    refuse(cache, "label_smoothing and a teacher", teacher=teacher, label_smoothing=0.1)


def test_calibration_needs_a_val_split():
    refuse(blobs(val=False), "no val split", calibrate=True, l2=1.0)
    refuse(blobs(val=False), "no val split", unknown="auto", l2=1.0)


def test_too_few_images_for_folds_say_so():
    labels = np.array([0, 0, 0, 1])
    cache = MemoryCache({"features": np.eye(4, dtype=np.float32)}, make_samples(labels, ["train"] * 4))
    refuse(cache, "two training images of every class")


# --- the table ---


def test_the_table_marks_the_best_on_val():
    cache = blobs(spread=2.5)
    results = [train_head(cache, l2=100.0), train_head(cache), train_head(cache, kind="prototype")]
    lines = compare(results, names=["strong", "chosen", "prototype"]).splitlines()
    assert len(lines) == 4
    assert [line.split()[0] for line in lines] == ["head", "strong", "chosen", "prototype"]
    marked = [line for line in lines if "*" in line]
    best = max(range(3), key=lambda i: (results[i].val_score, -i))
    assert marked == [lines[1 + best]]
    assert "l2=100" in compare(results)


def test_training_a_linear_head_imports_no_torch_and_no_scikit_learn():
    code = (
        "import sys; sys.path.insert(0, 'tests');"
        "from memory_cache import blobs; from featcache.train import train_head;"
        "train_head(blobs()); train_head(blobs(), l1='auto'); train_head(blobs(), kind='knn');"
        "train_head(blobs(), kind='prototype', calibrate=True, unknown='auto', memory_bytes=10**9);"
        "bad = {'torch', 'sklearn', 'timm'} & set(sys.modules);"
        "sys.exit(f'loaded {bad}' if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent.parent)
