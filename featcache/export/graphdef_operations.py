"""From ONNX's operations to TensorFlow.js's: one function for each, which adds nodes to a `GraphDef`.

What has no equivalent is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from featcache.export.graphdef import (
    INPUT_TYPE,
    Array,
    Constant,
    GraphDef,
    Value,
    laid,
    text,
    texts,
    type_of,
    whole,
)

_CHANNELS_LAST = (0, 2, 3, 1)
_FAST_SLICE_AXES = 4  # one of more axes takes the WebAssembly backend entry by entry
_LOWEST = float(np.finfo(np.float32).min)

Attributes = Mapping[str, Any]


def convert_graph(proto: onnx.ModelProto, *, outputs: tuple[str, ...]) -> GraphDef:
    """Return the TensorFlow graph of the ONNX graph `proto`, of a fixed batch, from its image to `outputs`.

    Raises `NotImplementedError` naming operations, or forms of them, without an equivalent, and `VerificationError`
    where the shape of a tensor is not known.
    """
    graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    unknown = sorted({node.op_type for node in graph.node} - set(_OPERATIONS))
    if unknown:
        raise NotImplementedError(f"operations without a TensorFlow.js form: {', '.join(unknown)}")
    made = GraphDef(graph, outputs=outputs)
    for node in graph.node:
        attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        _OPERATIONS[node.op_type](made, node, attributes)
    made.finish()
    return made


# --- what is quantized ----------------------------------------------------------------------------------------------


def _quantize(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
    """Round to the integers of a scale, less the zero point: the same numbers, around zero."""
    scale, zero = graph.known(node, 1), graph.known(node, 2)
    if scale is None or zero is None or scale.size > 1 or zero.dtype not in (np.int8, np.uint8):
        raise NotImplementedError(f"{node.op_type} of other than 8 bits with one scale for the tensor")
    source, name = graph.scaled(node.input[0]), node.output[0]
    # what is to be scaled is scaled once for both: runtimes of integers do the same
    if source.scale is None:
        moved = graph.node("RealDiv", f"{name}/divided", source.node, graph.numbers(scale.reshape(()), node.input[1]))
    else:
        ratio = graph.numbers(laid(source.scale / scale.reshape(()), source.order), f"{name}/ratio")
        moved = graph.node("Mul", f"{name}/divided", source.node, ratio)
    limits = np.iinfo(zero.dtype)
    low, high = (graph.numbers(np.float32(limit - int(zero.item())), name) for limit in (limits.min, limits.max))
    rounded = graph.node("Round", f"{name}/rounded", moved)
    graph.put(name, graph.node("ClipByValue", name, rounded, low, high), order=source.order)


def _dequantize(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
    stored, scale, zero = graph.constant(node.input[0]), graph.known(node, 1), graph.known(node, 2)
    if scale is None or zero is None:
        raise NotImplementedError(f"{node.op_type} without a scale or a zero point")
    if stored is None:
        value = graph.scaled(node.input[0])
        graph.put(node.output[0], value.node, order=value.order, scale=scale.reshape(()))
        return
    if np.any(zero):
        raise NotImplementedError(f"{node.op_type} of weights around another number than zero")
    along = _along(scale, stored.values, attributes.get("axis", 1))
    graph.keep(node.output[0], Constant(stored.values, along))


def _along(values: Array, stored: Array, axis: int) -> Array:
    """Return `values`, one for each slice of `stored` along `axis` or a single one, with as many axes as `stored`."""
    shape = [1] * stored.ndim
    if values.size > 1:
        shape[axis] = -1
    return values.reshape(shape)


def _product(*scales: Any) -> Any:
    """Return the product of scales in float32, None where there are none."""
    found = [np.asarray(scale, dtype=np.float32) for scale in scales if scale is not None]
    return None if not found else math.prod(found[1:], start=found[0])


def _multiplied(graph: GraphDef, name: str) -> Value:
    """Return a value to be multiplied with others: its integers where one scale is theirs, else its floats."""
    value = graph.scaled(name)
    return value if value.scale is None or np.size(value.scale) == 1 else graph.plain(value)


def _per_output(weight: Constant, axis: int) -> Constant:
    """Return `weight`, its scale left apart only where it is one per output along `axis`, or a single one."""
    if weight.scale is None or weight.scale.size in (1, weight.scale.shape[axis]):
        return weight
    return Constant(weight.real())


def _bias(graph: GraphDef, node: onnx.NodeProto, scale: Any) -> Array | None:
    """Return the node's bias (n,) to be added before the multiplication by `scale`, None without one."""
    if len(node.input) < 3 or not node.input[2]:
        return None
    bias = graph.constant(node.input[2])
    if bias is None:
        raise NotImplementedError(f"{node.op_type} with a computed bias")
    # a stored bias has this very scale, so that the quotient is 1 and it stays the integers that it is
    ratio = (1 if bias.scale is None else bias.scale.astype(np.float64)) / (1 if scale is None else scale.reshape(-1))
    return (bias.values * ratio).reshape(-1).astype(np.float32)


