"""From ONNX's operations to TensorFlow Lite's, where these are not as in every graph with its channels last.

An operation is computed in integers where the ONNX graph reads its input and its weight from integers and rounds its
result to such again, as runtimes of ONNX do. All else computes in floats, between DEQUANTIZE and QUANTIZE, but for
products of integer rows whose result stays floats, a transformer's. FULLY_CONNECTED has no such form with a scale for
its input, only one that rounds each row to the range that it finds there. Each row is therefore given both ends of the
stored range, which weights of zero multiply: what it finds is the stored scale, and its integers are the stored ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from featcache.formats.channels_last.graph import Constant, Value
from featcache.formats.channels_last.operations import (
    CHANNELS_LAST,
    OPERATIONS,
    Operation,
    binary,
    convert_nodes,
    dequantize_constant,
    known_bias,
    known_weight,
    limit,
    per_output,
    unary,
)
from featcache.formats.tflite.graph import Scale, TfliteGraph
from featcache.graph.nodes import Array, Graph, Node, Window, along_axis

_ROW_AXES = 2  # of a batch of vectors


def convert_graph(proto: onnx.ModelProto, *, outputs: tuple[str, ...], halves: bool = False) -> TfliteGraph:
    """Return the TensorFlow Lite graph of the ONNX graph `proto`, of fixed sizes, from its input to `outputs`.

    `halves`: weights that are of half precision are stored so.
    Raises `NotImplementedError` naming operations, or forms of them, without an equivalent, and `VerificationError`
    where the shape of a tensor is not known.
    """
    return convert_nodes(TfliteGraph(Graph(proto), outputs=outputs, halves=halves), _OPERATIONS, form="TensorFlow Lite")


# --- what is quantized ----------------------------------------------------------------------------------------------


def _quantize(graph: TfliteGraph, node: Node) -> None:
    source, name, scale = graph.scaled(node.inputs[0]), node.output, graph.rounded(node)
    made = source.node
    if source.scale != scale:
        shape = graph.sizes(source.node)
        made = graph.node("QUANTIZE", name, source.node, shape=shape, dtype="int8", scale=scale)
    graph.put(name, made, order=source.order)


def _dequantize(graph: TfliteGraph, node: Node) -> None:
    if dequantize_constant(graph, node) or _dequantize_rows(graph, node):
        return
    source, scale = graph.scaled(node.inputs[0]), graph.rounded(node)
    if graph.tensors[source.node].scale != scale:
        raise NotImplementedError(f"{node.kind} with another scale than {node.inputs[0]!r} was quantized with")
    graph.put(node.output, source.node, order=source.order, scale=scale)


def _dequantize_rows(graph: TfliteGraph, node: Node) -> bool:
    """Return whether the DequantizeLinear `node` is one of rows of a table of integers, at places known or computed.

    Raises `NotImplementedError` where the integers are not around zero.
    """
    source, taken = node.inputs[0], graph.constant(node.inputs[0])
    if taken is None and graph.tensors[graph.scaled(source).node].scale is not None:
        return False
    scale, zero = graph.known(node, 1), graph.known(node, 2)
    if scale is None or np.any(zero):
        raise NotImplementedError(f"{node.kind} of rows around another number than zero")
    factor = along_axis(scale, len(graph.shape(source)), node.attributes["axis"])
    if taken is not None:
        graph.keep(node.output, Constant(taken.values.astype(np.float32) * factor))
        return True
    floats = graph.cast(f"{node.output}/floats", graph.written(source).node, "float32")
    graph.put(node.output, graph.elementwise("Mul", node.output, floats, graph.numbers(factor, node.inputs[1])))
    return True


@dataclass(frozen=True, slots=True)
class _End:
    """Where the result of an operation becomes integers: `names` of ONNX's tensors up to there, an activation before.

    `scale`: of the integers.
    """

    names: tuple[str, ...]
    activation: str
    scale: Scale

    def settings(self) -> dict[str, Any]:
        """Return the settings of a node that computes the integers."""
        return {"dtype": "int8", "scale": self.scale, "fusedActivationFunction": self.activation}


def _end(graph: TfliteGraph, node: Node) -> _End | None:
    """Return where the result of `node` is rounded to integers before anything else reads it, None where it is not."""
    names, activation = [node.output], "NONE"
    following = graph.reader(node.output)
    if following is not None and following.kind in ("Relu", "Clip"):
        activation = "RELU" if following.kind == "Relu" else _clipping(following)
        names.append(following.output)
        following = graph.reader(names[-1])
    if following is None or following.kind != "QuantizeLinear" or not activation:
        return None
    return _End((*names, following.output), activation, graph.rounded(following))


def _clipping(node: Node) -> str:
    """Return the activation that the Clip `node` is, nothing where it is none of them."""
    return "RELU6" if node.limits() == (0.0, 6.0) else ""


def _along(weight: Array, scale: Array, axis: int) -> Scale:
    """Return the `scale` of `weight`, one for each slice along `axis`."""
    values = np.broadcast_to(scale.reshape(-1), (weight.shape[axis],))
    return Scale(tuple(values.astype(float).tolist()), axis=axis)


def _parameters(
    graph: TfliteGraph, node: Node, weight: Constant, kernel: Array, axis: int, *, source: Scale | None
) -> list[str]:
    """Return the tensors of a weight and of its bias: of integers for a `source` of integers, else of floats.

    `kernel`: the weight's values as they lie, an output each along `axis`. Floats may have no bias.
    """
    if source is None:
        return [_floats(graph, node.inputs[1], weight, kernel, axis), *_float_bias(graph, node)]
    assert weight.scale is not None
    scale = _along(kernel, weight.scale, axis)
    product = np.float32(source.values[0]) * np.array(scale.values, dtype=np.float32)
    bias = known_bias(graph, node, product)
    whole = np.zeros(kernel.shape[axis]) if bias is None else np.rint(bias)
    limits = np.iinfo(np.int32)
    integers = np.clip(whole, limits.min, limits.max).astype(np.int32)
    return [
        graph.stored(kernel, node.inputs[1], scale),
        graph.stored(integers, f"{node.output}/bias", Scale(tuple(product.astype(float).tolist()))),
    ]


def _float_bias(graph: TfliteGraph, node: Node) -> list[str]:
    bias = known_bias(graph, node, None)
    return [] if bias is None else [graph.numbers(bias, f"{node.output}/bias")]


def _floats(graph: TfliteGraph, name: str, weight: Constant, kernel: Array, axis: int) -> str:
    """Return the tensor of a weight to be computed with in floats."""
    if weight.scale is None:
        return graph.numbers(kernel, name)
    stored = graph.stored(kernel, name, _along(kernel, weight.scale, axis))
    return graph.node("DEQUANTIZE", f"{name}/dequantized", stored, shape=kernel.shape)


# --- convolutions ---------------------------------------------------------------------------------------------------


def _conv(graph: TfliteGraph, node: Node) -> None:
    weight = known_weight(graph, node)
    source, end = graph.scaled(node.inputs[0]), _end(graph, node)
    if source.scale is None or weight.scale is None or end is None:
        source, end = graph.plain(source), None
    names, settings = ((node.output,), {}) if end is None else (end.names, end.settings())
    window = node.window()
    outputs, inputs = weight.values.shape[:2]  # of each group, the inputs
    depthwise = inputs == 1 and node.attributes["group"] > 1
    kernel = weight.values.transpose(1, 2, 3, 0) if depthwise else weight.values.transpose(0, 2, 3, 1)
    tensors = _parameters(graph, node, weight, kernel, 3 if depthwise else 0, source=source.scale)
    if len(tensors) == 1:  # unlike a product, a convolution must have a bias
        tensors.append(graph.numbers(np.zeros(outputs), f"{names[-1]}/bias"))
    settings |= {
        "strideH": window.strides[0], "strideW": window.strides[1],
        "dilationHFactor": window.dilations[0], "dilationWFactor": window.dilations[1],
    }  # fmt: skip
    x = graph.ordered(source, CHANNELS_LAST)
    padded, padding = _padded(graph, x, f"{names[-1]}/padded", window)
    _, _, height, width = graph.shape(node.output)
    if depthwise:
        kind, table, settings["depthMultiplier"] = "DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions", outputs // x.shape[1]
    else:
        kind, table = "CONV_2D", "Conv2DOptions"
    made = graph.node(
        kind, names[-1], padded, *tensors, shape=(1, height, width, outputs), table=table, padding=padding, **settings
    )
    for written in names:
        graph.put(written, made, order=CHANNELS_LAST)


def _padded(graph: TfliteGraph, x: Value, name: str, window: Window) -> tuple[str, str]:
    """Return the node to convolve and how: ``VALID``, or ``SAME`` where that adds the very same zeros.

    Zeros that no window reads are left out.
    """
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(window.kernel, window.dilations, strict=True)]
    pads = window.pads
    around, same = [], True
    for i, (size, span, step) in enumerate(zip(x.shape[2:], reach, window.strides, strict=True)):
        steps = (size + pads[i] + pads[i + 2] - span) // step + 1
        needed = max((steps - 1) * step + span - size, 0)
        around.append((pads[i], max(needed - pads[i], 0)))
        same = same and steps == math.ceil(size / step) and pads[i] == needed // 2
    if not np.any(around):
        return x.node, "VALID"
    return (x.node, "SAME") if same else (graph.pad(name, x.node, [(0, 0), *around, (0, 0)], 0), "VALID")


# --- products -------------------------------------------------------------------------------------------------------


def _matmul(graph: TfliteGraph, node: Node) -> None:
    left, name = node.inputs[0], node.output
    if graph.constant(left) is not None:
        raise NotImplementedError(f"{node.kind} of a constant with a value")
    transposed = node.kind == "Gemm" and node.transposes_weight()
    weight = graph.constant(node.inputs[1])
    if weight is None or weight.values.ndim != _ROW_AXES:
        if node.kind == "Gemm":
            raise NotImplementedError("Gemm of two computed values")
        _batch_matmul(graph, node)
        return
    if not transposed:
        weight = weight.transposed()
    weight = per_output(weight, 0)  # (outputs, inputs)
    source, end = graph.scaled(left), _end(graph, node)
    rows = len(source.shape) > _ROW_AXES
    names: tuple[str, ...] = (name,)
    settings: dict[str, Any] = {"keepNumDims": rows}
    if source.scale is None or weight.scale is None or not (rows or end):
        source = graph.plain(source)
        tensors = _parameters(graph, node, weight, weight.values, 0, source=None)
    elif end is None:
        source, settings["asymmetricQuantizeInputs"] = graph.plain(graph.spanning(source)), True
        kernel = np.pad(weight.values, [(0, 0), (0, source.shape[-1] - weight.values.shape[1])])
        tensors = [graph.stored(kernel, node.inputs[1], _along(kernel, weight.scale, 0)), *_float_bias(graph, node)]
    else:
        names, settings = end.names, settings | end.settings()
        tensors = _parameters(graph, node, weight, weight.values, 0, source=source.scale)
    x = graph.as_written(source)
    made = graph.node(
        "FULLY_CONNECTED", names[-1], x.node, *tensors, shape=(*x.shape[:-1], weight.values.shape[0]),
        table="FullyConnectedOptions", **settings,
    )  # fmt: skip
    for written in names:
        graph.put(written, made)


def _batch_matmul(graph: TfliteGraph, node: Node) -> None:
    """Multiply two values, or a value and matrices; a transposed second one is read as it lies."""
    x, constant = graph.written(node.inputs[0]), graph.constant(node.inputs[1])
    if constant is not None:
        y, shape, swapped = graph.numbers(constant.real(), node.inputs[1]), constant.values.shape, False
    else:
        other = graph.value(node.inputs[1])
        axes = range(len(other.shape))
        turned = (*axes[:-2], axes[-1], axes[-2])
        swapped = other.order == turned
        other = other if swapped else graph.as_written(other)
        y, shape = other.node, other.shape
    batch = np.broadcast_shapes(x.shape[:-2], shape[:-2])
    made = graph.node(
        "BATCH_MATMUL", node.output, x.node, y, shape=(*batch, x.shape[-2], shape[-1]),
        table="BatchMatMulOptions", adjY=swapped,
    )  # fmt: skip
    graph.put(node.output, made)


# --- element by element ---------------------------------------------------------------------------------------------


def _add(graph: TfliteGraph, node: Node) -> None:
    """Add integers where they are summed to integers, and a product's bias where that is one."""
    first, second = node.inputs
    if graph.constant(first) is None and graph.constant(second) is None:
        end, values = _end(graph, node), [graph.scaled(name) for name in node.inputs]
        if end is not None and None not in [value.scale for value in values] and values[0].shape == values[1].shape:
            order = values[0].order
            made = graph.node(
                "ADD", end.names[-1], *(graph.ordered(value, order).node for value in values), table="AddOptions",
                shape=values[0].here(), **end.settings(),
            )  # fmt: skip
            for written in end.names:
                graph.put(written, made, order=order)
            return
    for product, name in ((first, second), (second, first)):
        bias = graph.constant(name)
        if bias is not None and graph.add_bias(product, bias.real()):
            value = graph.scaled(product)
            graph.put(node.output, value.node, order=value.order)
            return
    binary(graph, node)


