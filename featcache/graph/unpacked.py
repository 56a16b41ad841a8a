"""Stored integers that floats are computed with, unpacked by operations that a runtime computes once, when it loads.

ONNX Runtime keeps every DequantizeLinear, which could be part of an operation on integers, and computes it for each
image again: a convolution of 1024 x 576 weights behind the pooling then costs `featcache_nano` a quarter of its time.
A Cast and a Mul of constants are folded. The bytes stored are the same.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def unpack_once(model: onnx.ModelProto) -> None:
    """Make, in place, each DequantizeLinear of stored int8 a Cast and a Mul where all who read it compute in floats."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    dequantized = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    with_integers = {name for node in graph.node if node.input and node.input[0] in dequantized for name in node.input}
    unpacked = {
        name
        for name, node in dequantized.items()
        if name not in with_integers
        and node.input[0] in constants
        and constants[node.input[0]].data_type == TensorProto.INT8
    }
    if not unpacked:
        return
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.output[0] not in unpacked:
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
            continue
        integers, scale = node.input[:2]
        axis = helper.get_attribute_value(next(entry for entry in node.attribute if entry.name == "axis"))
        along = [-1 if place == axis else 1 for place in range(len(constants[integers].dims))]
        steps = np.ascontiguousarray(numpy_helper.to_array(constants[scale]).reshape(along))
        constants[scale] = numpy_helper.from_array(steps, scale)
        cast = f"{integers}/cast"
        nodes.append(helper.make_node("Cast", [integers], [cast], cast, to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [cast, scale], [node.output[0]], node.name))
    read = {name for node in nodes for name in node.input}
    kept = [
        onnx.TensorProto.FromString(tensor.SerializeToString()) for name, tensor in constants.items() if name in read
    ]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
