"""Turn a float ONNX graph into a quantized one (QDQ form) from stored scales alone: equal inputs, equal bytes.

A bias becomes int32 with the scale input · weight; of a node that is not computed in integers only the stored bytes of
its weight shrink.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from featcache.errors import FormatError
from featcache.model.quantization import Quantization, QuantParams

ACTIVATIONS_OF_RANGE = ("Relu", "Clip")  # folded by runtimes into the quantized output of the operation before
_BIAS_INPUT = 2


def apply_quantization(model: onnx.ModelProto, quantization: Quantization) -> onnx.ModelProto:
    """Return a copy of the float `model` with QuantizeLinear/DequantizeLinear pairs as `quantization` says.

    Raises `FormatError` where the graph has no such node, tensor or initializer.
    """
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    rewriter = _Rewriter(quantized.graph, quantization)
    rewriter.run()
    return quantized


class _Rewriter:
    """One pass over a graph in topological order, collecting its new nodes and initializers."""

    def __init__(self, graph: onnx.GraphProto, quantization: Quantization) -> None:
        self.graph = graph
        self.activations, self.weights = quantization.activations, quantization.weights
        self.integer_nodes = frozenset(quantization.nodes)
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.consumers = consumers_of(graph)
        self.outputs = {value.name for value in graph.output}
        self.nodes: list[onnx.NodeProto] = []
        self.added: dict[str, onnx.TensorProto] = {}
        self.dequantized: dict[str, str] = {}
        self.from_integers: set[str] = set()

    def run(self) -> None:
        self._check_names()
        for node in self.graph.node:
            if node.name in self.integer_nodes:
                self.from_integers.add(integer_output(node, self.consumers, self.outputs))
        for value in self.graph.input:
            self._quantize(value.name)
        for node in self.graph.node:
            if node.op_type == "Gather" and node.input[0] in self.weights:
                self._look_up(node)
            else:
                self._rewire(node)
                self.nodes.append(node)
            for name in node.output:
                self._quantize(name)
        used = {name for node in self.nodes for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(self.nodes)
        self.graph.initializer.extend([*kept, *self.added.values()])

    def _check_names(self) -> None:
        tensors = {name for node in self.graph.node for name in node.output} | {v.name for v in self.graph.input}
        for what, wanted, present in (
            ("nodes", self.integer_nodes, {node.name for node in self.graph.node}),
            ("activations", set(self.activations), tensors),
            ("weights", set(self.weights), set(self.initializers)),
        ):
            missing = sorted(set(wanted) - present)
            if missing:
                raise FormatError(
                    f"the graph must have the {what} that quant.json names, it lacks {missing[:5]!r}: quantize the "
                    "model again with this version of torch"
                )

    def _quantize(self, name: str) -> None:
        """Put a Q/DQ pair behind tensor `name` where it has a stored scale."""
        if name not in self.activations:
            return
        params = self.activations[name]
        scale = self._constant(f"{name}/scale", np.array(params.scale[0], dtype=np.float32))
        zero = self._constant(f"{name}/zero_point", np.array(params.zero_point[0], dtype=params.dtype))
        self.nodes.append(
            helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}/quantized"], f"{name}/quantize")
        )
        self.nodes.append(
            helper.make_node(
                "DequantizeLinear", [f"{name}/quantized", scale, zero], [f"{name}/dequantized"], f"{name}/dequantize"
            )
        )
        self.dequantized[name] = f"{name}/dequantized"

    def _rewire(self, node: onnx.NodeProto) -> None:
        integer = node.name in self.integer_nodes
        for position, name in enumerate(node.input):
            if name in self.weights:
                node.input[position] = self._weight(name)
            elif name in self.dequantized and (integer or name in self.from_integers):
                # what was computed in integers is read from them everywhere: the float form never exists
                node.input[position] = self.dequantized[name]
        if integer and node.op_type in ("Conv", "Gemm") and len(node.input) > _BIAS_INPUT and node.input[_BIAS_INPUT]:
            self._bias(node)

    def _look_up(self, node: onnx.NodeProto) -> None:
        """Look rows up as integers, and make floats of those alone: the float table never exists."""
        rows = f"{node.name}/integers"
        integers, scale, zero = self._stored(node.input[0])
        self.nodes.append(helper.make_node("Gather", [integers, node.input[1]], [rows], rows, axis=0))
        self.nodes.append(
            helper.make_node("DequantizeLinear", [rows, scale, zero], [node.output[0]], node.name, axis=-1)
        )

    def _stored(self, name: str) -> list[str]:
        """Return the names of a weight's integers, of its scales and of its zero points."""
        params = self.weights[name]
        values = quantize_weight(numpy_helper.to_array(self.initializers[name]), params)
        return [
            self._constant(f"{name}/quantized", values),
            self._constant(f"{name}/scale", np.array(params.scale, dtype=np.float32)),
            self._constant(f"{name}/zero_point", np.array(params.zero_point, dtype=values.dtype)),
        ]

    def _weight(self, name: str) -> str:
        if f"{name}/dequantized" not in self.dequantized.values():
            self.nodes.append(
                helper.make_node(
                    "DequantizeLinear", self._stored(name), [f"{name}/dequantized"], f"{name}/dequantize",
                    axis=self.weights[name].axis,
                )
            )  # fmt: skip
            self.dequantized[name] = f"{name}/dequantized"
        return self.dequantized[name]

    def _bias(self, node: onnx.NodeProto) -> None:
        name = node.input[_BIAS_INPUT]
        source = next(key for key, value in self.dequantized.items() if value == node.input[0])
        weight = next(key for key, value in self.dequantized.items() if value == node.input[1])
        scale = bias_scale(self.activations[source], self.weights[weight])
        values = numpy_helper.to_array(self.initializers[name]).astype(np.float64)
        limits = np.iinfo(np.int32)
        integers = np.clip(np.rint(values / scale), limits.min, limits.max).astype(np.int32)
        inputs = [
            self._constant(f"{name}/quantized", integers),
            self._constant(f"{name}/scale", scale.astype(np.float32)),
            self._constant(f"{name}/zero_point", np.zeros(len(scale), dtype=np.int32)),
        ]
        self.nodes.append(
            helper.make_node("DequantizeLinear", inputs, [f"{name}/dequantized"], f"{name}/dequantize", axis=0)
        )
        node.input[_BIAS_INPUT] = f"{name}/dequantized"

    def _constant(self, name: str, values: npt.NDArray[Any]) -> str:
        self.added[name] = numpy_helper.from_array(np.ascontiguousarray(values).reshape(values.shape), name)
        return name