def _relu(graph: TfliteGraph, node: Node) -> None:
    _activation(graph, node, "RELU")


def _activation(graph: TfliteGraph, node: Node, kind: str) -> None:
    value, name = graph.value(node.inputs[0]), node.output
    fused = graph.activate(node.inputs[0], kind)
    made = value.node if fused else graph.node(kind, name, value.node, shape=value.here())
    graph.put(name, made, order=value.order)


def _clip(graph: TfliteGraph, node: Node) -> None:
    if _clipping(node):
        _activation(graph, node, _clipping(node))
        return
    value, name = graph.value(node.inputs[0]), node.output
    made = limit(graph, value.node, name, *node.limits())
    graph.put(name, made, order=value.order)


def _hard_swish(graph: TfliteGraph, node: Node) -> None:
    value, name = graph.value(node.inputs[0]), node.output
    graph.put(name, graph.node("HARD_SWISH", name, value.node, shape=value.here()), order=value.order)


def _hard_sigmoid(graph: TfliteGraph, node: Node) -> None:
    """Compute max(0, min(1, alpha · x + beta)) as a sixth of the RELU6 of six times that."""
    value, name = graph.value(node.inputs[0]), node.output
    alpha, beta = 6 * node.attributes["alpha"], 6 * node.attributes["beta"]
    made = value.node
    if not math.isclose(alpha, 1, rel_tol=1e-6):  # it is a sixth nearly always, which float32 cannot hold
        made = graph.elementwise("Mul", f"{name}/steep", made, graph.numbers(np.float32(alpha), f"{name}/alpha"))
    made = graph.node(
        "ADD", f"{name}/moved", made, graph.numbers(np.float32(beta), f"{name}/beta"), shape=value.here(),
        table="AddOptions", fusedActivationFunction="RELU6",
    )  # fmt: skip
    sixth = graph.numbers(np.float32(1 / 6), f"{name}/sixth")
    graph.put(name, graph.elementwise("Mul", name, made, sixth), order=value.order)


