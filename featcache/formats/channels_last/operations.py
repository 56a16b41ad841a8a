"""ONNX's operations in a graph with its channels last, whatever its format: one function for each.

What depends on the format, above all what is quantized, each format's own functions add. What has no equivalent is
refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from featcache.formats.channels_last.graph import ChannelsLastGraph, Constant, Value, laid
from featcache.graph.nodes import Array, Node

CHANNELS_LAST = (0, 2, 3, 1)
_FAST_CUT_AXES = 4  # runtimes cut more axes entry by entry, or not at all
_IMAGE_AXES = 4
_LOWEST = float(np.finfo(np.float32).min)

Writer = TypeVar("Writer", bound=ChannelsLastGraph)
Operation = Callable[[Writer, Node], None]


def convert_nodes(graph: Writer, operations: Mapping[str, Operation[Writer]], *, form: str) -> Writer:
    """Return `graph`, finished: with the nodes of its ONNX graph; one whose outputs another took over is passed by.

    Raises `NotImplementedError` naming operations, or forms of them, without an equivalent in `form`, and
    `VerificationError` where the shape of a tensor is not known.
    """
    graph.source.check_kinds(operations, form=form)
    for node in graph.source.nodes:
        if not graph.computed(node.outputs):
            operations[node.kind](graph, node)
    graph.finish()
    return graph


# --- what is quantized ----------------------------------------------------------------------------------------------


def dequantize_constant(graph: ChannelsLastGraph, node: Node) -> bool:
    """Return whether the DequantizeLinear `node` is one of stored integers, which then keep its scale.

    Raises `NotImplementedError` where they are not around zero, as weights and biases are.
    """
    stored = node.stored()
    if stored is None:
        return False
    if np.any(stored.zero_point):
        raise NotImplementedError(f"{node.kind} of weights around another number than zero")
    graph.keep(node.output, Constant(stored.values, stored.scale))
    return True


def per_output(weight: Constant, axis: int) -> Constant:
    """Return `weight`, its scale left apart only where it is one per output along `axis`, or a single one."""
    if weight.scale is None or weight.scale.size in (1, weight.scale.shape[axis]):
        return weight
    return Constant(weight.real())


def known_bias(graph: ChannelsLastGraph, node: Node, scale: Any) -> Array | None:
    """Return the node's bias (n,) float64, to be added before the multiplication by `scale`, None without one.

    Raises `NotImplementedError` where it is computed.
    """
    if not node.has(2):
        return None
    bias = graph.constant(node.inputs[2])
    if bias is None:
        raise NotImplementedError(f"{node.kind} with a computed bias")
    # a stored bias has this very scale, so that the quotient is 1 and it stays the integers that it is
    ratio = (1 if bias.scale is None else bias.scale.astype(np.float64)) / (1 if scale is None else scale.reshape(-1))
    values: Array = (bias.values * ratio).reshape(-1)
    return values


def known_weight(graph: ChannelsLastGraph, node: Node) -> Constant:
    """Return the weight (outputs, inputs of a group, height, width) of a convolution of images.

    Raises `NotImplementedError` for other convolutions.
    """
    weight = graph.constant(node.inputs[1])
    if weight is None or weight.values.ndim != _IMAGE_AXES:
        raise NotImplementedError("Conv other than over height and width with a constant weight")
    return per_output(weight, 0)


# --- pooling --------------------------------------------------------------------------------------------------------


def _pool(graph: ChannelsLastGraph, node: Node) -> None:
    """Pad what the window reaches beyond the edge, pool, and divide averages by what lay inside."""
    window = node.window()
    kernel, strides, pads = window.kernel, window.strides, window.pads
    if any(step != 1 for step in window.dilations) or len(kernel) != 2:
        raise NotImplementedError(f"{node.kind} other than over height and width without dilation")
    value, name = graph.value(node.inputs[0]), node.output
    average = node.kind == "AveragePool"
    around, counts = [], []
    for i, (size, length, step) in enumerate(zip(value.shape[2:], kernel, strides, strict=True)):
        steps = graph.shape(name)[2 + i]
        last = (steps - 1) * step + length  # where the last window ends, counted from the first one's begin
        around.append([pads[i], max(last - size - pads[i], 0)])
        edge = (-pads[i], size + pads[i + 2]) if node.attributes.get("count_include_pad") else (0, size)
        begins = np.arange(steps) * step - pads[i]
        counts.append(np.minimum(begins + length, edge[1]) - np.maximum(begins, edge[0]))
    x = graph.ordered(value, CHANNELS_LAST).node
    if np.any(around):
        x = graph.pad(f"{name}/padded", x, [[0, 0], *around, [0, 0]], 0.0 if average else _LOWEST)
    made = graph.pool(node.kind, name, x, kernel, strides)
    inside = np.outer(*counts)
    if average and np.any(inside != math.prod(kernel)):
        ratio = (math.prod(kernel) / inside).astype(np.float32)[None, :, :, None]
        made = graph.elementwise("Mul", f"{name}/inside", made, graph.numbers(ratio, f"{name}/ratio"))
    graph.put(name, made, order=CHANNELS_LAST)


def _reduce(graph: ChannelsLastGraph, node: Node) -> None:
    kinds = {"ReduceMean": "Mean", "ReduceSum": "Sum", "ReduceMax": "Max", "GlobalAveragePool": "Mean"}
    value, name = graph.value(node.inputs[0]), node.output
    if node.kind == "GlobalAveragePool":
        axes, keep = set(range(2, len(value.shape))), True
    else:
        axes, keep = set(node.axes(len(value.shape))), bool(node.attributes["keepdims"])
    places = sorted(value.order.index(axis) for axis in axes)
    if node.kind == "ReduceL2":
        square = graph.elementwise("Square", f"{name}/square", value.node)
        made = graph.elementwise("Sqrt", name, graph.reduce("Sum", f"{name}/sum", square, places, keep=keep))
    else:
        made = graph.reduce(kinds[node.kind], name, value.node, places, keep=keep)
    left = sorted(set(value.order) - axes)
    order = value.order if keep else tuple(left.index(axis) for axis in value.order if axis in left)
    graph.put(name, made, order=order)


# --- element by element ---------------------------------------------------------------------------------------------


def binary(graph: ChannelsLastGraph, node: Node) -> None:
    """Compute an operation of two or more inputs that broadcast."""
    (first, *others), order = graph.aligned(node.inputs)
    for other in others:
        first = graph.elementwise(node.kind, node.output, first, other)
    graph.put(node.output, first, order=order)


def unary(graph: ChannelsLastGraph, node: Node) -> None:
    """Compute an operation of one input."""
    value = graph.value(node.inputs[0])
    graph.put(node.output, graph.elementwise(node.kind, node.output, value.node), order=value.order)


def limit(graph: ChannelsLastGraph, x: str, name: str, low: float | None, high: float | None) -> str:
    """Return the node of `x` between `low` and `high`, where they are given."""
    for kind, bound in (("Max", low), ("Min", high)):
        if bound is not None:
            x = graph.elementwise(kind, name, x, graph.numbers(np.float32(bound), f"{name}/limit"))
    return x


def _elu(graph: ChannelsLastGraph, node: Node) -> None:
    if node.attributes["alpha"] != 1.0:
        raise NotImplementedError("Elu with another alpha than 1")
    unary(graph, node)


def _identity(graph: ChannelsLastGraph, node: Node) -> None:
    stored = graph.constant(node.inputs[0])
    if stored is not None:
        graph.keep(node.output, stored)
    else:
        value = graph.scaled(node.inputs[0])
        graph.put(node.output, value.node, order=value.order, scale=value.scale)


# --- normalisation --------------------------------------------------------------------------------------------------


def _softmax(graph: ChannelsLastGraph, node: Node) -> None:
    value, name = graph.value(node.inputs[0]), node.output
    axis = node.attributes["axis"] % len(value.shape)
    if value.order[-1] != axis:
        value = graph.ordered(value, [*(other for other in value.order if other != axis), axis])
    graph.put(name, graph.softmax(name, value.node), order=value.order)


def _layer_norm(graph: ChannelsLastGraph, node: Node) -> None:
    value, name = graph.value(node.inputs[0]), node.output
    first = node.attributes["axis"] % len(value.shape)
    places = sorted(value.order.index(axis) for axis in range(first, len(value.shape)))
    mean = graph.reduce("Mean", f"{name}/mean", value.node, places, keep=True)
    centred = graph.elementwise("Sub", f"{name}/centred", value.node, mean)
    square = graph.elementwise("Square", f"{name}/square", centred)
    variance = graph.reduce("Mean", f"{name}/variance", square, places, keep=True)
    epsilon = graph.numbers(np.float32(node.attributes["epsilon"]), f"{name}/epsilon")
    above = graph.elementwise("Add", f"{name}/above_zero", variance, epsilon)
    made = graph.elementwise("Mul", f"{name}/normal", centred, graph.elementwise("Rsqrt", f"{name}/inverse", above))
    for kind, position in (("Mul", 1), ("Add", 2)):
        factor = graph.known(node, position)
        if factor is not None:
            made = graph.elementwise(kind, name, made, graph.numbers(laid(factor, value.order), node.inputs[position]))
    graph.put(name, made, order=value.order)


def _batch_norm(graph: ChannelsLastGraph, node: Node) -> None:
    value, name = graph.value(node.inputs[0]), node.output
    weight, bias, mean, variance = (
        np.asarray(graph.known(node, position), dtype=np.float64) for position in range(1, 5)
    )
    factor = weight / np.sqrt(variance + node.attributes["epsilon"])
    shape = (1, -1) + (1,) * (len(value.shape) - 2)
    factor, offset = factor.reshape(shape), (bias - mean * factor).reshape(shape)
    numbers = graph.numbers(laid(factor, value.order), node.inputs[1])
    made = graph.elementwise("Mul", f"{name}/factor", value.node, numbers)
    made = graph.elementwise("Add", name, made, graph.numbers(laid(offset, value.order), node.inputs[2]))
    graph.put(name, made, order=value.order)


# --- shapes ---------------------------------------------------------------------------------------------------------


def _transpose(graph: ChannelsLastGraph, node: Node) -> None:
    """Nothing is moved: the axes get other numbers."""
    value = graph.value(node.inputs[0])
    places = list(node.attributes.get("perm", reversed(range(len(value.shape)))))
    graph.put(node.output, value.node, order=[places.index(axis) for axis in value.order])


def _reshape(graph: ChannelsLastGraph, node: Node) -> None:
    """Give another shape: also Flatten, Squeeze and Unsqueeze, whose result ONNX's shape inference knows."""
    value, name = graph.written(node.inputs[0]), node.output
    graph.put(name, graph.reshape(name, value.node, graph.shape(name)))


