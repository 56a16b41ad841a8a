"""From ONNX's operations to TensorFlow.js's, where these are not as in every graph with its channels last."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from featcache.formats.channels_last.graph import Value, laid
from featcache.formats.channels_last.operations import (
    CHANNELS_LAST,
    OPERATIONS,
    Operation,
    convert_nodes,
    cut,
    dequantize_constant,
    known_bias,
    known_weight,
    limit,
    per_output,
    unary,
)
from featcache.formats.tfjs.graphdef import INPUT_TYPE, GraphDef, text, texts, type_of, whole
from featcache.graph.nodes import Array, Graph, Node


def convert_graph(proto: onnx.ModelProto, *, outputs: tuple[str, ...], halves: bool = False) -> GraphDef:
    """Return the TensorFlow graph of the ONNX graph `proto`, of a fixed batch, from its image to `outputs`.

    `halves`: weights that are of half precision are stored so.
    Raises `NotImplementedError` naming operations, or forms of them, without an equivalent, and `VerificationError`
    where the shape of a tensor is not known.
    """
    return convert_nodes(GraphDef(Graph(proto), outputs=outputs, halves=halves), _OPERATIONS, form="TensorFlow.js")


# --- what is quantized ----------------------------------------------------------------------------------------------


def _quantize(graph: GraphDef, node: Node) -> None:
    """Round to the integers of a scale, less the zero point: the same numbers, around zero."""
    scale, zero = graph.known(node, 1), graph.known(node, 2)
    if scale is None or zero is None or scale.size > 1 or zero.dtype not in (np.int8, np.uint8):
        raise NotImplementedError(f"{node.kind} of other than 8 bits with one scale for the tensor")
    source, name = graph.scaled(node.inputs[0]), node.output
    # what is to be scaled is scaled once for both: runtimes of integers do the same
    if source.scale is None:
        moved = graph.node("RealDiv", f"{name}/divided", source.node, graph.numbers(scale.reshape(()), node.inputs[1]))
    else:
        ratio = graph.numbers(laid(source.scale / scale.reshape(()), source.order), f"{name}/ratio")
        moved = graph.node("Mul", f"{name}/divided", source.node, ratio)
    limits = np.iinfo(zero.dtype)
    low, high = (graph.numbers(np.float32(limit - int(zero.item())), name) for limit in (limits.min, limits.max))
    rounded = graph.node("Round", f"{name}/rounded", moved)
    graph.put(name, graph.node("ClipByValue", name, rounded, low, high), order=source.order)


def _dequantize(graph: GraphDef, node: Node) -> None:
    if not dequantize_constant(graph, node):
        value, scale = graph.scaled(node.inputs[0]), graph.known(node, 1)
        graph.put(node.output, value.node, order=value.order, scale=np.asarray(scale).reshape(()))


def _product(*scales: Any) -> Any:
    """Return the product of scales in float32, None where there are none."""
    factors = [np.asarray(scale, dtype=np.float32) for scale in scales if scale is not None]
    return None if not factors else math.prod(factors[1:], start=factors[0])


def _bias(graph: GraphDef, node: Node, scale: Any) -> Array | None:
    """Return the node's bias (n,) float32 to be added before the multiplication by `scale`, None without one."""
    bias = known_bias(graph, node, scale)
    return None if bias is None else bias.astype(np.float32)


def _multiplied(graph: GraphDef, name: str) -> Value:
    """Return a value to be multiplied with others: its integers where one scale is theirs, else its floats."""
    value = graph.scaled(name)
    return value if value.scale is None or np.size(value.scale) == 1 else graph.plain(value)


# --- convolutions ---------------------------------------------------------------------------------------------------