def _leaky_relu(graph: TfliteGraph, node: Node) -> None:
    value, name, alpha = graph.value(node.inputs[0]), node.output, float(node.attributes["alpha"])
    made = graph.node("LEAKY_RELU", name, value.node, shape=value.here(), table="LeakyReluOptions", alpha=alpha)
    graph.put(name, made, order=value.order)


def _cast(graph: TfliteGraph, node: Node) -> None:
    dtype = _CASTS.get(node.attributes["to"])
    if dtype is None:
        raise NotImplementedError("Cast to other than float32, whole numbers or truth values")
    value, name = graph.value(node.inputs[0]), node.output
    graph.put(name, graph.cast(name, value.node, dtype), order=value.order)


def _is_nan(graph: TfliteGraph, node: Node) -> None:
    """Compare numbers with themselves: only what is none differs."""
    value = graph.value(node.inputs[0])
    graph.put(node.output, graph.elementwise("NotEqual", node.output, value.node, value.node), order=value.order)


def _where(graph: TfliteGraph, node: Node) -> None:
    (condition, x, y), order = graph.aligned(node.inputs)
    graph.put(node.output, graph.select(node.output, condition, x, y), order=order)


def _gather(graph: TfliteGraph, node: Node) -> None:
    """Look rows up in a table; of tokens, places are known here already."""
    table, places = graph.constant(node.inputs[0]), graph.constant(node.inputs[1])
    if table is None:
        OPERATIONS["Gather"](graph, node)
    elif places is not None:
        if table.scale is not None:
            table = Constant(table.real())
        graph.keep(node.output, Constant(np.take(table.values, places.values, axis=node.attributes["axis"])))
    elif node.attributes["axis"] != 0 or table.values.ndim != _ROW_AXES:
        raise NotImplementedError("Gather at computed places of other than rows")
    else:
        rows = graph.written(node.inputs[1]).node
        graph.put(node.output, graph.lookup(node.output, table, node.inputs[0], rows))


