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

from featcache.graph.nodes import Array, Graph, Node

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
    graph = Graph(proto)
    added: dict[str, npt.NDArray[np.generic]] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        nodes += _rewritten(node, added)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    del proto.graph.node[:], proto.graph.initializer[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend([*kept, *(numpy_helper.from_array(value, name) for name, value in added.items())])


def _rewritten(node: Node, added: dict[str, npt.NDArray[np.generic]]) -> Iterator[onnx.NodeProto]:
    """Give what stands for `node`, itself where it is no convolution of one pixel; new constants go into `added`."""
    weight = node.constant(1) if node.kind in _PRODUCTS else None
    shape = None if weight is None else node.shape
    if weight is None or shape is None:
        yield node.proto
    elif node.kind == "Gemm" and len(shape) == 2 and shape[0] == 1 and _is_linear(node):
        across = weight if node.transposes_weight() else weight.T
        yield from _pointwise(node, across, added, before=((1, shape[1], 1, 1), None))
    elif node.kind == "MatMul" and weight.ndim == 2 and len(shape) == 3 and shape[0] == 1:
        yield from _pointwise(node, weight.T, added, before=((1, shape[2], shape[1], 1), (0, 2, 1)))
    elif node.kind == "Conv" and _patches(node, weight, shape):
        yield from _of_patches(node, weight, shape, added)
    else:
        yield node.proto


def _is_linear(node: Node) -> bool:
    """Return whether a Gemm is a product and a bias, and no more."""
    return not node.attributes["transA"] and node.attributes["alpha"] == node.attributes["beta"] == 1.0


def openable(node: Node, weight: Sequence[int]) -> bool:
    """Return whether the runtime opens `node` with a weight of integers, whose shape is `weight`."""
    if node.kind != "Conv":
        return False
    pointwise = tuple(weight[2:]) == (1, 1) and node.window().strides == (1, 1)
    return bool(pointwise or node.attributes["group"] > 1)


def _patches(node: Node, weight: Array, shape: tuple[int, ...]) -> bool:
    """Return whether a convolution's windows, of more than one pixel, tile its input exactly."""
    window, kernel = node.window(), tuple(weight.shape[2:])
    plain = node.attributes["group"] == 1 and set(window.dilations) == {1} and not any(window.pads)
    tiles = kernel == window.strides and all(size % k == 0 for size, k in zip(shape[2:], kernel, strict=True))
    return plain and tiles and math.prod(kernel) > 1 and shape[0] == 1


def _pointwise(
    node: Node,
    weight: npt.NDArray[np.generic],
    added: dict[str, npt.NDArray[np.generic]],
    *,
    before: tuple[tuple[int, ...], tuple[int, ...] | None],
) -> Iterator[onnx.NodeProto]:
    """Give the nodes that compute `node` with `weight` (outputs, channels) over an image of ``before[0]``.

    ``before[1]``: the order of axes in which its input is that image, and its output that of `node`.
    """
    shape, order = before
    name, source = node.name or node.output, node.inputs[0]
    result = f"{name}/pixels"
    if order is not None:
        yield helper.make_node("Transpose", [source], [f"{name}/turned"], f"{name}/turn", perm=order)
        source = f"{name}/turned"
    yield _reshape(source, f"{name}/image", shape, added)
    added[f"{name}/pointwise"] = np.ascontiguousarray(weight).reshape(*weight.shape, 1, 1)
    inputs = [f"{name}/image", f"{name}/pointwise", *node.inputs[2:]]
    yield helper.make_node("Conv", inputs, [result], f"{name}/pointwise", **_ONE_PIXEL)
    if order is None:
        yield _reshape(result, node.output, (1, weight.shape[0]), added)
        return
    yield _reshape(result, f"{name}/rows", (1, weight.shape[0], shape[2]), added)
    yield helper.make_node("Transpose", [f"{name}/rows"], [node.output], f"{name}/turn_back", perm=order)


def _of_patches(
    node: Node,
    weight: npt.NDArray[np.generic],
    shape: tuple[int, ...],
    added: dict[str, npt.NDArray[np.generic]],
) -> Iterator[onnx.NodeProto]:
    """Give the nodes of a convolution of patches: each one's pixels become channels, then one of one pixel."""
    name = node.name or node.output
    _, channels, height, width = shape
    rows, columns = weight.shape[2:]
    down, across = height // rows, width // columns
    # (row of patches, row in it, column of patches, column in it, channel): no more axes than its kernels take
    yield _reshape(node.inputs[0], f"{name}/grid", (channels, down, rows, across, columns), added)
    yield helper.make_node("Transpose", [f"{name}/grid"], [f"{name}/patches"], f"{name}/cut", perm=(0, 2, 4, 1, 3))
    yield _reshape(f"{name}/patches", f"{name}/image", (1, channels * rows * columns, down, across), added)
    added[f"{name}/pointwise"] = np.ascontiguousarray(weight.reshape(weight.shape[0], -1, 1, 1))
    inputs = [f"{name}/image", f"{name}/pointwise", *node.inputs[2:]]
    yield helper.make_node("Conv", inputs, [node.output], f"{name}/pointwise", **_ONE_PIXEL)


def _reshape(
    source: str, result: str, shape: tuple[int, ...], added: dict[str, npt.NDArray[np.generic]]
) -> onnx.NodeProto:
    added[f"{result}/shape"] = np.array(shape, dtype=np.int64)
    return helper.make_node("Reshape", [source, f"{result}/shape"], [result], f"{result}/reshape")
