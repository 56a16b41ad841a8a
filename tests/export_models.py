"""Small real models and graphs for the tests of export, runtime and report: timm test networks with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from featcache.backbone.load import load_backbone
from featcache.compression.choosing import integer_nodes
from featcache.compression.ranges import affine_qparams
from featcache.formats.interface import ModelFacts
from featcache.graph.qdq import consumers_of, integer_output
from featcache.graph.write import write_onnx
from featcache.heads.linear import LinearHead
from featcache.model.directory import save_model
from featcache.model.golden import GOLDEN_COUNT, Golden
from featcache.model.merged import MergedModel
from featcache.model.quantization import Quantization, QuantParams, along_axis
from featcache.model.reference import logits_of_images
from featcache.recipe import Recipe

LABELS = ("cat", "dog, wet", "Öl/„x“")


def small_model(
    *,
    classes: tuple[str, ...] = ("cat", "dog"),
    name: str = "test_efficientnet",
    gain: float = 0.5,
    **model_kwargs: object,
) -> MergedModel:
    """Return a merged model on `name` with random weights, the same every time."""
    backbone = load_backbone(name, weights="random:0", model_kwargs=model_kwargs)
    recipe = Recipe(
        model=backbone.model_name,
        model_kwargs=dict(backbone.model_kwargs),
        model_digest=None,
        weights_sha256=backbone.weights_sha256,
        outputs=("features",),
        preprocessing=backbone.preprocessing,
        decoder="pillow",
        dct_scaling=False,
        orientation="exif",
        views=1,
        view_seed=0,
        engine="torch",
        engine_version="2",
        precision="fp32",
        dtype="float32",
        weights="random:0",
    )
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((len(classes), backbone.num_features)) * gain).astype(np.float32)
    head = LinearHead(classes=classes, weight=weight, bias=np.zeros(len(classes), dtype=np.float32))
    return MergedModel(backbone, head, recipe=recipe, lineage=[{"verb": "merge", "weights": "random:0"}])


def saved_model(path: Path, *, golden: bool = True, model: MergedModel | None = None) -> Path:
    """Write a small model at `path`, with golden samples of random colours."""
    made = model or small_model()
    samples = None
    if golden:
        images = made.input.synthetic(GOLDEN_COUNT)
        samples = Golden("synthetic", "torch fp32", images, logits_of_images(made, images))
    return save_model(made, path, golden=samples)


def facts_of(model: MergedModel) -> ModelFacts:
    return ModelFacts(
        "small", model.classes, model.input, {}, quantized=model.quantization is not None
    )  # fmt: skip


def pixels(count: int, model: MergedModel) -> np.ndarray:
    shape = (count, model.preprocessing.height, model.preprocessing.width, 3)
    return np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8)


def logits_of(model: MergedModel, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(images))[0].numpy()


def quantized(model: MergedModel, folder: Path) -> MergedModel:
    """Return `model` with scales stored for all that `quantize` computes in integers, the head included."""
    path = write_onnx(model, folder / "float.onnx")
    proto = onnx.load(path)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    consumers, outputs = consumers_of(proto.graph), {value.name for value in proto.graph.output}
    names = [*integer_nodes(proto, float_share=0.0), "head/Gemm"]
    tensors: set[str] = set()
    stored: dict[str, QuantParams] = {}
    for node in proto.graph.node:
        if node.name not in names:
            continue
        tensors.update(name for name in node.input[:2] if name not in weights)
        if node.op_type in ("Conv", "Add"):
            tensors.add(integer_output(node, consumers, outputs))
        if node.input[1] in weights:
            axis = 1 if node.op_type == "MatMul" else 0
            weight = weights[node.input[1]]
            others = tuple(other for other in range(weight.ndim) if other != axis)
            scale = np.maximum(np.abs(weight).max(axis=others), 1e-6) / 127
            stored[node.input[1]] = along_axis(scale.tolist(), axis=axis)
    proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    found = session.run(sorted(tensors), {"image": pixels(2, model)})
    activations = {
        name: affine_qparams(float(values.min()), float(values.max()))
        for name, values in zip(sorted(tensors), found, strict=True)
    }
    return model.copy(quantization=Quantization(tuple(names), activations, stored))


def stirred(name: str = "test_efficientnet") -> MergedModel:
    """Return a model on `name` whose biases are not zero, as a trained one's."""
    model, generator = small_model(name=name, classes=LABELS), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def pruned(model: MergedModel) -> MergedModel:
    """Return a copy of `model` in which half of each weight of the backbone is zero."""
    changed = model.copy()
    with torch.no_grad():
        for parameter in changed.backbone.parameters():
            parameter[parameter.abs() < parameter.abs().median()] = 0
    return changed


