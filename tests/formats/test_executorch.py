"""INT8 models in ExecuTorch: which operations stay integers, and what its runtime makes of the stored scales."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from export_models import small_model
from onnx import numpy_helper

from featcache.compression.quantization import quantized_model
from featcache.formats.executorch.integers import keep_integers
from featcache.formats.interface import ModelFacts
from featcache.formats.onnx import open_unoptimised
from featcache.formats.registry import find_target
from featcache.graph.passes import write_single
from featcache.graph.write import write_onnx
from featcache.model.merged import MergedModel

CLASSES = tuple("abcdefghij")


@pytest.fixture(autouse=True)
def _installed_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for tools where the user installed them, not in the tests' private folder."""
    if "featcache-tests-home" in os.environ.get("FEATCACHE_HOME", ""):
        monkeypatch.delenv("FEATCACHE_HOME")


def pixels(count: int, model: MergedModel) -> np.ndarray:
    shape = (count, model.preprocessing.height, model.preprocessing.width, 3)
    return np.random.default_rng(1).integers(0, 256, size=shape, dtype=np.uint8)


def int8(name: str, **model_kwargs: object) -> MergedModel:
    model = small_model(classes=CLASSES, name=name, gain=0.1, **model_kwargs)
    return quantized_model(model, [pixels(4, model)])


def facts_of(model: MergedModel, *, quantized: bool = True) -> ModelFacts:
    return ModelFacts("small", model.classes, model.input, {}, quantized=quantized)


def logits_of(path: Path, images: np.ndarray) -> np.ndarray:
    with open_unoptimised(path, threads=1) as runner:
        return np.concatenate([runner.run(images[i : i + 1]) for i in range(len(images))])


def single_of(model: MergedModel, folder: Path) -> Path:
    return write_single(write_onnx(model, folder / "model.onnx"), folder / "single.onnx")


# --- the graph ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [pytest.param("test_resnet", {}, marks=pytest.mark.long), ("test_efficientnet", {"pad_type": "same"})],
)
def test_the_graph_with_integers_where_kernels_fit_computes_the_same(
    tmp_path: Path, name: str, kwargs: dict[str, object]
) -> None:
    model = int8(name, **kwargs)
    single = single_of(model, tmp_path)
    proto = onnx.load(single)
    share = keep_integers(proto)
    onnx.checker.check_model(proto)
    onnx.save(proto, tmp_path / "kept.onnx")
    images = pixels(3, model)
    before = logits_of(single, images)
    np.testing.assert_allclose(logits_of(tmp_path / "kept.onnx", images), before, atol=1e-5 * np.abs(before).max())
    assert model.quantization is not None
    stored = [node for node in model.quantization.nodes if node.endswith("/Conv")]
    assert share.operations == len(stored) > 10
    assert 0.9 * share.all_weights < share.weights < share.all_weights, "the first convolutions and the head are floats"


def test_every_reader_of_integers_dequantizes_for_itself_and_pads_integers(tmp_path: Path) -> None:
    proto = onnx.load(single_of(int8("test_efficientnet", pad_type="same"), tmp_path))
    keep_integers(proto)
    readers = Counter(name for node in proto.graph.node for name in node.input)
    made = {name: node for node in proto.graph.node for name in node.output}
    dequantized = [node for node in proto.graph.node if node.op_type == "DequantizeLinear"]
    assert dequantized
    # XNNPACK's partitions that share one would depend on each other: "found dependency cycles"
    assert all(readers[node.output[0]] == 1 for node in dequantized)
    padded = [node for node in proto.graph.node if node.op_type == "Pad" and made[node.input[0]] in dequantized]
    assert padded, "TensorFlow's padding is not the same on both sides"
    constants = {tensor.name for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Conv" and made.get(node.input[1]) in dequantized:
            attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
            pads = attributes.get("pads", [0, 0, 0, 0])
            assert pads[:2] == pads[2:]
            assert made[node.input[0]] in dequantized
            assert node.input[2] in constants


def test_weights_beside_the_integer_pattern_become_the_floats_they_stand_for(tmp_path: Path) -> None:
    proto = onnx.load(single_of(int8("test_vit"), tmp_path))
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    product = next(node for node in proto.graph.node if node.op_type == "MatMul" and "/dequantized" in node.input[1])
    name = product.input[1].removesuffix("/dequantized")
    share = keep_integers(proto)
    assert share.operations == 1, "the patches alone: products of vision transformers hand on floats"
    kept = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    floats = next(kept[node.input[1]] for node in proto.graph.node if node.output[0] == product.output[0])
    np.testing.assert_allclose(floats, stored[f"{name}/quantized"] * stored[f"{name}/scale"], rtol=1e-6)


# --- the runtime ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.target
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [("test_resnet", {}), pytest.param("test_efficientnet", {"pad_type": "same"}, marks=pytest.mark.long)],
)
def test_executorch_computes_the_stored_scales_in_integers(
    tmp_path: Path, name: str, kwargs: dict[str, object]
) -> None:
    target = find_target("executorch")
    reason = target.available()
    if reason is not None:
        pytest.skip(f"executorch: {reason}; {target.needs}")
    model = int8(name, **kwargs)
    converted = target.convert(write_onnx(model, tmp_path / "m.onnx"), tmp_path, facts=facts_of(model))
    (file,) = converted.files
    assert converted.takes_scales
    assert "INT8 with the stored scales" in str(converted.numbers)
    exact = write_onnx(model, tmp_path / "float.onnx", quantized=False)
    assert file.stat().st_size < 0.5 * exact.stat().st_size
    images = pixels(8, model)
    reference = logits_of(tmp_path / "m.onnx", images)
    with target.open([file], threads=1) as runner:
        found = runner.run(images)
    # kernels round sums to integers in one step, the reference in floats: a step of some activation here and there
    assert np.abs(found - reference).max() < 0.02 * np.abs(reference).max()
    of_floats = np.square(logits_of(exact, images) - reference).mean()
    assert np.square(found - reference).mean() < of_floats, "nearer than the model before its rounding"


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.target
def test_executorch_says_that_a_vision_transformer_stays_in_floats(tmp_path: Path) -> None:
    target = find_target("executorch")
    reason = target.available()
    if reason is not None:
        pytest.skip(f"executorch: {reason}; {target.needs}")
    model = int8("test_vit")
    converted = target.convert(write_onnx(model, tmp_path / "m.onnx"), tmp_path, facts=facts_of(model))
    assert str(converted.numbers).startswith("float32")
    assert "1 of 38 convolutions and matrix products" in str(converted.numbers)
    assert not converted.takes_scales
    images = pixels(4, model)
    reference = logits_of(tmp_path / "m.onnx", images)
    with target.open(converted.files, threads=1) as runner:
        assert (runner.run(images).argmax(axis=1) == reference.argmax(axis=1)).all()
    small = small_model()
    plain = target.convert(write_onnx(small, tmp_path / "m.onnx"), tmp_path, facts=facts_of(small, quantized=False))
    assert "numbers" not in plain.to_json()
