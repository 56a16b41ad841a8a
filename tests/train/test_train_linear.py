"""The linear head: the documented objective, every penalty and task, chosen features, scaled outputs, weights."""

from __future__ import annotations

import numpy as np
import pytest
from memory_cache import MemoryCache, blobs
from train_caches import TASKS, refuse

from featcache.train.fit import refit_head, train_head
from featcache.train.options import (
    LinearOptions,
    TrainOptions,
)


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
    result = train_head(cache, head=LinearOptions(**penalty))
    assert result.objective == pytest.approx(objective_by_hand(result.head, cache, **penalty), rel=1e-4)
    assert result.gap < 1e-4
    assert (result.l1, result.l2, result.group_l1) == tuple(penalty.get(name, 0.0) for name in ("l1", "l2", "group_l1"))
    assert result.nonzero_fraction == np.count_nonzero(result.head.weight) / result.head.weight.size
    assert result.features_used == np.count_nonzero(result.head.weight.any(axis=0))


PENALTIES = [
    {"l2": 1e-2}, {"l1": 1e-2}, {"l1": 1e-2, "l2": 1e-2}, {"group_l1": 2e-2}, {"group_l1": 2e-2, "l2": 1e-2},
    {"l2": "auto"}, {"l1": "auto"}, {"group_l1": "auto"}, {"l1": "auto", "l2": 1e-2},
]  # fmt: skip


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
@pytest.mark.parametrize("task", TASKS)
def test_every_task_takes_every_penalty_and_certifies_the_fit(task, penalty):
    cache = TASKS[task]()
    result = train_head(cache, head=LinearOptions(**penalty))
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
    result = train_head(blobs(), head=LinearOptions(l2=1e-12))
    assert not result.details["converged"]
    assert len(result.notes) == 1
    assert "relative gap" in result.notes[0] and "l2 1e-12" in result.notes[0]


def test_kept_features_are_chosen_by_group_l1_and_weighed_by_l2_alone():
    cache = blobs(spread=2.0)
    result = train_head(cache, head=LinearOptions(keep_features=0.5, l2=1e-2))
    kept = result.details["kept"]["features"]
    assert kept == np.flatnonzero(result.head.weight.any(axis=0)).tolist()
    assert result.features_used == len(kept) <= 8
    assert result.nonzero_fraction == pytest.approx(np.count_nonzero(result.head.weight) / result.head.weight.size)
    assert (result.l1, result.group_l1, result.l2) == (0.0, 0.0, 1e-2)
    assert result.objective == pytest.approx(objective_by_hand(result.head, cache, l2=1e-2), rel=1e-4)
    groups = train_head(
        cache, head=LinearOptions(**{name: result.details["kept"][name] for name in ("group_l1", "l2")})
    )
    assert np.array_equal(groups.head.weight.any(axis=0), result.head.weight.any(axis=0))
    again = refit_head(cache, train_head(cache, head=LinearOptions(keep_features=0.5)).settings)
    assert np.array_equal(again.head.weight, train_head(cache, head=LinearOptions(keep_features=0.5)).head.weight)


def test_block_scales_make_an_output_count_more():
    generator = np.random.default_rng(0)
    base = blobs(spread=2.0)
    plain = base.arrays["features"]
    cache = MemoryCache(
        {"features": plain, "layer": generator.normal(size=(240, 4)).astype(np.float32)}, base.samples()
    )
    penalty, scales = 0.05, np.repeat([3.0, 0.5], [4, 16])
    result = train_head(
        cache,
        head=LinearOptions(l2=penalty, block_scales=[3.0, 0.5]),
        options=TrainOptions(outputs=["layer", "features"]),
    )
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
    same = train_head(
        cache,
        head=LinearOptions(l2=penalty, block_scales=[1.0, 1.0]),
        options=TrainOptions(outputs=["layer", "features"]),
    )
    assert np.array_equal(
        same.head.weight,
        train_head(
            cache, head=LinearOptions(l2=penalty), options=TrainOptions(outputs=["layer", "features"])
        ).head.weight,
    )
    auto = train_head(
        cache, head=LinearOptions(l2=penalty, block_scales="auto"), options=TrainOptions(outputs=["layer", "features"])
    )
    by_width = train_head(
        cache,
        head=LinearOptions(l2=penalty, block_scales=[4**0.25, 1.0]),
        options=TrainOptions(outputs=["layer", "features"]),
    )
    assert np.allclose(auto.head.weight, by_width.head.weight, atol=1e-5)
    assert auto.settings["block_scales"] == "auto"
    refuse(cache, "one number per output", head=LinearOptions(l2=1.0, block_scales=[1.0, 2.0]))


def test_class_weights_count_rows_as_that_many():
    cache = blobs(spread=2.5)
    samples = cache.samples()
    dropped = np.flatnonzero((samples.labels == 0) & (samples.splits == 0))[::2]
    samples.splits[dropped] = 2
    balanced = train_head(cache, head=LinearOptions(l2=0.05, class_weight="balanced"))
    plain = train_head(cache, head=LinearOptions(l2=0.05))
    x = cache.gather(cache.select(split="test").rows)
    assert balanced.head.predict_proba(x)[:, 0].mean() > plain.head.predict_proba(x)[:, 0].mean() + 0.01
