"""INT8 models in MindSpore Lite: which weights its files hold as the stored integers, and what its runtime computes."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from export_models import small_model

from featcache.compression.quantization import quantized_model
from featcache.errors import FormatError
from featcache.formats.interface import ModelFacts, Target
from featcache.formats.mindspore.lite import plan_integers, write_opset, write_pointwise
from featcache.formats.mindspore.ms_file import put_integers
from featcache.formats.onnx import open_unoptimised
from featcache.formats.registry import find_target
from featcache.graph.passes import write_single
from featcache.graph.write import write_onnx
from featcache.model.merged import MergedModel


@pytest.fixture(autouse=True)
def _installed_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for tools where the user installed them, not in the tests' private folder."""
    if "featcache-tests-home" in os.environ.get("FEATCACHE_HOME", ""):
        monkeypatch.delenv("FEATCACHE_HOME")


def pixels(count: int, model: MergedModel) -> np.ndarray:
    shape = (count, model.preprocessing.height, model.preprocessing.width, 3)
    return np.random.default_rng(1).integers(0, 256, size=shape, dtype=np.uint8)


def int8(name: str) -> MergedModel:
    model = small_model(classes=tuple("abcdefghij"), name=name, gain=0.1)
    return quantized_model(model, [pixels(4, model)])


def facts_of(model: MergedModel) -> ModelFacts:
    return ModelFacts("small", model.classes, model.input, {}, quantized=True)


def installed(name: str) -> Target:
    target = find_target(name)
    reason = target.available()
    if reason is not None:
        pytest.skip(f"{name}: {reason}; {target.needs}")
    return target


def logits_of(path: Path, images: np.ndarray) -> np.ndarray:
    with open_unoptimised(path, threads=1) as runner:
        return np.concatenate([runner.run(images[i : i + 1]) for i in range(len(images))])


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> tuple[MergedModel, Path]:
    model = int8("test_vit")
    return model, write_onnx(model, tmp_path_factory.mktemp("vit") / "model.onnx")


# --- the graph ------------------------------------------------------------------------------------------------------


def test_products_as_convolutions_of_one_pixel_compute_the_same(vit: tuple[MergedModel, Path], tmp_path: Path) -> None:
    model, path = vit
    single = write_single(path, tmp_path / "single.onnx")
    old = write_opset(single, tmp_path / "old.onnx")
    written = write_pointwise(old, tmp_path / "pointwise.onnx")
    onnx.checker.check_model(onnx.load(written))
    images = pixels(2, model)
    np.testing.assert_allclose(logits_of(written, images), logits_of(old, images), atol=1e-5)
    plan = plan_integers(single, written)
    head = model.fitted_head.arrays()["weight"].size
    assert plan.most_skipped == head, "patches and products have stored integers, this head has none"
    assert plan.share == 1 - head / plan.all_weights
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(written).graph.initializer}
    for name, weight in plan.weights.items():
        exact = weight.integers * weight.scales.reshape(-1, 1, 1, 1)
        np.testing.assert_allclose(exact, constants[name], rtol=1e-6)


def test_convolutions_of_more_pixels_are_not_openable_and_bound_what_is_stored(tmp_path: Path) -> None:
    single = write_single(write_onnx(int8("test_resnet"), tmp_path / "model.onnx"), tmp_path / "single.onnx")
    plan = plan_integers(single, write_pointwise(write_opset(single, tmp_path / "old.onnx"), tmp_path / "new.onnx"))
    assert plan.share < 0.5
    largest = max(np.prod(t.dims) for t in onnx.load(single).graph.initializer)
    assert plan.most_skipped == largest


# --- the file -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.target
def test_the_ms_file_holds_the_stored_integers_and_says_so(vit: tuple[MergedModel, Path], tmp_path: Path) -> None:
    target = installed("mslite")
    model, path = vit
    written = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        converted = target.convert(path, folder, facts=facts_of(model))
        written.append(converted.files[0])
    assert written[0].read_bytes() == written[1].read_bytes()
    assert str(converted.numbers).startswith("99 % of the weights are the stored INT8")
    old = write_opset(write_single(path, tmp_path / "single.onnx"), tmp_path / "old.onnx")  # as floats
    assert written[0].stat().st_size < 0.45 * old.stat().st_size
    images = pixels(3, model)
    with target.open(written[:1], threads=1) as runner:
        # the converter's own rounding moves them by more than a hundredth
        np.testing.assert_allclose(runner.run(images), logits_of(old, images), atol=1e-4)
    plan = plan_integers(tmp_path / "single.onnx", write_pointwise(old, tmp_path / "pointwise.onnx"))
    data = written[0].read_bytes()
    count = plan.all_weights - plan.most_skipped
    assert put_integers(data, plan.weights) == (data, count), "they are there already"
    first, *others = plan.weights
    changed = dataclasses.replace(plan.weights[first], scales=plan.weights[first].scales * 2)
    with pytest.raises(FormatError, match="changed them"):
        put_integers(data, {**plan.weights, first: changed})
    with pytest.raises(FormatError, match="is not"):
        put_integers(data, {name: plan.weights[name] for name in others})


@pytest.mark.slow
@pytest.mark.target
def test_mindspore_lite_says_what_stays_in_floats(vit: tuple[MergedModel, Path], tmp_path: Path) -> None:
    resnet = int8("test_resnet")
    images = pixels(2, resnet)
    path = write_onnx(resnet, tmp_path / "resnet.onnx")
    old = write_opset(write_single(path, tmp_path / "single.onnx"), tmp_path / "old.onnx")
    target = installed("mslite")
    converted = target.convert(path, tmp_path, facts=facts_of(resnet))
    numbers = str(converted.numbers)
    assert numbers.startswith("float32") and "larger than one pixel" in numbers
    with target.open(converted.files, threads=1) as runner:
        np.testing.assert_allclose(runner.run(images), logits_of(old, images), atol=1e-4)
    mindir = installed("mindir")
    assert str(mindir.convert(vit[1], tmp_path, facts=facts_of(vit[0])).numbers).startswith("float32")
