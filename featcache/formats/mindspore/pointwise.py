"""Write an ONNX graph's products with constant weights as convolutions of one pixel, where that is the same numbers.

MindSpore Lite 2.0 stores the weights of any product as integers, but its runtime opens only those of pointwise and of
grouped convolutions ("can not find tensor data in origin tensor data", of kernels that pack their weights again).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

_PRODUCTS = ("Conv", "Gemm", "MatMul")
# every attribute is written out: the converter has no defaults for them
_ONE_PIXEL: dict[str, Any] = {
    "kernel_shape": [1, 1],
    "strides": [1, 1],
    "dilations": [1, 1],
    "pads": [0, 0, 0, 0],
    "group": 1,
}


def to_pointwise(proto: onnx.ModelProto) -> None:
    """Rewrite, in place, what equals a convolution of one pixel; the graph is for one image and of known shapes.

    A Gemm, and a MatMul of (1, tokens, channels) with a constant, become one over an image of one or of ``tokens``
    pixels; a convolution whose windows do not overlap (the patches of a vision transformer) becomes one over the image
    with each window's pixels as channels.
    """
    shapes = _shapes(proto)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    added: dict[str, npt.NDArray[np.generic]] = {}
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        known = node.op_type in _PRODUCTS and node.input[1] in constants and node.input[0] in shapes
        shape, weight = (shapes[node.input[0]], constants[node.input[1]]) if known else ((), np.empty(0))
        if known and node.op_type == "Gemm" and set(attributes) <= {"transB", "alpha", "beta"} and len(shape) == 2:
            if shape[0] == 1 and attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0:
                across = weight if attributes.get("transB", 0) else weight.T
                nodes += _pointwise(node, across, added, before=((1, shape[1], 1, 1), None))
                continue
        elif known and node.op_type == "MatMul" and weight.ndim == 2 and len(shape) == 3 and shape[0] == 1:
            nodes += _pointwise(node, weight.T, added, before=((1, shape[2], shape[1], 1), (0, 2, 1)))
            continue
        elif known and node.op_type == "Conv" and _patches(attributes, weight, shape):
            nodes += _of_patches(node, weight, shape, added)
            continue
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    del proto.graph.node[:], proto.graph.initializer[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend([*kept, *(numpy_helper.from_array(value, name) for name, value in added.items())])


def openable(node: onnx.NodeProto, weight: Sequence[int]) -> bool:
    """Return whether the runtime opens `node` with a weight of integers, whose shape is `weight`."""
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    pointwise = tuple(weight[2:]) == (1, 1) and attributes.get("strides", [1, 1]) == [1, 1]
    return node.op_type == "Conv" and (pointwise or attributes.get("group", 1) > 1)


def _patches(attributes: dict[str, Any], weight: npt.NDArray[np.generic], shape: tuple[int, ...]) -> bool:
    """Return whether a convolution's windows, of more than one pixel, tile its input exactly."""
    kernel = list(weight.shape[2:])
    plain = attributes.get("group", 1) == 1 and attributes.get("dilations", [1, 1]) == [1, 1]
    unpadded = not any(attributes.get("pads", [0, 0, 0, 0]))
    tiles = kernel == attributes.get("strides", [1, 1]) and all(
        size % k == 0 for size, k in zip(shape[2:], kernel, strict=True)
    )
    return plain and unpadded and tiles and math.prod(kernel) > 1 and shape[0] == 1


def _pointwise(
    node: onnx.NodeProto,
    weight: npt.NDArray[np.generic],
    added: dict[str, npt.NDArray[np.generic]],
    *,
    before: tuple[tuple[int, ...], tuple[int, ...] | None],
) -> Iterator[onnx.NodeProto]:
    """Give the nodes that compute `node` with `weight` (outputs, channels) over an image of ``before[0]``.

    ``before[1]``: the order of axes in which its input is that image, and its output that of `node`.
    """
    shape, order = before
    name, source = node.name or node.output[0], node.input[0]
    result = f"{name}/pixels"
    if order is not None:
        yield helper.make_node("Transpose", [source], [f"{name}/turned"], f"{name}/turn", perm=order)
        source = f"{name}/turned"
    yield _reshape(source, f"{name}/image", shape, added)
    added[f"{name}/pointwise"] = np.ascontiguousarray(weight).reshape(*weight.shape, 1, 1)
    inputs = [f"{name}/image", f"{name}/pointwise", *node.input[2:]]
    yield helper.make_node("Conv", inputs, [result], f"{name}/pointwise", **_ONE_PIXEL)
    if order is None:
        yield _reshape(result, node.output[0], (1, weight.shape[0]), added)
        return
    yield _reshape(result, f"{name}/rows", (1, weight.shape[0], shape[2]), added)
    yield helper.make_node("Transpose", [f"{name}/rows"], [node.output[0]], f"{name}/turn_back", perm=order)


def _of_patches(
    node: onnx.NodeProto,
    weight: npt.NDArray[np.generic],
    shape: tuple[int, ...],
    added: dict[str, npt.NDArray[np.generic]],
) -> Iterator[onnx.NodeProto]:
    """Give the nodes of a convolution of patches: each one's pixels become channels, then one of one pixel."""
    name = node.name or node.output[0]
    _, channels, height, width = shape
    rows, columns = weight.shape[2:]
    down, across = height // rows, width // columns
    # (row of patches, row in it, column of patches, column in it, channel): no more axes than its kernels take
    yield _reshape(node.input[0], f"{name}/grid", (channels, down, rows, across, columns), added)
    yield helper.make_node("Transpose", [f"{name}/grid"], [f"{name}/patches"], f"{name}/cut", perm=(0, 2, 4, 1, 3))
    yield _reshape(f"{name}/patches", f"{name}/image", (1, channels * rows * columns, down, across), added)
    added[f"{name}/pointwise"] = np.ascontiguousarray(weight.reshape(weight.shape[0], -1, 1, 1))
    inputs = [f"{name}/image", f"{name}/pointwise", *node.input[2:]]
    yield helper.make_node("Conv", inputs, [node.output[0]], f"{name}/pointwise", **_ONE_PIXEL)


def _reshape(
    source: str, result: str, shape: tuple[int, ...], added: dict[str, npt.NDArray[np.generic]]
) -> onnx.NodeProto:
    added[f"{result}/shape"] = np.array(shape, dtype=np.int64)
    return helper.make_node("Reshape", [source, f"{result}/shape"], [result], f"{result}/reshape")


def _shapes(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the values whose shape is known."""
    graph = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    shapes = {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in values}
    return {name: shape for name, shape in shapes.items() if all(shape)}
