"""Exported files: their tensors, their determinism, and that a file which does other things is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export_models import small_model
from onnx import numpy_helper

from featcache.bundle.comparison import compare_with_reference
from featcache.errors import InputError, VerificationError
from featcache.formats.registry import find_target
from featcache.graph.write import write_onnx
from featcache.model.merged import MergedModel
from featcache.model.quantization import Quantization, QuantParams, along_axis
from featcache.model.widths import resize_layers


@pytest.fixture(scope="module")
def model() -> MergedModel:
    return small_model()


def pixels(count: int, model: MergedModel, *, seed: int = 0) -> np.ndarray:
    shape = (count, model.preprocessing.height, model.preprocessing.width, 3)
    return np.random.default_rng(seed).integers(0, 256, size=shape, dtype=np.uint8)


def logits_of(model: MergedModel, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(images))[0].numpy()


def test_onnx_has_the_promised_tensors(model: MergedModel, tmp_path: Path) -> None:
    graph = onnx.load(write_onnx(model, tmp_path / "model.onnx"))
    assert {entry.domain: entry.version for entry in graph.opset_import} == {"": 18}
    (image,) = graph.graph.input
    shape = [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim]
    assert (image.name, image.type.tensor_type.elem_type) == ("image", onnx.TensorProto.UINT8)
    assert shape == ["N", model.preprocessing.height, model.preprocessing.width, 3]
    outputs = {value.name: value.type.tensor_type for value in graph.graph.output}
    assert list(outputs) == ["logits", "probabilities"]
    for tensor in outputs.values():
        assert tensor.elem_type == onnx.TensorProto.FLOAT
        assert [dim.dim_param or dim.dim_value for dim in tensor.shape.dim] == ["N", 2]
    assert {entry.key for entry in graph.metadata_props} == {"labels", "preprocessing"}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_onnx_gives_torchs_logits_for_any_batch(model: MergedModel, tmp_path: Path, count: int) -> None:
    session = onnxruntime.InferenceSession(write_onnx(model, tmp_path / "model.onnx"))
    images = pixels(count, model)
    logits, probabilities = session.run(None, {"image": images})
    expected = logits_of(model, images)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    np.testing.assert_allclose(probabilities, torch.softmax(torch.from_numpy(expected), 1).numpy(), atol=1e-5)


def test_batch_norms_are_folded_and_names_follow_the_modules(model: MergedModel, tmp_path: Path) -> None:
    graph = onnx.load(write_onnx(model, tmp_path / "model.onnx")).graph
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    names = {tensor.name for tensor in graph.initializer} | {node.name for node in graph.node}
    assert {"backbone.network.conv_stem.weight", "backbone.network.conv_stem/Conv", "head/Gemm"} <= names
    assert not [name for name in names if "onnx::" in name or name.isdigit()]
    assert len({node.name for node in graph.node}) == len(graph.node)


def test_equal_models_give_equal_bytes_without_paths(model: MergedModel, tmp_path: Path) -> None:
    first = write_onnx(model, tmp_path / "a.onnx").read_bytes()
    second = write_onnx(small_model(), tmp_path / "deeper-b.onnx").read_bytes()
    assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest()
    assert b"site-packages" not in first
    assert b".py" not in first
    assert str(tmp_path).encode() not in first


def test_writing_warns_of_nothing(model: MergedModel, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_onnx(model, tmp_path / "model.onnx")


def test_features_can_be_the_only_output(model: MergedModel, tmp_path: Path) -> None:
    session = onnxruntime.InferenceSession(write_onnx(model, tmp_path / "features.onnx", outputs=("features",)))
    images = pixels(3, model)
    (features,) = session.run(None, {"image": images})
    with torch.inference_mode():
        expected = model.features(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(features, expected, atol=1e-4 * max(1.0, float(np.abs(expected).max())))
    np.testing.assert_allclose(model.fitted_head.predict_logits(features), logits_of(model, images), atol=1e-3)


def quantization_of(model: MergedModel, path: Path) -> Quantization:
    """Return stored scales for one convolution of `model`: its input, output and weight."""
    graph = onnx.load(write_onnx(model, path)).graph
    node = next(node for node in graph.node if node.name == "backbone.network.conv_stem/Conv")
    weight = numpy_helper.to_array(next(t for t in graph.initializer if t.name == node.input[1]))
    scale = np.maximum(np.abs(weight).max(axis=(1, 2, 3)), 1e-6) / 127
    activation = QuantParams((0.05,), (128,), "uint8", None)
    return Quantization(
        (node.name,),
        {node.input[0]: activation, node.output[0]: activation},
        {node.input[1]: along_axis(scale.tolist(), axis=0)},
    )


def test_stored_scales_become_quantized_nodes(model: MergedModel, tmp_path: Path) -> None:
    quantized = model.copy(quantization=quantization_of(model, tmp_path / "float.onnx"))
    path = write_onnx(quantized, tmp_path / "int8.onnx")
    assert write_onnx(quantized, tmp_path / "again.onnx").read_bytes() == path.read_bytes()
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("QuantizeLinear") == 2
    images = pixels(3, model)
    logits = onnxruntime.InferenceSession(path).run(["logits"], {"image": images})[0]
    difference = np.abs(logits - logits_of(model, images)).max()
    assert 0 < difference < 0.5, "rounding must be there, and small"
    features = onnx.load(write_onnx(quantized, tmp_path / "features.onnx", outputs=("features",)))
    assert [node.op_type for node in features.graph.node].count("QuantizeLinear") == 2
    plain = write_onnx(quantized, tmp_path / "plain.onnx", quantized=False)
    assert plain.read_bytes() == (tmp_path / "float.onnx").read_bytes()


def test_equal_weights_of_two_layers_stay_two_tensors(tmp_path: Path) -> None:
    model = small_model()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.bias.zero_()
            module.running_mean.zero_()
    graph = onnx.load(write_onnx(model, tmp_path / "model.onnx")).graph
    names = [name for node in graph.node if node.op_type == "Conv" for name in node.input[1:]]
    assert len(names) == len(set(names))


def test_pruned_widths_export(tmp_path: Path) -> None:
    model = small_model()
    stem = model.backbone.network.conv_head if hasattr(model.backbone.network, "conv_head") else None
    assert stem is not None
    width = stem.out_channels
    resize_layers(
        model.backbone.network,
        {
            "conv_head": {"in": stem.in_channels, "out": width - 3, "groups": 1},
            "bn2": {"out": width - 3},
        },
    )
    torch.nn.init.normal_(stem.weight, generator=torch.Generator().manual_seed(0))
    torch.nn.init.ones_(model.backbone.network.bn2.weight)
    head = dataclasses.replace(model.fitted_head, weight=np.ascontiguousarray(model.fitted_head.weight[:, : width - 3]))
    pruned = model.with_head(head)
    session = onnxruntime.InferenceSession(write_onnx(pruned, tmp_path / "pruned.onnx"))
    images = pixels(3, pruned)
    expected = logits_of(pruned, images)
    np.testing.assert_allclose(session.run(["logits"], {"image": images})[0], expected, atol=1e-4, rtol=1e-5)


def test_unknown_outputs_are_refused(model: MergedModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="outputs must be among"):
        write_onnx(model, tmp_path / "model.onnx", outputs=("embedding",))
    assert not list(tmp_path.iterdir())


def test_a_vision_transformer_exports_for_any_batch(tmp_path: Path) -> None:
    model = small_model(name="test_vit")
    session = onnxruntime.InferenceSession(write_onnx(model, tmp_path / "vit.onnx"))
    for count in (1, 3):
        images = pixels(count, model)
        np.testing.assert_allclose(session.run(["logits"], {"image": images})[0], logits_of(model, images), atol=1e-4)


def test_unknown_format_names_those_there_are() -> None:
    with pytest.raises(InputError, match=r"onnx, openvino.*'tarball'"):
        find_target("tarball")


def test_comparison_refuses_what_differs() -> None:
    reference = np.random.default_rng(0).standard_normal((400, 5)).astype(np.float32)
    found = compare_with_reference("x", reference, reference + 5e-5, quantized=False, task="classification")
    assert (found.max_abs_diff < 1e-4, found.changed, found.agreement) == (True, 0, 1.0)
    with pytest.raises(VerificationError, match=r"within 0\.0001"):
        compare_with_reference("x", reference, reference + 2e-4, quantized=False, task="classification")
    swapped = reference.copy()
    swapped[:20] = -swapped[:20]
    with pytest.raises(VerificationError, match="98"):
        compare_with_reference("x", reference, swapped, quantized=True, task="classification")
    swapped[6:] = reference[6:]
    found = compare_with_reference("x", reference, swapped, quantized=True, task="classification")
    assert (found.changed, found.agreement, found.tolerance) == (6, 1 - 6 / 400, None)
    with pytest.raises(VerificationError, match="finite"):
        compare_with_reference("x", reference, np.full_like(reference, np.nan), quantized=True, task="classification")


def test_few_images_refuse_an_int8_file_only_where_chance_does_not_explain_it() -> None:
    """A file that agrees on 98.9 % differs on two of 16 golden images in one of 70 cases, on three in one of 1,500."""
    reference = np.random.default_rng(0).standard_normal((16, 5)).astype(np.float32)
    swapped = reference.copy()
    swapped[:2] = -swapped[:2]
    found = compare_with_reference("x", reference, swapped, quantized=True, task="classification")
    assert (found.changed, found.agreement) == (2, None)
    swapped[2] = -swapped[2]
    with pytest.raises(VerificationError, match="3 of 16"):
        compare_with_reference("x", reference, swapped, quantized=True, task="classification")
    with pytest.raises(VerificationError):
        compare_with_reference("x", reference, swapped, quantized=False, task="classification")


def test_agreement_of_few_images_is_not_claimed() -> None:
    reference = np.eye(5, dtype=np.float32)
    found = compare_with_reference("x", reference, reference, quantized=False, task="classification")
    assert (found.max_abs_diff, found.changed, found.agreement) == (0.0, 0, None)