def _concat(graph: ChannelsLastGraph, node: Node) -> None:
    nodes, order = graph.aligned(node.inputs)
    axis = order.index(node.attributes["axis"] % len(order))
    graph.put(node.output, graph.concatenate(node.output, nodes, axis), order=order)


def cut(graph: ChannelsLastGraph, value: Value, name: str, axis: int, first: int, count: int) -> str:
    """Return the node of `count` entries of `value` from `first` on, along ONNX's `axis`."""
    sizes, place = value.here(), value.order.index(axis)
    left = [*sizes[:place], count, *sizes[place + 1 :]]
    if len(sizes) <= _FAST_CUT_AXES:
        return graph.cut(name, value.node, [first if other == place else 0 for other in range(len(sizes))], left)
    before, after = math.prod(sizes[:place]), math.prod(sizes[place + 1 :])
    flat = graph.reshape(name, value.node, [before, sizes[place], after])
    return graph.reshape(name, graph.cut(name, flat, [0, first, 0], [before, count, after]), left)


def _gather(graph: ChannelsLastGraph, node: Node) -> None:
    indices = graph.known(node, 1)
    value, name = graph.value(node.inputs[0]), node.output
    axis = node.attributes["axis"] % len(value.shape)
    if indices is None:
        raise NotImplementedError("Gather of a computed value at computed places")
    if indices.ndim == 1:
        wanted = (indices % value.shape[axis]).astype(np.int32)
        graph.put(name, graph.gather(name, value.node, wanted, value.order.index(axis)), order=value.order)
        return
    if indices.ndim > 1:
        wanted = (indices.reshape(-1) % value.shape[axis]).astype(np.int32)
        made = graph.gather(f"{name}/flat", graph.as_written(value).node, wanted, axis)
        graph.put(name, graph.reshape(name, made, graph.shape(name)))
        return
    made = cut(graph, value, f"{name}/cut", axis, int(indices.item()) % value.shape[axis], 1)
    left = [other for other in value.order if other != axis]
    made = graph.reshape(name, made, [value.shape[other] for other in left])
    graph.put(name, made, order=[other - (other > axis) for other in left])


