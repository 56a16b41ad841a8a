"""ONNX's operations in a graph with its channels last, whatever its format: one function for each.

What depends on the format, above all what is quantized, each format's own functions add. What has no equivalent is
refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import numpy_helper

from featcache.formats.channels_last.graph import Array, ChannelsLastGraph, Constant, Value, laid

CHANNELS_LAST = (0, 2, 3, 1)
_FAST_CUT_AXES = 4  # runtimes cut more axes entry by entry, or not at all
_LOWEST = float(np.finfo(np.float32).min)

Attributes = Mapping[str, Any]
Graph = TypeVar("Graph", bound=ChannelsLastGraph)
Operation = Callable[[Graph, onnx.NodeProto, Attributes], None]


def convert_nodes(
    graph: Graph, nodes: list[onnx.NodeProto], operations: Mapping[str, Operation[Graph]], *, form: str
) -> None:
    """Add `nodes`, in their order, to `graph`; one whose outputs another took over is passed by.

    Raises `NotImplementedError` naming operations, or forms of them, without an equivalent in `form`, and
    `VerificationError` where the shape of a tensor is not known.
    """
    unknown = sorted({node.op_type for node in nodes} - set(operations))
    if unknown:
        raise NotImplementedError(f"operations without a {form} form: {', '.join(unknown)}")
    for node in nodes:
        if not graph.computed(node.output):
            operations[node.op_type](graph, node, attributes_of(node))


def attributes_of(node: onnx.NodeProto) -> Attributes:
    """Return the attributes of `node` by name."""
    return {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}


# --- what is quantized ----------------------------------------------------------------------------------------------


def dequantize_constant(graph: ChannelsLastGraph, node: onnx.NodeProto, attributes: Attributes) -> bool:
    """Return whether the DequantizeLinear `node` is one of stored integers, which then keep its scale.

    They must be around zero, as weights and biases are.
    """
    stored, scale, zero = graph.constant(node.input[0]), graph.known(node, 1), graph.known(node, 2)
    if scale is None or zero is None:
        raise NotImplementedError(f"{node.op_type} without a scale or a zero point")
    if stored is None:
        return False
    if np.any(zero):
        raise NotImplementedError(f"{node.op_type} of weights around another number than zero")
    along = _along(scale, stored.values, attributes.get("axis", 1))
    graph.keep(node.output[0], Constant(stored.values, along))
    return True


def _along(values: Array, stored: Array, axis: int) -> Array:
    """Return `values`, one for each slice of `stored` along `axis` or a single one, with as many axes as `stored`."""
    shape = [1] * stored.ndim
    if values.size > 1:
        shape[axis] = -1
    return values.reshape(shape)


def per_output(weight: Constant, axis: int) -> Constant:
    """Return `weight`, its scale left apart only where it is one per output along `axis`, or a single one."""
    if weight.scale is None or weight.scale.size in (1, weight.scale.shape[axis]):
        return weight
    return Constant(weight.real())


def known_bias(graph: ChannelsLastGraph, node: onnx.NodeProto, scale: Any) -> Array | None:
    """Return the node's bias (n,) float64, to be added before the multiplication by `scale`, None without one."""
    if len(node.input) < 3 or not node.input[2]:
        return None
    bias = graph.constant(node.input[2])
    if bias is None:
        raise NotImplementedError(f"{node.op_type} with a computed bias")
    # a stored bias has this very scale, so that the quotient is 1 and it stays the integers that it is
    ratio = (1 if bias.scale is None else bias.scale.astype(np.float64)) / (1 if scale is None else scale.reshape(-1))
    found: Array = (bias.values * ratio).reshape(-1)
    return found


def known_weight(graph: ChannelsLastGraph, node: onnx.NodeProto) -> Constant:
    """Return the weight (outputs, inputs of a group, height, width) of a convolution of images."""
    found = graph.constant(node.input[1])
    if found is None or found.values.ndim != 4:
        raise NotImplementedError("Conv other than over height and width with a constant weight")
    return per_output(found, 0)


def conv_steps(attributes: Attributes) -> tuple[list[int], list[int], list[int]]:
    """Return strides (2,), dilations (2,) and pads (top, left, bottom, right) of a convolution."""
    if attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise NotImplementedError("Conv with automatic padding")
    defaults: dict[str, list[int]] = {"strides": [1, 1], "dilations": [1, 1], "pads": [0, 0, 0, 0]}
    strides, dilations, pads = (list(attributes.get(name, value)) for name, value in defaults.items())
    return strides, dilations, pads


def check_gemm(attributes: Attributes) -> None:
    """Raise `NotImplementedError` for a Gemm that is more than a product and a bias."""
    if attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
        raise NotImplementedError("Gemm that scales or transposes its first input")


