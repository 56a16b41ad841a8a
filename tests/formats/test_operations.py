"""Every operation of a classifier in every writer: computed as ONNX Runtime does, or an exception that has a reason."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export_models import small_model
from fake_mindspore import fake_mindspore
from onnx import TensorProto, helper, numpy_helper

from featcache.extract.inputs.deployed_images import DeployedImages
from featcache.formats.interface import ModelFacts
from featcache.formats.registry import find_target
from featcache.formats.tfjs.operations import convert_graph as tfjs_graph
from featcache.formats.tflite.file import file_bytes
from featcache.formats.tflite.operations import convert_graph as tflite_graph
from featcache.formats.tflite.target import open_plain
from featcache.graph.nodes import Graph
from featcache.graph.operations import CLASSIFIER_OPERATIONS
from featcache.graph.passes import fixed_batch
from featcache.graph.torch_graph import TorchGraph
from featcache.graph.write import write_onnx

IMAGE = (1, 6, 5, 3)
NO_GROUPS = "norms over groups of channels (PoolFormer) have no form yet"
EXCEPTIONS = {
    **{(writer, "InstanceNormalization"): NO_GROUPS for writer in ("torch", "mindspore", "tflite", "tfjs")},
    ("tflite", "Erf"): "TensorFlow Lite has no such operation: GELU alone, of which Erf is a part, is known",
}
WRITER_OF = {"tfjs": "tfjs", "coreml": "torch", "executorch": "torch"}  # of each format that takes all at once


@dataclass(frozen=True)
class Example:
    """One operation of ``x`` (0 to 3, the image as floats), of ``s`` (half of it below 0) or of ``t`` (tokens of it).

    `nodes`: more than one where an operation is nothing by itself. `tolerance`: how far the result may be.
    """

    kind: str
    inputs: tuple[str, ...]
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    after: tuple[tuple[str, tuple[str, ...], tuple[str, ...], dict[str, Any]], ...] = ()
    outputs: tuple[str, ...] = ("y",)
    tolerance: float = 1e-4

    @property
    def quantized(self) -> bool:
        """Whether it rounds what is computed, which formats of floats leave out."""
        return self.kind == "QuantizeLinear"


def _numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def _floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def _places(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


_POOL = {"kernel_shape": [2, 2], "strides": [2, 1]}
_SCALES = {"scale": np.float32(0.05), "zero": np.uint8(30)}
EXAMPLES = [
    Example("Cast", ("image",), attributes={"to": TensorProto.FLOAT}),
    Example("Transpose", ("x",), attributes={"perm": [0, 3, 1, 2]}),
    Example("Sub", ("x", "c"), {"c": _floats(1, 2, 3)}),
    Example("Mul", ("x", "c"), {"c": _floats(1, 2, 3)}),
    Example("Conv", ("x", "w", "b"), {"w": _numbers(4, 6, 3, 2), "b": _numbers(4)}, {"pads": [1, 0, 0, 1]}),
    Example("BatchNormalization", ("x", "w", "b", "m", "v"),
            {"w": _numbers(6), "b": _numbers(6), "m": _numbers(6), "v": np.abs(_numbers(6)) + 1}),
    Example("AveragePool", ("x",), attributes=_POOL),
    Example("MaxPool", ("s",), attributes={**_POOL, "pads": [1, 0, 1, 0]}),
    Example("GlobalAveragePool", ("x",)),
    Example("Pad", ("x", "p"), {"p": _places(0, 0, 1, 0, 0, 0, 0, 2)}),
    Example("Relu", ("s",)),
    Example("Clip", ("s", "low", "high"), {"low": np.float32(-1), "high": np.float32(0.5)}),
    Example("Clip", ("s", "low"), {"low": np.float32(1e-12)}),
    Example("LeakyRelu", ("s",), attributes={"alpha": 0.1}),
    Example("Elu", ("s",)),
    Example("HardSwish", ("s",)),
    Example("HardSigmoid", ("s",), attributes={"alpha": 1 / 6}),
    Example("Sigmoid", ("s",)),
    Example("Tanh", ("s",)),
    Example("MatMul", ("t", "w"), {"w": _numbers(3, 4)}),
    Example("LayerNormalization", ("t", "w", "b"), {"w": _numbers(3), "b": _numbers(3)}, {"epsilon": 1e-3}),
    Example(
        "InstanceNormalization", ("x", "w", "b"), {"w": _numbers(6), "b": _numbers(6)}, {"epsilon": 1e-3}
    ),
    Example("Erf", ("s",)),
    Example("Softmax", ("s",), attributes={"axis": 1}),
    Example("Expand", ("t", "sizes"), {"sizes": _places(2, 30, 3)}),
    Example("Gather", ("x", "i"), {"i": _places(2, 0)}, {"axis": 3}),
    Example("Gather", ("x", "i"), {"i": np.array(1)}, {"axis": 1}),
    Example("Split", ("x", "sizes"), {"sizes": _places(4, 2)}, {"axis": 1}, outputs=("a", "b"),
            after=(("Concat", ("b", "a"), ("y",), {"axis": 1}),)),
    Example("Slice", ("x", "begin", "end", "axes"), {"begin": _places(-4), "end": _places(5), "axes": _places(1)}),
    Example("Concat", ("x", "s"), attributes={"axis": -1}),
    Example("Add", ("x", "s")),
    Example("Div", ("x", "c"), {"c": _floats(1, 2, 3)}),
    Example("Pow", ("x", "c"), {"c": np.float32(2)}),
    Example("Sqrt", ("x",)),
    Example("Exp", ("s",)),
    Example("Neg", ("s",)),
    Example("Max", ("s", "c"), {"c": np.float32(0.25)}),
    Example("Min", ("s", "c"), {"c": np.float32(0.25)}),
    Example("ReduceMean", ("x", "axes"), {"axes": _places(2, 3)}, {"keepdims": 0}),
    Example("ReduceSum", ("x", "axes"), {"axes": _places(-1)}),
    Example("ReduceMax", ("x", "axes"), {"axes": _places(1)}),
    Example("ReduceL2", ("x", "axes"), {"axes": _places(3)}),
    Example("Gemm", ("row", "w", "b"), {"w": _numbers(4, 90), "b": _numbers(4)}, {"transB": 1}),
    Example("Flatten", ("x",)),
    Example("Reshape", ("x", "sizes"), {"sizes": _places(0, 3, -1)}),
    Example("Squeeze", ("x", "axes"), {"axes": _places(0)}),
    Example("Unsqueeze", ("t", "axes"), {"axes": _places(1)}),
    Example("Identity", ("x",)),
    Example("QuantizeLinear", ("s", "scale", "zero"), _SCALES, outputs=("q",), tolerance=0.051,
            after=(("DequantizeLinear", ("q", "scale", "zero"), ("y",), {}),)),
    Example("DequantizeLinear", ("c", "scale", "zero"),
            {"c": np.arange(3, dtype=np.int8), "scale": _floats(1, 2, 3), "zero": np.zeros(3, dtype=np.int8)},
            {"axis": 0}, outputs=("d",), after=(("Add", ("x", "d"), ("y",), {}),)),
]  # fmt: skip


def model_of(examples: list[Example]) -> onnx.ModelProto:
    """Return the graph that computes `examples` of one image, their results as one row of ``logits``."""
    constants: dict[str, np.ndarray] = {
        "shift": np.float32(1.5), "tokens": _places(1, 30, 3), "all": _places(1, -1),
    }  # fmt: skip
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["x", "shift"], ["s"]),
        helper.make_node("Reshape", ["s", "tokens"], ["t"]),
        helper.make_node("Reshape", ["s", "all"], ["row"]),
    ]
    shared = {"image", "x", "s", "t", "row"}
    for number, example in enumerate(examples):
        constants.update({f"{number}/{name}": np.asarray(value) for name, value in example.constants.items()})
        for kind, inputs, outputs, attributes in (
            (example.kind, example.inputs, example.outputs, example.attributes), *example.after,
        ):  # fmt: skip
            named = [name if name in shared else f"{number}/{name}" for name in inputs]
            nodes.append(helper.make_node(kind, named, [f"{number}/{name}" for name in outputs], **attributes))
        nodes.append(helper.make_node("Reshape", [f"{number}/y", "all"], [f"{number}/row"]))
    rows = [f"{number}/row" for number in range(len(examples))]
    nodes.append(helper.make_node("Concat", rows, ["logits"], axis=1))
    nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"]))
    graph = helper.make_graph(
        nodes, "operations", [helper.make_tensor_value_info("image", TensorProto.UINT8, IMAGE)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("logits", "probabilities")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    needed = Graph(helper.make_model(graph)).leading_to(("logits", "probabilities"))
    del graph.node[:]
    graph.node.extend(node.proto for node in needed)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return onnx.shape_inference.infer_shapes(proto, strict_mode=True)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Return an image of the values 0 to 3."""
    return np.random.default_rng(0).integers(0, 4, size=IMAGE, dtype=np.uint8)