def _split(graph: ChannelsLastGraph, node: Node) -> None:
    value = graph.value(node.inputs[0])
    axis, first = node.attributes["axis"] % len(value.shape), 0
    for name, count in zip(node.outputs, node.split_sizes(value.shape[axis]), strict=True):
        graph.put(name, cut(graph, value, name, axis, first, count), order=value.order)
        first += count


def _slice(graph: ChannelsLastGraph, node: Node) -> None:
    value, name = graph.value(node.inputs[0]), node.output
    axes = node.slices(value.shape)
    begins, ends, steps = ([getattr(axes[axis], end) for axis in value.order] for end in ("start", "stop", "step"))
    graph.put(name, graph.stride(name, value.node, begins, ends, steps), order=value.order)


def _pad(graph: ChannelsLastGraph, node: Node) -> None:
    value, name = graph.value(node.inputs[0]), node.output
    around = np.array(node.paddings(len(value.shape)))[list(value.order)]
    graph.put(name, graph.pad(name, value.node, around, node.pad_value()), order=value.order)


def _expand(graph: ChannelsLastGraph, node: Node) -> None:
    shape = graph.shape(node.output)
    stored = graph.constant(node.inputs[0])
    if stored is not None:
        graph.keep(node.output, Constant(np.broadcast_to(stored.real(), shape)))
        return
    value, name = graph.written(node.inputs[0]), node.output
    graph.put(name, graph.broadcast(name, value.node, shape))


OPERATIONS: Mapping[str, Operation[ChannelsLastGraph]] = {
    "Add": binary,
    "AveragePool": _pool,
    "BatchNormalization": _batch_norm,
    "Concat": _concat,
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