# --- pooling --------------------------------------------------------------------------------------------------------


def _pool(graph: ChannelsLastGraph, node: onnx.NodeProto, attributes: Attributes) -> None:
    """Pad what the window reaches beyond the edge, pool, and divide averages by what lay inside."""
    if any(step != 1 for step in attributes.get("dilations", [1, 1])) or len(attributes["kernel_shape"]) != 2:
        raise NotImplementedError(f"{node.op_type} other than over height and width without dilation")
    kernel, strides = attributes["kernel_shape"], attributes.get("strides", [1, 1])
    pads = attributes.get("pads", [0, 0, 0, 0])
    value, name = graph.value(node.input[0]), node.output[0]
    average = node.op_type == "AveragePool"
    around, counts = [], []
    for i, (size, window, step) in enumerate(zip(value.shape[2:], kernel, strides, strict=True)):
        steps = graph.shape(name)[2 + i]
        last = (steps - 1) * step + window  # where the last window ends, counted from the first one's begin
        around.append([pads[i], max(last - size - pads[i], 0)])
        edge = (-pads[i], size + pads[i + 2]) if attributes.get("count_include_pad", 0) else (0, size)
        begins = np.arange(steps) * step - pads[i]
        counts.append(np.minimum(begins + window, edge[1]) - np.maximum(begins, edge[0]))
    x = graph.ordered(value, CHANNELS_LAST).node
    if np.any(around):
        x = graph.pad(f"{name}/padded", x, [[0, 0], *around, [0, 0]], 0.0 if average else _LOWEST)
    made = graph.pool(node.op_type, name, x, kernel, strides)
    inside = np.outer(*counts)
    if average and np.any(inside != math.prod(kernel)):
        ratio = (math.prod(kernel) / inside).astype(np.float32)[None, :, :, None]
        made = graph.elementwise("Mul", f"{name}/inside", made, graph.numbers(ratio, f"{name}/ratio"))
    graph.put(name, made, order=CHANNELS_LAST)


def _reduce(graph: ChannelsLastGraph, node: onnx.NodeProto, attributes: Attributes) -> None:
    kinds = {"ReduceMean": "Mean", "ReduceSum": "Sum", "ReduceMax": "Max", "GlobalAveragePool": "Mean"}
    value, name = graph.value(node.input[0]), node.output[0]
    if node.op_type == "GlobalAveragePool":
        found, keep = range(2, len(value.shape)), True
    else:
        given = graph.known(node, 1)
        found = attributes.get("axes", range(len(value.shape))) if given is None else given.tolist()
        keep = bool(attributes.get("keepdims", 1))
    axes = {axis % len(value.shape) for axis in found}
    places = sorted(value.order.index(axis) for axis in axes)
    if node.op_type == "ReduceL2":
        square = graph.elementwise("Square", f"{name}/square", value.node)
        made = graph.elementwise("Sqrt", name, graph.reduce("Sum", f"{name}/sum", square, places, keep=keep))
    else:
        made = graph.reduce(kinds[node.op_type], name, value.node, places, keep=keep)
    left = sorted(set(value.order) - axes)
    order = value.order if keep else tuple(left.index(axis) for axis in value.order if axis in left)
    graph.put(name, made, order=order)


# --- element by element ---------------------------------------------------------------------------------------------


def binary(graph: ChannelsLastGraph, node: onnx.NodeProto, attributes: Attributes) -> None:
    """Compute an operation of two or more inputs that broadcast."""
    (first, *others), order = graph.aligned(node.input)
    for other in others:
        first = graph.elementwise(node.op_type, node.output[0], first, other)
    graph.put(node.output[0], first, order=order)


def unary(graph: ChannelsLastGraph, node: onnx.NodeProto, attributes: Attributes) -> None:
    """Compute an operation of one input."""
    value = graph.value(node.input[0])
    graph.put(node.output[0], graph.elementwise(node.op_type, node.output[0], value.node), order=value.order)


def limit(graph: ChannelsLastGraph, x: str, name: str, low: Array | None, high: Array | None) -> str:
    """Return the node of `x` between `low` and `high`, where they are given."""
    for kind, bound in (("Max", low), ("Min", high)):
        if bound is not None:
            x = graph.elementwise(kind, name, x, graph.numbers(bound.reshape(()), f"{name}/limit"))
    return x


def _elu(graph: ChannelsLastGraph, node: onnx.NodeProto, attributes: Attributes) -> None:
    if attributes.get("alpha", 1.0) != 1.0:
        raise NotImplementedError("Elu with another alpha than 1")
    unary(graph, node, attributes)


