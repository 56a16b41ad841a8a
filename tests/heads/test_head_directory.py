"""The directory form of a head: nothing lost, nothing half written, every damage noticed in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from head_examples import WIDTH, make_head

from featcache.errors import CorruptError, ExistsError, FormatError, MissingError
from featcache.heads import KINDS, Head, load_fit, load_head, save_head


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
    document = json.loads((path / "head.json").read_text(encoding="utf-8"))
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