def _conv(graph: GraphDef, node: Node) -> None:
    weight = known_weight(graph, node)
    source, name = _multiplied(graph, node.inputs[0]), node.output
    outputs, inputs = weight.values.shape[:2]  # of each group, the inputs
    groups = node.attributes["group"]
    scale = _product(source.scale, None if weight.scale is None else weight.scale.reshape(1, -1, 1, 1))
    stored_bias = _bias(graph, node, scale)
    bias = np.zeros(outputs, dtype=np.float32) if stored_bias is None else stored_bias
    kernel = weight.values.transpose(2, 3, 1, 0)
    settings = _conv_settings(node)

    def convolve(kind: str, x: str, kernel: Array, part: slice) -> str:
        values = graph.numbers(kernel, node.inputs[1], integers=weight.scale is not None)
        return graph.node(kind, name, x, values, graph.numbers(bias[part], f"{name}/bias"), **settings)

    x = graph.ordered(source, CHANNELS_LAST)
    if groups == 1:
        made = convolve("_FusedConv2D", x.node, kernel, slice(None))
    elif inputs == 1:
        kernel = kernel.reshape(*kernel.shape[:2], groups, outputs // groups)
        made = convolve("FusedDepthwiseConv2dNative", x.node, kernel, slice(None))
    else:  # TensorFlow.js has no other groups
        parts = []
        for group in range(groups):
            part = slice(group * outputs // groups, (group + 1) * outputs // groups)
            piece = cut(graph, x, f"{name}/group", 1, group * inputs, inputs)
            parts.append(convolve("_FusedConv2D", piece, kernel[..., part], part))
        made = graph.concatenate(name, parts, 3)
    graph.put(name, made, order=CHANNELS_LAST, scale=scale)


def _conv_settings(node: Node) -> dict[str, Any]:
    window = node.window()
    top, left, bottom, right = window.pads
    return {
        "fused_ops": texts("BiasAdd"),
        "num_args": {"i": "1"},
        "strides": whole([1, *window.strides, 1]),
        "dilations": whole([1, *window.dilations, 1]),
        "data_format": text("NHWC"),
        "padding": text("EXPLICIT"),
        "explicit_paddings": whole([0, 0, top, bottom, left, right, 0, 0]),
    }


# --- products -------------------------------------------------------------------------------------------------------


def _matmul(graph: GraphDef, node: Node) -> None:
    left, name = node.inputs[0], node.output
    if graph.constant(left) is not None:
        raise NotImplementedError(f"{node.kind} of a constant with a value")
    weight = graph.constant(node.inputs[1])
    x = graph.as_written(_multiplied(graph, left))
    if weight is None:
        if node.kind == "Gemm":
            raise NotImplementedError("Gemm of two computed values")
        other = graph.as_written(_multiplied(graph, node.inputs[1]))
        y, scale = other.node, _product(x.scale, other.scale)
    else:
        if node.kind == "Gemm" and node.transposes_weight():
            weight = weight.transposed()
        weight = per_output(weight, -1)
        y = graph.numbers(weight.values, node.inputs[1], integers=weight.scale is not None)
        scale = _product(x.scale, None if weight.scale is None else weight.scale.reshape(-1))
    flat = {"transpose_a": {"b": False}, "transpose_b": {"b": False}}
    if node.kind == "Gemm":
        made = graph.node("MatMul", f"{name}/product", x.node, y, **flat)
        bias = _bias(graph, node, scale)
        if bias is not None:
            made = graph.node("AddV2", name, made, graph.numbers(bias, f"{name}/bias"))
    else:
        made = graph.node("BatchMatMulV2", name, x.node, y, adj_x={"b": False}, adj_y={"b": False})
    graph.put(name, made, scale=scale)


# --- element by element ---------------------------------------------------------------------------------------------


def _relu(graph: GraphDef, node: Node) -> None:
    """Cut at zero, which scales do not move."""
    value, name = graph.scaled(node.inputs[0]), node.output
    made = value.node if graph.activate(node.inputs[0], "Relu") else graph.node("Relu", name, value.node)
    graph.put(name, made, order=value.order, scale=value.scale)


def _clip(graph: GraphDef, node: Node) -> None:
    low, high = node.limits()
    value, name = graph.value(node.inputs[0]), node.output
    if (low, high) == (0.0, 6.0):
        alone = graph.scaled(node.inputs[0]).scale is None and graph.activate(node.inputs[0], "Relu6")
        made = value.node if alone else graph.node("Relu6", name, value.node)
    else:
        made = limit(graph, value.node, name, low, high)
    graph.put(name, made, order=value.order)


def _hard_sigmoid(graph: GraphDef, node: Node) -> None:
    value, name = graph.value(node.inputs[0]), node.output
    graph.put(name, _hard(graph, value.node, name, node.attributes["alpha"], node.attributes["beta"]),
              order=value.order)  # fmt: skip


def _hard_swish(graph: GraphDef, node: Node) -> None:
    value, name = graph.value(node.inputs[0]), node.output
    gate = _hard(graph, value.node, f"{name}/gate", 1 / 6, 0.5)
    graph.put(name, graph.node("Mul", name, value.node, gate), order=value.order)


def _hard(graph: GraphDef, x: str, name: str, alpha: float, beta: float) -> str:
    """Return the node of max(0, min(1, alpha · x + beta))."""
    steep = graph.node("Mul", f"{name}/steep", x, graph.numbers(np.float32(alpha), f"{name}/alpha"))
    moved = graph.node("AddV2", f"{name}/moved", steep, graph.numbers(np.float32(beta), f"{name}/beta"))
    low, high = graph.numbers(np.float32(0), f"{name}/low"), graph.numbers(np.float32(1), f"{name}/high")
    return graph.node("ClipByValue", name, moved, low, high)


def _leaky_relu(graph: GraphDef, node: Node) -> None:
    value, name = graph.value(node.inputs[0]), node.output
    made = graph.node("LeakyRelu", name, value.node, alpha={"f": float(node.attributes["alpha"])})
    graph.put(name, made, order=value.order)


def _cast(graph: GraphDef, node: Node) -> None:
    """Make floats of the image; what else is cast is floats already."""
    if node.attributes["to"] != onnx.TensorProto.FLOAT:
        raise NotImplementedError("Cast to other than float32")
    value, name = graph.value(node.inputs[0]), node.output
    made = graph.node("Cast", name, value.node, SrcT=type_of(INPUT_TYPE), DstT=type_of("float32"))
    graph.put(name, made, order=value.order)


_OPERATIONS: Mapping[str, Operation[GraphDef]] = {
    **OPERATIONS,
    "Cast": _cast,
    "Clip": _clip,
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Erf": unary,
    "Gemm": _matmul,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "LeakyRelu": _leaky_relu,
    "MatMul": _matmul,
    "QuantizeLinear": _quantize,
    "Relu": _relu,
}