def _identity(graph: ChannelsLastGraph, node: onnx.NodeProto, attributes: Attributes) -> None:
    stored = graph.constant(node.input[0])
    if stored is not None:
        graph.keep(node.output[0], stored)
    else:
        value = graph.scaled(node.input[0])
        graph.put(node.output[0], value.node, order=value.order, scale=value.scale)


def _constant(graph: ChannelsLastGraph, node: onnx.NodeProto, attributes: Attributes) -> None:
    graph.keep(node.output[0], Constant(numpy_helper.to_array(attributes["value"])))


# --- normalisation --------------------------------------------------------------------------------------------------


def _softmax(graph: ChannelsLastGraph, node: onnx.NodeProto, attributes: Attributes) -> None:
    value, name = graph.value(node.input[0]), node.output[0]
    axis = attributes.get("axis", -1) % len(value.shape)
    if value.order[-1] != axis:
        value = graph.ordered(value, [*(other for other in value.order if other != axis), axis])
    graph.put(name, graph.softmax(name, value.node), order=value.order)


def _layer_norm(graph: ChannelsLastGraph, node: onnx.NodeProto, attributes: Attributes) -> None:
    value, name = graph.value(node.input[0]), node.output[0]
    first = attributes.get("axis", -1) % len(value.shape)
    places = sorted(value.order.index(axis) for axis in range(first, len(value.shape)))
    mean = graph.reduce("Mean", f"{name}/mean", value.node, places, keep=True)
    centred = graph.elementwise("Sub", f"{name}/centred", value.node, mean)
    square = graph.elementwise("Square", f"{name}/square", centred)
    variance = graph.reduce("Mean", f"{name}/variance", square, places, keep=True)
    epsilon = graph.numbers(np.float32(attributes.get("epsilon", 1e-5)), f"{name}/epsilon")
    above = graph.elementwise("Add", f"{name}/above_zero", variance, epsilon)
    made = graph.elementwise("Mul", f"{name}/normal", centred, graph.elementwise("Rsqrt", f"{name}/inverse", above))
    for kind, position in (("Mul", 1), ("Add", 2)):
        given = graph.known(node, position)
        if given is not None:
            made = graph.elementwise(kind, name, made, graph.numbers(laid(given, value.order), node.input[position]))
    graph.put(name, made, order=value.order)


def _batch_norm(graph: ChannelsLastGraph, node: onnx.NodeProto, attributes: Attributes) -> None:
    value, name = graph.value(node.input[0]), node.output[0]
    found = [graph.known(node, position) for position in range(1, 5)]
    weight, bias, mean, variance = (np.asarray(entry, dtype=np.float64) for entry in found)
    factor = weight / np.sqrt(variance + attributes.get("epsilon", 1e-5))
    shape = (1, -1) + (1,) * (len(value.shape) - 2)
    factor, offset = factor.reshape(shape), (bias - mean * factor).reshape(shape)
    numbers = graph.numbers(laid(factor, value.order), node.input[1])
    made = graph.elementwise("Mul", f"{name}/factor", value.node, numbers)
    made = graph.elementwise("Add", name, made, graph.numbers(laid(offset, value.order), node.input[2]))
    graph.put(name, made, order=value.order)


# --- shapes ---------------------------------------------------------------------------------------------------------


def _transpose(graph: ChannelsLastGraph, node: onnx.NodeProto, attributes: Attributes) -> None:
    """Nothing is moved: the axes get other numbers."""
    value = graph.value(node.input[0])
    places = list(attributes.get("perm", reversed(range(len(value.shape)))))
    graph.put(node.output[0], value.node, order=[places.index(axis) for axis in value.order])


def _reshape(graph: ChannelsLastGraph, node: onnx.NodeProto, attributes: Attributes) -> None:
    """Give another shape: also Flatten, Squeeze and Unsqueeze, whose result ONNX's shape inference knows."""
    value, name = graph.written(node.input[0]), node.output[0]
    graph.put(name, graph.reshape(name, value.node, graph.shape(name)))


def _concat(graph: ChannelsLastGraph, node: onnx.NodeProto, attributes: Attributes) -> None:
    nodes, order = graph.aligned(node.input)
    axis = order.index(attributes["axis"] % len(order))
    graph.put(node.output[0], graph.concatenate(node.output[0], nodes, axis), order=order)


def cut(graph: ChannelsLastGraph, value: Value, name: str, axis: int, first: int, count: int) -> str:
    """Return the node of `count` entries of `value` from `first` on, along ONNX's `axis`."""
    sizes, place = value.here(), value.order.index(axis)
    left = [*sizes[:place], count, *sizes[place + 1 :]]
    if len(sizes) <= _FAST_CUT_AXES:
        return graph.cut(name, value.node, [first if other == place else 0 for other in range(len(sizes))], left)
    before, after = math.prod(sizes[:place]), math.prod(sizes[place + 1 :])
    flat = graph.reshape(name, value.node, [before, sizes[place], after])
    return graph.reshape(name, graph.cut(name, flat, [0, first, 0], [before, count, after]), left)


