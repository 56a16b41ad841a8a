"""Reading an ONNX graph: what the file leaves out or says in one of two ways is resolved."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import featcache.formats.drivers
from featcache.graph.nodes import Graph, Node

DRIVERS = Path(featcache.formats.drivers.__file__).parent


def graph_of(
    kind: str, *, shape: tuple[int, ...] = (1, 3, 7, 6), opset: int = 18, constants: dict[str, Any] | None = None,
    outputs: tuple[str, ...] = ("y",), **attributes: Any,
) -> Graph:  # fmt: skip
    """Return the graph of one operation of ``x`` and of `constants`."""
    stored = {name: np.asarray(value) for name, value in (constants or {}).items()}
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", *stored], list(outputs), **attributes)], "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )  # fmt: skip
    return Graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8))


def node_of(kind: str, **settings: Any) -> Node:
    (node,) = graph_of(kind, **settings).nodes
    return node


@pytest.mark.parametrize(
    ("kind", "opset", "name", "value"),
    [("Softmax", 18, "axis", -1), ("Softmax", 11, "axis", 1), ("AveragePool", 18, "ceil_mode", 0)],
)
def test_attribute_left_out_has_the_default_of_its_opset(kind: str, opset: int, name: str, value: int) -> None:
    """Defaults are those that ONNX states for the version of the operation that the file is in."""
    assert node_of(kind, opset=opset, **({"kernel_shape": [2, 2]} if "Pool" in kind else {})).attributes[name] == value


@pytest.mark.parametrize(
    "settings", [{"opset": 18, "constants": {"axes": np.array([-1, 2])}}, {"opset": 11, "axes": [-1, 2]}]
)
def test_axes_are_read_from_the_input_or_the_attribute(settings: dict[str, Any]) -> None:
    """They moved from one to the other with opset 18."""
    assert node_of("ReduceMean", **settings).axes(4) == (3, 2)


def test_axes_left_out_are_all() -> None:
    """As ONNX says of reductions."""
    assert node_of("ReduceMean").axes(4) == (0, 1, 2, 3)


@pytest.mark.parametrize("automatic", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("strides", [[1, 1], [2, 3]])
def test_automatic_padding_as_numbers_computes_the_same(automatic: str, strides: list[int]) -> None:
    """A convolution with the numbers gives what ONNX Runtime makes of the word."""
    x = np.random.default_rng(0).standard_normal((1, 3, 7, 6)).astype(np.float32)
    weight = np.random.default_rng(1).standard_normal((2, 3, 4, 2)).astype(np.float32)
    named = graph_of("Conv", constants={"w": weight}, auto_pad=automatic, strides=strides)
    pads = list(named.nodes[0].window().pads)
    written = graph_of("Conv", constants={"w": weight}, pads=pads, strides=strides)
    results = [
        np.asarray(onnxruntime.InferenceSession(graph.proto.SerializeToString()).run(None, {"x": x})[0])
        for graph in (named, written)
    ]
    np.testing.assert_allclose(results[0], results[1], atol=1e-6)


def test_padding_of_named_axes_leaves_the_others() -> None:
    """Opset 18 lets Pad name its axes."""
    constants = {"pads": np.array([1, 2, 3, 4]), "value": np.float32(7), "axes": np.array([-1, 2])}
    node = node_of("Pad", constants=constants)
    assert node.paddings(4) == ((0, 0), (0, 0), (2, 4), (1, 3))
    assert node.pad_value() == 7


def test_split_without_sizes_leaves_the_rest_to_the_last_part() -> None:
    """As ONNX says of a number of outputs that does not divide the axis."""
    assert node_of("Split", outputs=("a", "b"), axis=2, num_outputs=2).split_sizes(7) == (4, 3)


def test_stored_integers_stand_for_floats_along_their_axis() -> None:
    """What DequantizeLinear makes of a constant, as ONNX Runtime does."""
    values = np.arange(-6, 6, dtype=np.int8).reshape(3, 4)
    scale, zero = np.array([0.5, 0.25, 3], dtype=np.float32), np.array([1, 0, -2], dtype=np.int8)
    node = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=0)
    stored = {"q": values, "s": scale, "z": zero}
    proto = helper.make_model(
        helper.make_graph(
            [node], "one", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 4])],
            [numpy_helper.from_array(value, name) for name, value in stored.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)], ir_version=8,
    )  # fmt: skip
    constant = Graph(proto).nodes[0].stored()
    assert constant is not None
    expected = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {})[0]
    np.testing.assert_array_equal(constant.real(), expected)


def test_an_output_has_no_only_reader() -> None:
    """What leaves the graph may not be folded into what reads it."""
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Relu", ["y"], ["z"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y", "z")]
    inner = Graph(helper.make_model(helper.make_graph(nodes, "two", ends[:1], ends[2:])))
    assert inner.only_reader("y") is inner.nodes[1]
    assert Graph(helper.make_model(helper.make_graph(nodes, "two", ends[:1], ends[1:]))).only_reader("y") is None


def test_graph_reader_needs_nothing_of_featcache(tmp_path: Path) -> None:
    """A driver's environment may hold onnx and numpy alone: the package is hidden from this program."""
    onnx.save(graph_of("Relu").proto, tmp_path / "relu.onnx")
    code = (
        f"import sys; sys.modules['featcache'] = None; sys.path.insert(0, {str(DRIVERS)!r}); import graph_reader; "
        f"graph = graph_reader.graph_module('nodes').Graph.load({str(tmp_path / 'relu.onnx')!r}); "
        "graph_reader.graph_module('torch_graph').TorchGraph(graph, outputs=('y',)); print(graph.nodes[0].kind)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "Relu\n"