def _erf(graph: TfliteGraph, node: Node) -> None:
    """Compute x · (1 + erf(x / √2)) / 2, of which ONNX has the parts and TensorFlow Lite only the whole: GELU."""
    inner = graph.source.maker(node.inputs[0])
    above = graph.reader(node.output)
    product = None if above is None else graph.reader(above.output)
    if inner is None or above is None or product is None or not _is(graph, above, "Add", 1):
        raise NotImplementedError("Erf outside of GELU")
    x = inner.inputs[0]
    if not (_is(graph, inner, "Div", math.sqrt(2)) or _is(graph, inner, "Mul", math.sqrt(0.5))):
        raise NotImplementedError("Erf outside of GELU")
    (other,) = [name for name in product.inputs if name != above.output]
    half, end = graph.source.maker(other), product
    if other == x:
        last = graph.reader(product.output)
        half, end = last, last or product
    if product.kind != "Mul" or half is None or not _is(graph, half, "Mul", 0.5) or (other != x != half.inputs[0]):
        raise NotImplementedError("Erf outside of GELU")
    value = graph.value(x)
    made = graph.node("GELU", end.output, value.node, shape=value.here(), table="GeluOptions", approximate=False)
    for name in {node.output, above.output, product.output, end.output}:
        graph.put(name, made, order=value.order)


def _is(graph: TfliteGraph, node: Node, kind: str, number: float) -> bool:
    """Return whether `node` computes `kind` of something and, second, the constant `number`."""
    constant = graph.constant(node.inputs[1]) if node.kind == kind else None
    return constant is not None and constant.values.size == 1 and math.isclose(
        float(constant.values.item()), number, rel_tol=1e-6
    )  # fmt: skip


_CASTS = {
    onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT32: "int32", onnx.TensorProto.INT64: "int32",
    onnx.TensorProto.BOOL: "bool",
}  # fmt: skip
_OPERATIONS: Mapping[str, Operation[TfliteGraph]] = {
    **OPERATIONS,
    "Add": _add,
    "And": binary,
    "Cast": _cast,
    "Clip": _clip,
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Equal": binary,
    "Erf": _erf,
    "Gather": _gather,
    "Gemm": _matmul,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "IsNaN": _is_nan,
    "LeakyRelu": _leaky_relu,
    "MatMul": _matmul,
    "Not": unary,
    "QuantizeLinear": _quantize,
    "Relu": _relu,
    "Where": _where,
}