# --- convolutions and pooling ---------------------------------------------------------------------------------------


def _conv(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
    found = graph.constant(node.input[1])
    if found is None or found.values.ndim != 4:
        raise NotImplementedError("Conv other than over height and width with a constant weight")
    weight = _per_output(found, 0)
    source, name = _multiplied(graph, node.input[0]), node.output[0]
    outputs, inputs = weight.values.shape[:2]  # of each group, the inputs
    groups = attributes.get("group", 1)
    scale = _product(source.scale, None if weight.scale is None else weight.scale.reshape(1, -1, 1, 1))
    found_bias = _bias(graph, node, scale)
    bias = np.zeros(outputs, dtype=np.float32) if found_bias is None else found_bias
    kernel = weight.values.transpose(2, 3, 1, 0)
    settings = _conv_settings(attributes)

    def convolve(kind: str, x: str, kernel: Array, part: slice) -> str:
        values = graph.numbers(kernel, node.input[1], integers=weight.scale is not None)
        return graph.node(kind, name, x, values, graph.numbers(bias[part], f"{name}/bias"), **settings)

    x = graph.ordered(source, _CHANNELS_LAST)
    if groups == 1:
        made = convolve("_FusedConv2D", x.node, kernel, slice(None))
    elif inputs == 1:
        kernel = kernel.reshape(*kernel.shape[:2], groups, outputs // groups)
        made = convolve("FusedDepthwiseConv2dNative", x.node, kernel, slice(None))
    else:  # TensorFlow.js has no other groups
        parts = []
        for group in range(groups):
            part = slice(group * outputs // groups, (group + 1) * outputs // groups)
            piece = _cut(graph, x, f"{name}/group", 1, group * inputs, inputs)
            parts.append(convolve("_FusedConv2D", piece, kernel[..., part], part))
        made = graph.node("ConcatV2", name, *parts, graph.numbers(3, f"{name}/axis"), N={"i": str(groups)})
    graph.put(name, made, order=_CHANNELS_LAST, scale=scale)


def _conv_settings(attributes: Attributes) -> dict[str, Any]:
    if attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise NotImplementedError("Conv with automatic padding")
    strides, dilations = attributes.get("strides", [1, 1]), attributes.get("dilations", [1, 1])
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    return {
        "fused_ops": texts("BiasAdd"),
        "num_args": {"i": "1"},
        "strides": whole([1, *strides, 1]),
        "dilations": whole([1, *dilations, 1]),
        "data_format": text("NHWC"),
        "padding": text("EXPLICIT"),
        "explicit_paddings": whole([0, 0, top, bottom, left, right, 0, 0]),
    }


def _pool(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
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
    x = graph.ordered(value, _CHANNELS_LAST).node
    if np.any(around):
        places = graph.numbers([[0, 0], *around, [0, 0]], f"{name}/paddings")
        x = graph.node("PadV2", f"{name}/padded", x, places, graph.numbers(0.0 if average else _LOWEST, f"{name}/edge"))
    made = graph.node(
        "AvgPool" if average else "MaxPool", name, x,
        ksize=whole([1, *kernel, 1]), strides=whole([1, *strides, 1]), padding=text("VALID"),
        data_format=text("NHWC"),
    )  # fmt: skip
    inside = np.outer(*counts)
    if average and np.any(inside != math.prod(kernel)):
        ratio = (math.prod(kernel) / inside).astype(np.float32)[None, :, :, None]
        made = graph.node("Mul", f"{name}/inside", made, graph.numbers(ratio, f"{name}/ratio"))
    graph.put(name, made, order=_CHANNELS_LAST)


def _reduce(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
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
    made = graph.node(
        kinds[node.op_type], name, value.node, graph.numbers(places, f"{name}/axes"),
        keep_dims={"b": keep}, Tidx=type_of("int32"),
    )  # fmt: skip
    left = sorted(set(value.order) - axes)
    order = value.order if keep else tuple(left.index(axis) for axis in value.order if axis in left)
    graph.put(name, made, order=order)


# --- products -------------------------------------------------------------------------------------------------------


def _matmul(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
    left, name = node.input[0], node.output[0]
    if graph.constant(left) is not None:
        raise NotImplementedError(f"{node.op_type} of a constant with a value")
    weight = graph.constant(node.input[1])
    x = graph.as_written(_multiplied(graph, left))
    if weight is None:
        if node.op_type == "Gemm":
            raise NotImplementedError("Gemm of two computed values")
        other = graph.as_written(_multiplied(graph, node.input[1]))
        y, scale = other.node, _product(x.scale, other.scale)
    else:
        if node.op_type == "Gemm" and attributes.get("transB", 0):
            weight = weight.transposed()
        weight = _per_output(weight, -1)
        y = graph.numbers(weight.values, node.input[1], integers=weight.scale is not None)
        scale = _product(x.scale, None if weight.scale is None else weight.scale.reshape(-1))
    flat = {"transpose_a": {"b": False}, "transpose_b": {"b": False}}
    if node.op_type == "Gemm":
        if attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
            raise NotImplementedError("Gemm that scales or transposes its first input")
        made = graph.node("MatMul", f"{name}/product", x.node, y, **flat)
        bias = _bias(graph, node, scale)
        if bias is not None:
            made = graph.node("AddV2", name, made, graph.numbers(bias, f"{name}/bias"))
    else:
        made = graph.node("BatchMatMulV2", name, x.node, y, adj_x={"b": False}, adj_y={"b": False})
    graph.put(name, made, scale=scale)


# --- element by element ---------------------------------------------------------------------------------------------


def _binary(kind: str) -> Callable[[GraphDef, onnx.NodeProto, Attributes], None]:
    def convert(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
        (first, *others), order = graph.aligned(node.input)
        for other in others:
            first = graph.node(kind, node.output[0], first, other)
        graph.put(node.output[0], first, order=order)

    return convert


def _unary(kind: str) -> Callable[[GraphDef, onnx.NodeProto, Attributes], None]:
    def convert(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
        value = graph.value(node.input[0])
        graph.put(node.output[0], graph.node(kind, node.output[0], value.node), order=value.order)

    return convert


def _relu(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
    """Cut at zero, which scales do not move."""
    value, name = graph.scaled(node.input[0]), node.output[0]
    made = value.node if graph.activate(node.input[0], "Relu") else graph.node("Relu", name, value.node)
    graph.put(name, made, order=value.order, scale=value.scale)


def _clip(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
    low, high = graph.known(node, 1), graph.known(node, 2)
    value, name = graph.value(node.input[0]), node.output[0]
    if low is not None and high is not None and (float(low.item()), float(high.item())) == (0.0, 6.0):
        alone = graph.scaled(node.input[0]).scale is None and graph.activate(node.input[0], "Relu6")
        made = value.node if alone else graph.node("Relu6", name, value.node)
    else:
        made = value.node
        for kind, limit in (("Maximum", low), ("Minimum", high)):
            if limit is not None:
                made = graph.node(kind, name, made, graph.numbers(limit.reshape(()), f"{name}/limit"))
    graph.put(name, made, order=value.order)


def _hard_sigmoid(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
    value, name = graph.value(node.input[0]), node.output[0]
    graph.put(name, _hard(graph, value.node, name, attributes.get("alpha", 0.2), attributes.get("beta", 0.5)),
              order=value.order)  # fmt: skip


def _hard_swish(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
    value, name = graph.value(node.input[0]), node.output[0]
    gate = _hard(graph, value.node, f"{name}/gate", 1 / 6, 0.5)
    graph.put(name, graph.node("Mul", name, value.node, gate), order=value.order)


def _hard(graph: GraphDef, x: str, name: str, alpha: float, beta: float) -> str:
    """Return the node of max(0, min(1, alpha · x + beta))."""
    steep = graph.node("Mul", f"{name}/steep", x, graph.numbers(np.float32(alpha), f"{name}/alpha"))
    moved = graph.node("AddV2", f"{name}/moved", steep, graph.numbers(np.float32(beta), f"{name}/beta"))
    low, high = graph.numbers(np.float32(0), f"{name}/low"), graph.numbers(np.float32(1), f"{name}/high")
    return graph.node("ClipByValue", name, moved, low, high)


def _leaky_relu(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
    value, name = graph.value(node.input[0]), node.output[0]
    made = graph.node("LeakyRelu", name, value.node, alpha={"f": float(attributes.get("alpha", 0.01))})
    graph.put(name, made, order=value.order)


def _elu(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
    if attributes.get("alpha", 1.0) != 1.0:
        raise NotImplementedError("Elu with another alpha than 1")
    _unary("Elu")(graph, node, attributes)


def _cast(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
    """Make floats of the image; what else is cast is floats already."""
    if attributes["to"] != onnx.TensorProto.FLOAT:
        raise NotImplementedError("Cast to other than float32")
    value, name = graph.value(node.input[0]), node.output[0]
    made = graph.node("Cast", name, value.node, SrcT=type_of(INPUT_TYPE), DstT=type_of("float32"))
    graph.put(name, made, order=value.order)


def _identity(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
    stored = graph.constant(node.input[0])
    if stored is not None:
        graph.keep(node.output[0], stored)
    else:
        value = graph.scaled(node.input[0])
        graph.put(node.output[0], value.node, order=value.order, scale=value.scale)


def _constant(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
    graph.keep(node.output[0], Constant(numpy_helper.to_array(attributes["value"])))


# --- normalisation --------------------------------------------------------------------------------------------------


def _softmax(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
    value, name = graph.value(node.input[0]), node.output[0]
    axis = attributes.get("axis", -1) % len(value.shape)
    if value.order[-1] != axis:  # TensorFlow's is over the last axis
        value = graph.ordered(value, [*(other for other in value.order if other != axis), axis])
    graph.put(name, graph.node("Softmax", name, value.node), order=value.order)


def _layer_norm(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
    value, name = graph.value(node.input[0]), node.output[0]
    first = attributes.get("axis", -1) % len(value.shape)
    places = sorted(value.order.index(axis) for axis in range(first, len(value.shape)))
    axes = graph.numbers(places, f"{name}/axes")
    settings = {"keep_dims": {"b": True}, "Tidx": type_of("int32")}
    mean = graph.node("Mean", f"{name}/mean", value.node, axes, **settings)
    centred = graph.node("Sub", f"{name}/centred", value.node, mean)
    square = graph.node("Square", f"{name}/square", centred)
    variance = graph.node("Mean", f"{name}/variance", square, axes, **settings)
    epsilon = graph.numbers(np.float32(attributes.get("epsilon", 1e-5)), f"{name}/epsilon")
    inverse = graph.node("Rsqrt", f"{name}/inverse", graph.node("AddV2", f"{name}/above_zero", variance, epsilon))
    made = graph.node("Mul", f"{name}/normal", centred, inverse)
    for kind, position in (("Mul", 1), ("AddV2", 2)):
        given = graph.known(node, position)
        if given is not None:
            made = graph.node(kind, name, made, graph.numbers(laid(given, value.order), node.input[position]))
    graph.put(name, made, order=value.order)


def _batch_norm(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
    value, name = graph.value(node.input[0]), node.output[0]
    found = [graph.known(node, position) for position in range(1, 5)]
    weight, bias, mean, variance = (np.asarray(entry, dtype=np.float64) for entry in found)
    factor = weight / np.sqrt(variance + attributes.get("epsilon", 1e-5))
    shape = (1, -1) + (1,) * (len(value.shape) - 2)
    factor, offset = factor.reshape(shape), (bias - mean * factor).reshape(shape)
    made = graph.node("Mul", f"{name}/factor", value.node, graph.numbers(laid(factor, value.order), node.input[1]))
    made = graph.node("AddV2", name, made, graph.numbers(laid(offset, value.order), node.input[2]))
    graph.put(name, made, order=value.order)


# --- shapes ---------------------------------------------------------------------------------------------------------


def _transpose(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
    """Nothing is moved: the axes get other numbers."""
    value = graph.value(node.input[0])
    places = list(attributes.get("perm", reversed(range(len(value.shape)))))
    graph.put(node.output[0], value.node, order=[places.index(axis) for axis in value.order])


def _reshape(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
    """Give another shape: also Flatten, Squeeze and Unsqueeze, whose result ONNX's shape inference knows."""
    value, name = graph.written(node.input[0]), node.output[0]
    sizes = graph.numbers(np.array(graph.shape(name), dtype=np.int32), f"{name}/shape")
    graph.put(name, graph.node("Reshape", name, value.node, sizes))


def _concat(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
    nodes, order = graph.aligned(node.input)
    axis = graph.numbers(order.index(attributes["axis"] % len(order)), f"{node.output[0]}/axis")
    made = graph.node("ConcatV2", node.output[0], *nodes, axis, N={"i": str(len(nodes))})
    graph.put(node.output[0], made, order=order)


def _cut(graph: GraphDef, value: Value, name: str, axis: int, first: int, count: int) -> str:
    """Return the node of `count` entries of `value` from `first` on, along ONNX's `axis`."""
    sizes, place = value.here(), value.order.index(axis)
    cut = [*sizes[:place], count, *sizes[place + 1 :]]
    if len(sizes) <= _FAST_SLICE_AXES:
        begins = [first if other == place else 0 for other in range(len(sizes))]
        limits = (graph.numbers(numbers, name) for numbers in (begins, cut))
        return graph.node("Slice", name, value.node, *limits)
    before, after = math.prod(sizes[:place]), math.prod(sizes[place + 1 :])
    flat = graph.node("Reshape", name, value.node, graph.numbers([before, sizes[place], after], name))
    limits = (graph.numbers(numbers, name) for numbers in ([0, first, 0], [before, count, after]))
    return graph.node("Reshape", name, graph.node("Slice", name, flat, *limits), graph.numbers(cut, name))


def _gather(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
    indices = graph.known(node, 1)
    value, name = graph.value(node.input[0]), node.output[0]
    axis = attributes.get("axis", 0) % len(value.shape)
    if indices is None or indices.ndim > 1:
        raise NotImplementedError("Gather with indices of more than one axis")
    if indices.ndim == 1:
        place = graph.numbers(value.order.index(axis), f"{name}/axis")
        wanted = graph.numbers((indices % value.shape[axis]).astype(np.int32), f"{name}/indices")
        graph.put(name, graph.node("GatherV2", name, value.node, wanted, place), order=value.order)
        return
    made = _cut(graph, value, f"{name}/cut", axis, int(indices.item()) % value.shape[axis], 1)
    left = [other for other in value.order if other != axis]
    sizes = graph.numbers([value.shape[other] for other in left], f"{name}/shape")
    graph.put(name, graph.node("Reshape", name, made, sizes), order=[other - (other > axis) for other in left])


def _split(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
    value = graph.value(node.input[0])
    axis, first = attributes.get("axis", 0) % len(value.shape), 0
    counts = [graph.shape(name)[axis] for name in node.output]
    if sum(counts) != value.shape[axis]:  # ONNX's shape inference forgets the rest where parts are not equal
        raise NotImplementedError(f"Split of {value.shape[axis]} into {len(counts)} parts of sizes that are not stated")
    for name, count in zip(node.output, counts, strict=True):
        graph.put(name, _cut(graph, value, name, axis, first, count), order=value.order)
        first += count


def _slice(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
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
    inputs = (graph.numbers(entry, name) for entry in (begins, limits, strides))
    masks = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")
    made = graph.node("StridedSlice", name, value.node, *inputs, **{mask: {"i": "0"} for mask in masks})
    graph.put(name, made, order=value.order)


def _pad(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
    pads, edge = graph.known(node, 1), graph.known(node, 2)
    value, name = graph.value(node.input[0]), node.output[0]
    if attributes.get("mode", b"constant") != b"constant" or pads is None or graph.known(node, 3) is not None:
        raise NotImplementedError("Pad other than with a constant on all axes")
    if np.any(pads < 0):
        raise NotImplementedError("Pad that cuts")
    around = pads.reshape(2, -1).T[list(value.order)]
    limit = graph.numbers(np.float32(0 if edge is None else edge.item()), f"{name}/edge")
    made = graph.node("PadV2", name, value.node, graph.numbers(around, f"{name}/paddings"), limit)
    graph.put(name, made, order=value.order)


def _expand(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
    shape = graph.shape(node.output[0])
    stored = graph.constant(node.input[0])
    if stored is not None:
        graph.keep(node.output[0], Constant(np.broadcast_to(stored.real(), shape)))
        return
    value, name = graph.written(node.input[0]), node.output[0]
    sizes = graph.numbers(shape, f"{name}/shape")
    graph.put(name, graph.node("BroadcastTo", name, value.node, sizes))


_OPERATIONS: dict[str, Callable[[GraphDef, onnx.NodeProto, Attributes], None]] = {
    "Add": _binary("AddV2"),
    "AveragePool": _pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _constant,
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Div": _binary("RealDiv"),
    "Elu": _elu,
    "Erf": _unary("Erf"),
    "Exp": _unary("Exp"),
    "Expand": _expand,
    "Flatten": _reshape,
    "Gather": _gather,
    "Gemm": _matmul,
    "GlobalAveragePool": _reduce,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Identity": _identity,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": _leaky_relu,
    "MatMul": _matmul,
    "Max": _binary("Maximum"),
    "MaxPool": _pool,
    "Min": _binary("Minimum"),
    "Mul": _binary("Mul"),
    "Neg": _unary("Neg"),
    "Pad": _pad,
    "Pow": _binary("Pow"),
    "QuantizeLinear": _quantize,
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
    "ReduceSum": _reduce,
    "Relu": _relu,
    "Reshape": _reshape,
    "Sigmoid": _unary("Sigmoid"),
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Sqrt": _unary("Sqrt"),
    "Squeeze": _reshape,
    "Sub": _binary("Sub"),
    "Tanh": _unary("Tanh"),
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
