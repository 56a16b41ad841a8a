"""Every kind of head: logits, probabilities, module form, directory form, and the figures fitted beside it."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.errors import CorruptError, ExistsError, FormatError, InputError, MissingError
from featcache.heads import KINDS, Head, LinearHead, head_class, load_fit, load_head, save_head
from featcache.heads.base import sigmoid, softmax
from featcache.heads.calibration import (
    Calibration,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
)
from featcache.heads.knn import NeighborsHead, unit_rows
from featcache.heads.mlp import MlpHead
from featcache.heads.prototype import PrototypeHead, fit_prototypes
from featcache.heads.unknown import SCORES, UnknownRule, area_under_roc, fit_unknown_rule, known_score

CLASSES = ("cat", "dog", "ütf ☃")
WIDTH = 7


def make_head(kind: str) -> Head:
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
        rows=unit_rows(features, center).astype(np.float16), labels=labels, center=center, neighbors=4, **common
    )


@pytest.fixture(params=KINDS)
def head(request) -> Head:
    return make_head(request.param)


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(11, WIDTH)).astype(np.float32)


def test_a_saved_head_comes_back_with_every_field_and_the_same_logits(head, rows, tmp_path):
    save_head(head, tmp_path / "head", fit={"kind": head.kind, "val_accuracy": None})
    loaded = load_head(tmp_path / "head")
    assert type(loaded) is type(head)
    for name in ("classes", "task", "columns", "fingerprint", "settings", "calibration", "unknown"):
        assert getattr(loaded, name) == getattr(head, name)
    assert np.array_equal(loaded.predict_logits(rows), head.predict_logits(rows))
    assert load_fit(tmp_path / "head") == {"kind": head.kind, "val_accuracy": None}


def test_equal_heads_are_equal_bytes(head, tmp_path):
    save_head(head, tmp_path / "a")
    save_head(head, tmp_path / "b")
    for name in ("head.json", "head.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_probabilities_sum_to_one_and_follow_the_logits(head, rows):
    probabilities = head.predict_proba(rows)
    assert probabilities.dtype == np.float32
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert np.array_equal(probabilities.argmax(axis=1), head.predict(rows))


def test_the_module_gives_the_same_logits(head, rows):
    if head.kind == "knn":
        with pytest.raises(InputError, match=r"knn.*every training row"):
            head.to_module()
        return
    import torch

    with torch.inference_mode():
        given = head.to_module()(torch.from_numpy(rows)).numpy()
    assert np.abs(given - head.predict_logits(rows)).max() < 1e-5


def test_a_temperature_divides_the_logits(head, rows):
    cooled = head.with_temperature(2.5)
    assert np.allclose(cooled.predict_logits(rows) * 2.5, head.predict_logits(rows), atol=1e-4)


def test_rows_of_another_width_are_refused(head):
    with pytest.raises(InputError, match=r"shape \(n, 7\).*\(4, 6\)"):
        head.predict_logits(np.zeros((4, 6), dtype=np.float32))


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


def test_neighbours_vote_as_counted_by_hand(rows):
    head = make_head("knn")
    known = head.rows.astype(np.float32)
    queries = unit_rows(rows, head.center)
    for query, logits in zip(queries, head.predict_logits(rows), strict=True):
        similarity = known @ query
        nearest = np.argsort(-similarity, kind="stable")[: head.neighbors]
        votes = np.zeros(3)
        for i in nearest:
            votes[head.labels[i]] += np.exp(head.sharpness * similarity[i])
        assert np.allclose(logits, np.log(votes / votes.sum() + 1e-6), atol=1e-4)


def test_an_existing_directory_is_kept_unless_overwriting_is_asked_for(tmp_path):
    save_head(make_head("linear"), tmp_path / "head")
    with pytest.raises(ExistsError, match="--overwrite"):
        save_head(make_head("mlp"), tmp_path / "head")
    assert load_head(tmp_path / "head").kind == "linear"
    save_head(make_head("mlp"), tmp_path / "head", overwrite=True)
    assert load_head(tmp_path / "head").kind == "mlp"
    assert [path.name for path in tmp_path.iterdir()] == ["head"]


def test_a_failed_save_leaves_nothing_behind(tmp_path):
    head = make_head("linear")
    with pytest.raises(ValueError, match="JSON"):
        save_head(head, tmp_path / "head", fit={"gap": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["head.json", "head.safetensors"])
def test_any_truncation_is_noticed(name, tmp_path):
    path = save_head(make_head("prototype"), tmp_path / "head")
    whole = (path / name).read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 40)):
        (path / name).write_bytes(whole[:length])
        with pytest.raises((CorruptError, FormatError)) as caught:
            load_head(path)
        assert "\n" not in str(caught.value)


def test_a_changed_weight_is_noticed(tmp_path):
    path = save_head(make_head("linear"), tmp_path / "head")
    data = bytearray((path / "head.safetensors").read_bytes())
    data[-3] ^= 1
    (path / "head.safetensors").write_bytes(bytes(data))
    with pytest.raises(CorruptError, match="sha256"):
        load_head(path)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"format": "other"}, FormatError),
        ({"version": 99}, FormatError),
        ({"kind": "forest"}, CorruptError),
        ({"classes": ["cat", "dog"]}, CorruptError),
        ({"classes": None}, CorruptError),
        ({"options": {"depth": 3}}, CorruptError),
        ({"arrays": {}}, CorruptError),
        ({"calibration": {"temperature": 1}}, CorruptError),
        ({"unknown": {"score": "energy"}}, CorruptError),
    ],
)
def test_a_tampered_document_is_one_line(change, error, tmp_path):
    path = save_head(make_head("linear"), tmp_path / "head")
    document = json.loads((path / "head.json").read_text())
    (path / "head.json").write_text(json.dumps({**document, **change}))
    with pytest.raises(error) as caught:
        load_head(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_head_says_so(tmp_path):
    with pytest.raises(MissingError, match="featcache train"):
        load_head(tmp_path / "nothing")
    path = save_head(make_head("linear"), tmp_path / "head")
    (path / "head.safetensors").unlink()
    with pytest.raises(MissingError, match=r"head\.safetensors"):
        load_head(path)


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


# --- calibration ---


def test_a_calibration_error_counted_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.45, 0.55]])
    labels = np.array([0, 1, 1, 0])
    # three bins hold something: 2 rows of 0.9 (half right), one of 0.7 (right), one of 0.55 (wrong)
    assert expected_calibration_error(probabilities, labels) == pytest.approx((2 * 0.4 + 0.3 + 0.55) / 4)


@given(scale=st.floats(0.1, 10), seed=st.integers(0, 50))
def test_the_fitted_temperature_undoes_a_scale(scale, seed):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(400, 5)) * 2
    labels = (logits + generator.gumbel(size=logits.shape)).argmax(axis=1)  # draws from their softmax
    base = fit_temperature(logits, labels)
    fitted = fit_temperature(logits * scale, labels)
    assert fitted == pytest.approx(base * scale, rel=1e-3)
    assert negative_log_likelihood(logits * scale, labels, fitted) <= negative_log_likelihood(logits * scale, labels)


def test_nothing_can_be_calibrated_on_no_images():
    with pytest.raises(InputError, match="held-out"):
        fit_temperature(np.empty((0, 3)), np.empty(0, dtype=np.int64))


# --- unknown ---


@pytest.mark.parametrize("score", SCORES)
def test_the_threshold_accepts_the_asked_share(score):
    logits = np.random.default_rng(0).normal(size=(200, 6)) * 3
    rule = fit_unknown_rule(logits, score=score, accept=0.9)
    assert rule.accepted == pytest.approx(0.9, abs=0.006)
    assert rule.is_unknown(logits).mean() == pytest.approx(0.1, abs=0.006)
    assert not fit_unknown_rule(logits, score=score, accept=1.0).is_unknown(logits).any()


@pytest.mark.parametrize("score", SCORES)
def test_a_confident_row_scores_above_an_undecided_one(score):
    undecided, confident = np.array([[0.1, 0.0, 0.0]]), np.array([[9.0, 0.0, 0.0]])
    assert known_score(confident, score=score) > known_score(undecided, score=score)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_the_area_is_the_share_of_ordered_pairs(known, unknown):
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in known for b in unknown]
    assert area_under_roc(np.array(known), np.array(unknown)) == pytest.approx(np.mean(pairs))


def test_a_rule_needs_a_known_score_and_images():
    with pytest.raises(InputError, match="score"):
        UnknownRule("entropy", 0, 1, 1)
    with pytest.raises(InputError, match="accept"):
        fit_unknown_rule(np.zeros((3, 2)), score="energy", accept=0)
    with pytest.raises(InputError, match="held-out"):
        fit_unknown_rule(np.zeros((0, 2)), score="energy", accept=0.9)


def test_heads_load_neither_torch_nor_scikit_learn():
    code = (
        "import sys, featcache.heads as h;"
        "[h.head_class(k) for k in h.KINDS];"
        "bad = {'torch', 'sklearn', 'timm', 'scipy'} & set(sys.modules);"
        "sys.exit(f'loaded {bad}' if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
