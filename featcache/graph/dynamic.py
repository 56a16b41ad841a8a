"""Products of floats with stored integers as products of integers: each row is rounded with a scale of its own.

A row's scale is its largest value over 127, as LLM.int8 finds it (Dettmers et al. 2022, arXiv 2208.07339), so that no
row depends on the ones beside it: ONNX's DynamicQuantizeLinear has one scale for all images of a batch. The operations
are ONNX's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from featcache.graph.nodes import Array

_SMALLEST = 1e-20  # of a row of zeros, which may not be divided by
_LARGEST = 127
_ZERO_POINT = 128  # of unsigned bytes, which kernels multiply with signed ones faster than two signed ones


def expand_products(model: onnx.ModelProto) -> None:
    """Make, in place, each MatMul of a computed value with dequantized integers of two axes a MatMulInteger."""
    graph = model.graph
    stored = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    values = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        weight = stored.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is None or weight.input[0] not in values or node.input[0] in stored:
            nodes.append(node)
            continue
        integers, scale = weight.input[:2]
        if len(values[integers].dims) != 2 or values[scale].dims[0] != values[integers].dims[1]:
            nodes.append(node)
            continue
        nodes += _product(node, integers, scale)
    read = {name for node in nodes for name in node.input}
    kept = [node for node in nodes if node.op_type != "DequantizeLinear" or node.output[0] in read]
    read = {name for node in kept for name in node.input}
    constants = [tensor for name, tensor in values.items() if name in read]
    constants += [numpy_helper.from_array(array, name) for name, array in _CONSTANTS.items() if name in read]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    tensors = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in constants]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(copies)
    graph.initializer.extend(tensors)


_CONSTANTS: dict[str, Array] = {
    "rows/last_axis": np.array([-1], dtype=np.int64),
    "rows/smallest": np.array(_SMALLEST, dtype=np.float32),
    "rows/largest": np.array(_LARGEST, dtype=np.float32),
    "rows/one": np.array(1, dtype=np.float32),
    "rows/zero_point": np.array(_ZERO_POINT, dtype=np.uint8),
}


def _product(node: onnx.NodeProto, integers: str, scale: str) -> list[onnx.NodeProto]:
    """Return the nodes for the product `node` with stored `integers` (inputs, outputs) and their `scale` (outputs,)."""
    at = node.name

    def made(kind: str, inputs: list[str], name: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(kind, inputs, [f"{at}/{name}"], f"{at}/{name}", **attributes)

    return [
        made("Abs", [node.input[0]], "absolute"),
        made("ReduceMax", [f"{at}/absolute", "rows/last_axis"], "largest", keepdims=1),
        made("Max", [f"{at}/largest", "rows/smallest"], "span"),
        made("Div", ["rows/largest", f"{at}/span"], "gain"),
        made("Mul", [node.input[0], f"{at}/gain"], "stretched"),
        made("QuantizeLinear", [f"{at}/stretched", "rows/one", "rows/zero_point"], "rounded"),
        made("MatMulInteger", [f"{at}/rounded", integers, "rows/zero_point"], "sums"),
        made("Cast", [f"{at}/sums"], "floats", to=TensorProto.FLOAT),
        # not one product of both scales: ONNX Runtime would take the row's for one of the whole tensor, where it cannot
        # see how many rows there are
        made("Div", [f"{at}/floats", f"{at}/gain"], "rows"),
        helper.make_node("Mul", [f"{at}/rows", scale], [node.output[0]], node.name),
    ]