def expected_of(proto: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    return np.asarray(onnxruntime.InferenceSession(proto.SerializeToString()).run(["logits"], {"image": image})[0])


# --- the writers: what each computes of a graph, None where that takes tools that are not here ----------------------


def _torch(proto: onnx.ModelProto, image: np.ndarray, folder: Path) -> np.ndarray | None:
    with torch.inference_mode():
        return TorchGraph(Graph(proto), outputs=("logits",), integers="none")(torch.from_numpy(image))[0].numpy()


def _mindspore(proto: onnx.ModelProto, image: np.ndarray, folder: Path) -> np.ndarray | None:
    with fake_mindspore() as driver, torch.inference_mode():
        return driver.MindSporeGraph(Graph(proto))(torch.from_numpy(image))[0].numpy()


def _tflite(proto: onnx.ModelProto, image: np.ndarray, folder: Path) -> np.ndarray | None:
    graph = tflite_graph(proto, outputs=("logits",))
    if importlib.util.find_spec("ai_edge_litert") is None:
        return None
    (folder / "model.tflite").write_bytes(file_bytes({"serving_default": graph}, description="", metadata={}))
    with open_plain(folder / "model.tflite", threads=1) as runner:
        return runner.run(image)


def _tfjs(proto: onnx.ModelProto, image: np.ndarray, folder: Path) -> np.ndarray | None:
    tfjs_graph(proto, outputs=("logits",))
    return None  # a program to start: all operations are run at once, below


WRITERS: dict[str, Callable[[onnx.ModelProto, np.ndarray, Path], np.ndarray | None]] = {
    "torch": _torch, "mindspore": _mindspore, "tflite": _tflite, "tfjs": _tfjs,
}  # fmt: skip


def _names(example: Example) -> str:
    return f"{example.kind}{len(example.inputs)}"


def test_every_operation_has_an_example() -> None:
    """An operation that joins the list is tried in every writer."""
    assert {example.kind for example in EXAMPLES} == set(CLASSIFIER_OPERATIONS)
    assert {kind for _, kind in EXCEPTIONS} <= set(CLASSIFIER_OPERATIONS)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_vit", "test_convnext"])
def test_operations_of_a_network_are_in_the_list(tmp_path: Path, name: str) -> None:
    """What `write_onnx` leaves, with a batch of one, is what the writers are tried with."""
    graph = Graph(fixed_batch(onnx.load(write_onnx(small_model(name=name), tmp_path / "model.onnx"))))
    assert {node.kind for node in graph.nodes} <= set(CLASSIFIER_OPERATIONS)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("example", EXAMPLES, ids=_names)
def test_operation_written_computes_what_onnx_runtime_does(
    tmp_path: Path, image: np.ndarray, writer: str, example: Example
) -> None:
    """Supported, or an exception by name; an exception that works is stale, and fails."""
    proto = model_of([example])
    if (writer, example.kind) in EXCEPTIONS:
        with pytest.raises(NotImplementedError):
            WRITERS[writer](proto, image, tmp_path)
        return
    computed = WRITERS[writer](proto, image, tmp_path)
    if computed is not None:
        np.testing.assert_allclose(computed, expected_of(proto, image), atol=example.tolerance)


# --- whole formats: all operations at once, since each file takes a converter or a program --------------------------


@pytest.fixture
def _installed_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for tools where the user installed them, not in the tests' private folder."""
    if "featcache-tests-home" in os.environ.get("FEATCACHE_HOME", ""):
        monkeypatch.delenv("FEATCACHE_HOME")


@pytest.mark.target
@pytest.mark.usefixtures("_installed_tools")
@pytest.mark.parametrize(
    "name", ["tfjs", "coreml", pytest.param("executorch", marks=[pytest.mark.slow, pytest.mark.long])],
)  # fmt: skip
def test_all_operations_in_one_file_compute_what_onnx_runtime_does(
    tmp_path: Path, image: np.ndarray, name: str
) -> None:
    """The format's own converter or runtime takes every operation that its writer writes, those excepted by name."""
    target = find_target(name)
    reason = target.available()
    if reason is not None:
        pytest.skip(f"{name}: {reason}; {target.needs}")
    examples = [
        example for example in EXAMPLES if (WRITER_OF[name], example.kind) not in EXCEPTIONS and not example.quantized
    ]
    proto = model_of(examples)
    onnx.save(proto, tmp_path / "operations.onnx")
    expected = expected_of(proto, image)
    preprocessing = dataclasses.replace(small_model().preprocessing, height=IMAGE[1], width=IMAGE[2])
    classes = tuple(f"label {number}" for number in range(expected.shape[1]))
    facts = ModelFacts("operations", classes, DeployedImages(preprocessing), {}, quantized=False)
    files = target.convert(tmp_path / "operations.onnx", tmp_path, facts=facts).files
    runner = target.open(files, threads=1) if target.executable() is None else target.reference_runner(files, threads=1)
    if runner is None:
        pytest.skip(f"{name}: {target.executable()}")
    with runner:
        np.testing.assert_allclose(runner.run(image), expected, atol=1e-3)