def _gather(graph: ChannelsLastGraph, node: onnx.NodeProto, attributes: Attributes) -> None:
    indices = graph.known(node, 1)
    value, name = graph.value(node.input[0]), node.output[0]
    axis = attributes.get("axis", 0) % len(value.shape)
    if indices is None or indices.ndim > 1:
        raise NotImplementedError("Gather with indices of more than one axis")
    if indices.ndim == 1:
        wanted = (indices % value.shape[axis]).astype(np.int32)
        graph.put(name, graph.gather(name, value.node, wanted, value.order.index(axis)), order=value.order)
        return
    made = cut(graph, value, f"{name}/cut", axis, int(indices.item()) % value.shape[axis], 1)
    left = [other for other in value.order if other != axis]
    made = graph.reshape(name, made, [value.shape[other] for other in left])
    graph.put(name, made, order=[other - (other > axis) for other in left])


def _split(graph: ChannelsLastGraph, node: onnx.NodeProto, attributes: Attributes) -> None:
    value = graph.value(node.input[0])
    axis, first = attributes.get("axis", 0) % len(value.shape), 0
    counts = [graph.shape(name)[axis] for name in node.output]
    if sum(counts) != value.shape[axis]:  # ONNX's shape inference forgets the rest where parts are not equal
        raise NotImplementedError(f"Split of {value.shape[axis]} into {len(counts)} parts of sizes that are not stated")
    for name, count in zip(node.output, counts, strict=True):
        graph.put(name, cut(graph, value, name, axis, first, count), order=value.order)
        first += count


def _slice(graph: ChannelsLastGraph, node: onnx.NodeProto, attributes: Attributes) -> None:
    value, name = graph.value(node.input[0]), node.output[0]
    starts, ends, axes, steps = (graph.known(node, position) for position in range(1, 5))
    if starts is None or ends is None:
        raise NotImplementedError("Slice without starts and ends")
    axes = np.arange(len(starts)) if axes is None else axes % len(value.shape)
    steps = np.ones(len(starts), dtype=np.int64) if steps is None else steps
    if np.any(steps < 1):
        raise NotImplementedError("Slice with a negative step")
    begins, limits, strides = [0] * len(value.shape), value.here(), [1] * len(value.shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        place = value.order.index(int(axis))
        begins[place], limits[place], strides[place] = slice(int(start), int(end), int(step)).indices(
            value.shape[int(axis)]
        )
    graph.put(name, graph.stride(name, value.node, begins, limits, strides), order=value.order)


def _pad(graph: ChannelsLastGraph, node: onnx.NodeProto, attributes: Attributes) -> None:
    pads, edge = graph.known(node, 1), graph.known(node, 2)
    value, name = graph.value(node.input[0]), node.output[0]
    if attributes.get("mode", b"constant") != b"constant" or pads is None or graph.known(node, 3) is not None:
        raise NotImplementedError("Pad other than with a constant on all axes")
    if np.any(pads < 0):
        raise NotImplementedError("Pad that cuts")
    around = pads.reshape(2, -1).T[list(value.order)]
    made = graph.pad(name, value.node, around, 0.0 if edge is None else float(edge.item()))
    graph.put(name, made, order=value.order)


def _expand(graph: ChannelsLastGraph, node: onnx.NodeProto, attributes: Attributes) -> None:
    shape = graph.shape(node.output[0])
    stored = graph.constant(node.input[0])
    if stored is not None:
        graph.keep(node.output[0], Constant(np.broadcast_to(stored.real(), shape)))
        return
    value, name = graph.written(node.input[0]), node.output[0]
    graph.put(name, graph.broadcast(name, value.node, shape))


OPERATIONS: Mapping[str, Operation[ChannelsLastGraph]] = {
    "Add": binary,
    "AveragePool": _pool,
    "BatchNormalization": _batch_norm,
    "Concat": _concat,
    "Constant": _constant,
    "Div": binary,
    "Elu": _elu,
    "Exp": unary,
    "Expand": _expand,
    "Flatten": _reshape,
    "Gather": _gather,
    "GlobalAveragePool": _reduce,
    "Identity": _identity,
    "LayerNormalization": _layer_norm,
    "Max": binary,
    "MaxPool": _pool,
    "Min": binary,
    "Mul": binary,
    "Neg": unary,
    "Pad": _pad,
    "Pow": binary,
    "ReduceL2": _reduce,
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
    "ReduceSum": _reduce,
    "Reshape": _reshape,
    "Sigmoid": unary,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Sqrt": unary,
    "Squeeze": _reshape,
    "Sub": binary,
    "Tanh": unary,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