def consumers_of(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Return the nodes that read each tensor."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def integer_output(node: onnx.NodeProto, consumers: Mapping[str, list[onnx.NodeProto]], outputs: set[str]) -> str:
    """Return the tensor that is quantized behind `node`: its own output, or that of the ReLU or clip it feeds."""
    name = node.output[0]
    readers = consumers.get(name, [])
    if len(readers) == 1 and readers[0].op_type in ACTIVATIONS_OF_RANGE and name not in outputs:
        return str(readers[0].output[0])
    return str(name)


def quantize_weight(weight: npt.NDArray[np.float32], params: QuantParams) -> npt.NDArray[np.int8]:
    """Return `weight` as int8 with the stored scales along their axis; symmetric, −127 to 127."""
    assert params.axis is not None  # `Quantization` takes no other weights
    shape = [1] * weight.ndim
    shape[params.axis] = -1
    scale = np.array(params.scale, dtype=np.float32).reshape(shape)
    integers: npt.NDArray[np.int8] = np.clip(np.rint(weight / scale), -127, 127).astype(np.int8)
    return integers


def bias_scale(activation: QuantParams, weight: QuantParams) -> npt.NDArray[np.float64]:
    """Return the scale of an int32 bias: input · weight, per output channel (n,) float64 of float32 products."""
    product = np.float32(activation.scale[0]) * np.array(weight.scale, dtype=np.float32)
    return product.astype(np.float64)


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the default operator set."""
    return int(next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")))
