"""TensorFlow Lite: the flatbuffer that is written for it, run in LiteRT's interpreter."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export_models import (
    LABELS,
    facts_of,
    hard_graph,
    logits_of,
    pixels,
    pruned,
    quantized,
    saved_model,
    small_model,
    stirred,
)
from onnx import helper, numpy_helper

from featcache.bundle.exporting import export
from featcache.errors import DependencyError, VerificationError
from featcache.formats.interface import Target
from featcache.formats.onnx import open_unoptimised
from featcache.formats.registry import find_target
from featcache.formats.status import list_targets
from featcache.formats.tflite.graph import Scale, TfliteGraph
from featcache.formats.tflite.operations import convert_graph
from featcache.formats.tflite.target import open_plain
from featcache.graph.passes import write_single
from featcache.graph.write import write_onnx
from featcache.model.merged import MergedModel
from featcache.model.widths import resize_layers
from featcache.runtime import open_bundle

BACKBONES = ["test_efficientnet", "test_resnet", "test_vit", "test_convnext", "mobilenetv3_small_050"]
OUTPUTS = ("logits", "probabilities")


def installed() -> Target:
    target = find_target("tflite")
    reason = target.available()
    if reason is not None:
        pytest.skip(f"tflite: {reason}; {target.needs}")
    return target


def made(model: MergedModel, folder: Path) -> tuple[Target, Path, Path]:
    """Return the target, the ONNX file and the file made of it."""
    target = installed()
    graph = write_onnx(model, folder / "graph.onnx")
    (file,) = target.convert(graph, folder, facts=facts_of(model)).files
    return target, graph, file


def graph_of(model: MergedModel, folder: Path) -> tuple[onnx.ModelProto, TfliteGraph]:
    """Return the ONNX graph for one image, and what is written of it. It needs no runtime."""
    single = onnx.load(write_single(write_onnx(model, folder / "graph.onnx"), folder / "single.onnx"))
    return single, convert_graph(single, outputs=OUTPUTS)


def read(file: Path) -> Any:
    """Return the file's tables as objects of the schema's classes."""
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(file.read_bytes(), 0))


# --- what it computes -----------------------------------------------------------------------------------------------


@pytest.mark.target
@pytest.mark.parametrize("name", BACKBONES)
def test_float_models_give_torchs_logits(tmp_path: Path, name: str) -> None:
    model = stirred(name)
    target, _, file = made(model, tmp_path)
    images = pixels(2, model)
    with target.open((file,), threads=2) as runner:
        np.testing.assert_allclose(runner.run(images), logits_of(model, images), atol=1e-4)
        assert min(runner.time(images[:1], seconds=0.01, least=3)) > 0
    with open_plain(file, threads=1) as runner:
        np.testing.assert_allclose(runner.run(images), logits_of(model, images), atol=1e-4)


@pytest.mark.target
@pytest.mark.parametrize("name", BACKBONES)
def test_quantized_models_give_what_their_stored_scales_say(tmp_path: Path, name: str) -> None:
    plain = stirred(name)
    model = quantized(plain, tmp_path)
    target, graph, file = made(model, tmp_path)
    images = pixels(16, model)
    with open_unoptimised(graph, threads=1) as reference:
        expected = reference.run(images)
    rounding = np.abs(expected - logits_of(plain, images)).mean()
    assert rounding > 0
    for runner in (target.open((file,), threads=1), open_plain(file, threads=1)):
        with runner:
            # integer kernels round a half otherwise: in some images a value by one, which moves later ones; which
            # images these are hangs on the processor's float32 sums, so many are looked at together
            difference = np.abs(runner.run(images) - expected)
            assert difference.mean() <= rounding
    assert file.stat().st_size < 1.1 * graph.stat().st_size


@pytest.mark.target
def test_pruned_models_too(tmp_path: Path) -> None:
    model = pruned(stirred())
    target, _, file = made(model, tmp_path)
    images = pixels(2, model)
    with target.open((file,), threads=1) as runner:
        np.testing.assert_allclose(runner.run(images), logits_of(model, images), atol=1e-4)


@pytest.mark.target
def test_pruned_widths_too(tmp_path: Path) -> None:
    model = small_model()
    network = model.backbone.network
    width = network.conv_head.out_channels - 3
    resize_layers(
        network,
        {"conv_head": {"in": network.conv_head.in_channels, "out": width, "groups": 1}, "bn2": {"out": width}},
    )
    torch.nn.init.normal_(network.conv_head.weight, generator=torch.Generator().manual_seed(0))
    torch.nn.init.ones_(network.bn2.weight)
    head = dataclasses.replace(model.fitted_head, weight=np.ascontiguousarray(model.fitted_head.weight[:, :width]))
    narrow = model.with_head(head)
    target, _, file = made(narrow, tmp_path)
    images = pixels(2, narrow)
    with target.open((file,), threads=1) as runner:
        np.testing.assert_allclose(runner.run(images), logits_of(narrow, images), atol=1e-4)


@pytest.mark.target
def test_unusual_forms_of_operations_compute_what_onnx_says(tmp_path: Path) -> None:
    target = installed()
    onnx.save(hard_graph(), tmp_path / "hard.onnx")
    image = np.random.default_rng(1).integers(0, 256, size=(1, 14, 17, 3), dtype=np.uint8)
    (expected,) = onnxruntime.InferenceSession(tmp_path / "hard.onnx").run(["logits"], {"image": image})
    files = target.convert(tmp_path / "hard.onnx", tmp_path, facts=facts_of(small_model())).files
    for runner in (target.open(files, threads=1), open_plain(files[0], threads=1)):
        with runner:
            np.testing.assert_allclose(runner.run(image), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.target
def test_padding_of_tensorflow_is_its_own_and_of_torch_is_written_out(tmp_path: Path) -> None:
    for pad_type, pads in (("same", 0), ("", 1)):
        model = small_model(pad_type=pad_type) if pad_type else small_model()
        target, _, file = made(model, tmp_path)
        graph = graph_of(model, tmp_path)[1]
        found = Counter(operator.kind for operator in graph.operators)
        assert (found["PAD"] > 0) == bool(pads)
        assert found["TRANSPOSE"] == 0, "a convolutional network is written channels last"
        images = pixels(2, model)
        with target.open((file,), threads=1) as runner:
            np.testing.assert_allclose(runner.run(images), logits_of(model, images), atol=1e-4)


# --- integers -------------------------------------------------------------------------------------------------------


def test_what_onnx_computes_in_integers_is_computed_in_integers(tmp_path: Path) -> None:
    model = quantized(stirred("test_resnet"), tmp_path)
    proto, graph = graph_of(model, tmp_path)
    assert model.quantization is not None
    tensors = graph.tensors
    convolutions = [operator for operator in graph.operators if operator.kind == "CONV_2D"]
    assert len(convolutions) == sum(node.op_type == "Conv" for node in proto.graph.node)
    for operator in convolutions:
        source, weight, bias = (tensors[name] for name in operator.inputs)
        output = tensors[operator.output]
        assert [tensor.dtype for tensor in (source, weight, bias, output)] == ["int8", "int8", "int32", "int8"]
        assert source.scale is not None
        assert weight.scale is not None
        assert bias.scale is not None
        assert (weight.scale.axis, len(weight.scale.values)) == (0, weight.shape[0])
        assert weight.scale.zero_point == bias.scale.zero_point == 0
        product = np.float32(source.scale.values[0]) * np.array(weight.scale.values, dtype=np.float32)
        np.testing.assert_array_equal(np.array(bias.scale.values, dtype=np.float32), product)
    assert any(tensors[operator.output].dtype == "int8" for operator in graph.operators if operator.kind == "ADD")
    # the scales are the stored ones; 128 less of what was unsigned
    wanted = {
        Scale((float(np.float32(params.scale[0])),), params.zero_point[0] - (0 if params.dtype == "int8" else 128))
        for params in model.quantization.activations.values()
    }
    assert {t.scale for t in tensors.values() if t.dtype == "int8" and t.values is None} <= wanted
    integers = [value for value in map(numpy_helper.to_array, proto.graph.initializer) if value.dtype == np.int8]
    weights = [t.values for t in tensors.values() if t.dtype == "int8" and t.values is not None]
    assert sorted(np.abs(w.astype(int)).sum() for w in integers if w.ndim > 1) == sorted(
        np.abs(w.astype(int)).sum() for w in weights
    )
    # a model that was not quantized has no integers but its image and the places of axes
    floats = graph_of(stirred("test_resnet"), tmp_path)[1]
    assert {t.dtype for t in floats.tensors.values()} == {"uint8", "float32", "int32"}


def test_rows_are_multiplied_as_integers_of_their_stored_range(tmp_path: Path) -> None:
    model = quantized(stirred("test_vit"), tmp_path)
    proto, graph = graph_of(model, tmp_path)
    makers = {operator.output: operator for operator in graph.operators}
    products = [operator for operator in graph.operators if operator.kind == "FULLY_CONNECTED"]
    rows = [operator for operator in products if graph.tensors[operator.inputs[1]].dtype == "int8"]
    stored = {tensor.name for tensor in proto.graph.initializer}
    dequantized = {node.output[0] for node in proto.graph.node if node.input[0] in stored}
    assert len(rows) == sum(n.op_type == "MatMul" and n.input[1] in dequantized for n in proto.graph.node) > 0
    for operator in rows:
        dequantize = makers[operator.inputs[0]]
        joined = makers[dequantize.inputs[0]]
        assert (dequantize.kind, joined.kind) == ("DEQUANTIZE", "CONCATENATION")
        ends = graph.tensors[joined.inputs[1]]
        assert ends.values is not None
        assert np.unique(ends.values).tolist() == [-128, 127]
        assert {graph.tensors[name].scale for name in (*joined.inputs, joined.output)} == {ends.scale}
        weight = graph.tensors[operator.inputs[1]].values
        assert weight is not None
        assert not weight[:, -2:].any()


@pytest.mark.target
def test_an_int8_file_is_about_a_quarter_of_the_float_one(tmp_path: Path) -> None:
    plain = stirred("mobilenetv3_small_050")
    sizes = []
    for name, model in (("float", plain), ("int8", quantized(plain, tmp_path))):
        (tmp_path / name).mkdir()
        sizes.append(made(model, tmp_path / name)[2].stat().st_size)
    assert sizes[1] < 0.32 * sizes[0]


# --- what the file says ---------------------------------------------------------------------------------------------


@pytest.mark.target
def test_the_file_says_what_goes_in_and_what_comes_out(tmp_path: Path) -> None:
    model = quantized(small_model(classes=LABELS), tmp_path)
    target, graph, file = made(model, tmp_path)
    data, tables = file.read_bytes(), read(file)
    assert data[4:8] == b"TFL3"
    (part,), (signature,) = tables.subgraphs, tables.signatureDefs
    ends = [(part.tensors[place].name, part.tensors[place].shape.tolist()) for place in (*part.inputs, *part.outputs)]
    size = model.preprocessing
    assert ends == [(b"image", [1, size.height, size.width, 3]), (b"logits", [1, 3]), (b"probabilities", [1, 3])]
    assert [entry.name for entry in (*signature.inputs, *signature.outputs)] == [name for name, _ in ends]
    (metadata,) = tables.metadata
    assert metadata.name == b"TFLITE_METADATA"
    described = bytes(tables.buffers[metadata.buffer].data)
    assert described[4:8] == b"M001"
    assert b"labels.txt" in described
    with zipfile.ZipFile(io.BytesIO(data)) as attached:
        assert attached.read("labels.txt").decode().splitlines() == list(LABELS)
    (tmp_path / "again").mkdir()
    assert target.convert(graph, tmp_path / "again", facts=facts_of(model)).files[0].read_bytes() == data
    assert str(tmp_path).encode() not in data


@pytest.mark.target
def test_operators_state_the_version_that_they_need_and_data_is_aligned(tmp_path: Path) -> None:
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    file = made(quantized(stirred(), tmp_path), tmp_path)[2]
    kinds = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    found = {(kinds[code.builtinCode], code.version) for code in read(file).operatorCodes}
    assert {("CONV_2D", 3), ("DEPTHWISE_CONV_2D", 3), ("QUANTIZE", 1), ("DEQUANTIZE", 2), ("MEAN", 1)} <= found
    model = schema.Model.GetRootAs(file.read_bytes(), 0)
    tables = [model.Buffers(place) for place in range(model.BuffersLength())]
    begins = [table._tab.Vector(table._tab.Offset(4)) for table in tables if table.DataLength()]
    assert begins
    assert not any(begin % 16 for begin in begins)


@pytest.mark.target
def test_an_exported_bundle_is_run_and_a_changed_weight_is_noticed(tmp_path: Path) -> None:
    installed()
    model = saved_model(tmp_path / "model", model=quantized(stirred(), tmp_path), golden=False)
    report = export(model, out=tmp_path / "bundle", formats=("tflite",))
    entry = report.formats["tflite"].to_json()
    assert (entry["executed"], entry["reason"], entry["computed_by"]) == (True, None, None)
    assert entry["runtime"].startswith("ai-edge-litert 2.")
    assert entry["latency_ms"]["median"] > 0
    stated = json.loads((tmp_path / "bundle" / "preprocess.json").read_text(encoding="utf-8"))
    assert "int8 with the stored scales" in json.dumps(stated)
    opened = open_bundle(tmp_path / "bundle")
    images = pixels(1, small_model())
    with opened.open("tflite") as runner:
        whole = runner.run(images)
    (file,) = opened.files("tflite")
    data = bytearray(file.read_bytes())
    middle = len(data) // 32 * 16
    data[middle : middle + 400] = bytes([100]) * 400
    file.write_bytes(data)
    with find_target("tflite").open((file,), threads=1) as runner:
        assert np.abs(runner.run(images) - whole).max() > 1e-4


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "named"),
    [
        ("test_efficientnet", "Sinh", "operations without a TensorFlow Lite form: Sinh"),
        ("test_efficientnet", "weight", "Conv other than"),
        ("test_vit", "erf", "Erf outside of GELU"),
    ],
)
def test_what_cannot_be_held_is_named(tmp_path: Path, name: str, kind: str, named: str) -> None:
    graph = write_onnx(small_model(name=name), tmp_path / "graph.onnx")
    proto = onnx.load(write_single(graph, tmp_path / "single.onnx"))
    conv = next(node for node in proto.graph.node if node.op_type == "Conv")
    if kind == "Sinh":
        conv.op_type = kind
    elif kind == "weight":
        conv.input[1] = conv.input[0]
    else:
        erf = next(node for node in proto.graph.node if node.op_type == "Erf")
        before = next(node for node in proto.graph.node if node.output[0] == erf.input[0])
        proto.graph.initializer.append(numpy_helper.from_array(np.float32(3), "three"))
        before.input[1] = "three"
    with pytest.raises(NotImplementedError, match=named):
        convert_graph(proto, outputs=OUTPUTS)


@pytest.mark.parametrize("halved", ["first", "last", "inside"])
def test_gelu_is_found_however_its_parts_are_multiplied(halved: str) -> None:
    before = {"first": [("Mul", ["x", "half"], ["h"]), ("Mul", ["h", "above"], ["y"])],
              "last": [("Mul", ["x", "above"], ["p"]), ("Mul", ["p", "half"], ["y"])],
              "inside": [("Mul", ["above", "x"], ["p"]), ("Mul", ["p", "half"], ["y"])]}[halved]  # fmt: skip
    nodes = [
        ("Cast", ["image"], ["f"]), ("Flatten", ["f"], ["x"]), ("Div", ["x", "root"], ["d"]), ("Erf", ["d"], ["e"]),
        ("Add", ["e", "one"], ["above"]), *before, ("Identity", ["y"], ["logits"]),
        ("Softmax", ["logits"], ["probabilities"]),
    ]  # fmt: skip
    constants = {"root": np.sqrt(2), "one": 1, "half": 0.5}
    graph = helper.make_graph(
        [helper.make_node(kind, i, o, **({"to": 1} if kind == "Cast" else {})) for kind, i, o in nodes], "gelu",
        [helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, [1, 2, 2, 3])],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in OUTPUTS],
        [numpy_helper.from_array(np.float32(value), name) for name, value in constants.items()],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    found = convert_graph(onnx.shape_inference.infer_shapes(proto), outputs=OUTPUTS)
    assert [operator.kind for operator in found.operators] == ["CAST", "RESHAPE", "GELU", "SOFTMAX"]


def test_a_shape_that_is_not_fixed_is_named(tmp_path: Path) -> None:
    proto = onnx.load(write_onnx(small_model(), tmp_path / "graph.onnx"))
    with pytest.raises(VerificationError, match=r"shape of '.*' must be known"):
        convert_graph(proto, outputs=OUTPUTS)


@pytest.mark.target
def test_a_file_that_is_none_is_one_line(tmp_path: Path) -> None:
    target = installed()
    (tmp_path / "model.tflite").write_bytes(b"broken" * 100)
    with pytest.raises(VerificationError, match=r"LiteRT must load 'model.tflite'"):
        target.open((tmp_path / "model.tflite",), threads=1)


def test_what_is_missing_is_said_and_nothing_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "ai_edge_litert" else found(name, *rest)
    )
    (status,) = [status for status in list_targets() if status.name == "tflite"]
    assert (status.kind, status.version, status.missing) == (
        "extra",
        None,
        "the package ai-edge-litert is not installed",
    )
    with pytest.raises(DependencyError, match=r"'tflite'.*not installed.*featcache targets install tflite"):
        export(saved_model(tmp_path / "model"), out=tmp_path / "bundle", formats=("onnx", "tflite"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