def hard_graph() -> onnx.ModelProto:
    """Return a graph with the forms of operations that timm's test networks do not have."""
    rng = np.random.default_rng(3)

    def numbers(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    constants = {
        "range": np.float32(255), "stem": numbers(6, 3, 3, 3), "grouped": numbers(12, 3, 3, 3), "bias": numbers(12),
        "low": np.float32(-1), "high": np.float32(2), "twice": numbers(24, 1, 3, 3),
        "pads": np.array([0, 0, 1, 0, 0, 0, 2, 1]), "starts": np.array([1, -9]), "ends": np.array([1000, -1]),
        "axes": np.array([3, 1]), "steps": np.array([2, 1]), "picked": np.array([3, -1, 0]), "mean": numbers(3),
        "gain": numbers(3), "shift": numbers(3), "variance": np.abs(numbers(3)) + 1, "two": np.array([2]),
        "second": np.array([1]), "parts": np.array([8, 7]), "channel": np.array(1), "all": np.array([1, -1]),
        "power": np.float32(2),
    }  # fmt: skip
    pool = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2], "ceil_mode": 1}
    nodes: list[tuple[str, list[str], list[str], dict[str, Any]]] = [
        ("Cast", ["image"], ["float"], {"to": TensorProto.FLOAT}),
        ("Transpose", ["float"], ["planar"], {"perm": [0, 3, 1, 2]}),
        ("Div", ["planar", "range"], ["small"], {}),
        ("Conv", ["small", "stem"], ["x"], {"pads": [0, 1, 2, 1], "strides": [1, 2]}),
        ("AveragePool", ["x"], ["inside"], pool),
        ("AveragePool", ["x"], ["with_edge"], {**pool, "count_include_pad": 1}),
        ("MaxPool", ["x"], ["most"], {"kernel_shape": [3, 2], "pads": [1, 0, 1, 0], "strides": [2, 2], "ceil_mode": 1}),
        ("Conv", ["x", "grouped", "bias"], ["many"], {"group": 2, "pads": [2, 2, 2, 2], "dilations": [2, 2]}),
        ("Clip", ["many", "low", "high"], ["between"], {}),
        ("Conv", ["between", "twice"], ["doubled"], {"group": 12}),
        ("LeakyRelu", ["doubled"], ["leaky"], {"alpha": 0.1}),
        ("Pad", ["leaky", "pads"], ["padded"], {}),
        ("Slice", ["padded", "starts", "ends", "axes", "steps"], ["cut"], {}),
        ("Gather", ["cut", "picked"], ["chosen"], {"axis": 1}),
        ("BatchNormalization", ["chosen", "gain", "shift", "mean", "variance"], ["normal"], {}),
        ("Softmax", ["normal"], ["soft"], {"axis": 1}),
        ("Split", ["normal", "parts"], ["left", "right"], {"axis": 2}),
        ("ReduceMean", ["left", "two"], ["average"], {"keepdims": 0}),
        ("ReduceMax", ["right", "two"], ["largest"], {}),
        ("Squeeze", ["largest", "two"], ["flat"], {}),
        ("Sub", ["average", "flat"], ["difference"], {}),
        ("Concat", ["difference", "flat"], ["both"], {"axis": 1}),
        ("Gather", ["both", "channel"], ["one"], {"axis": 1}),
        ("Unsqueeze", ["one", "second"], ["lifted"], {}),
        ("Mul", ["lifted", "both"], ["crossed"], {}),
        ("ReduceL2", ["soft", "two"], ["length"], {}),
    ]
    ends = ["inside", "with_edge", "most", "soft", "both", "crossed", "length"]
    for end in ends:
        nodes += [
            ("Pow", [end, "power"], [f"{end}_squared"], {}),
            ("Reshape", [f"{end}_squared", "all"], [f"{end}_row"], {}),
        ]
    nodes += [
        ("Concat", [f"{end}_row" for end in ends], ["logits"], {"axis": 1}),
        ("Softmax", ["logits"], ["probabilities"], {}),
    ]
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, outputs, **given) for kind, inputs, outputs, given in nodes], "hard",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 14, 17, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("logits", "probabilities")],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return onnx.shape_inference.infer_shapes(proto, strict_mode=True)
