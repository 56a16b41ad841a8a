"""The classifier's ONNX graph as a TensorFlow graph in TensorFlow.js's own form, without TensorFlow.

TensorFlow.js convolves images with their channels last, ONNX with their channels first. A value therefore carries the
order that its axes have here, and is transposed only where an operation wants another: an ONNX Transpose costs nothing,
and a convolutional network has none left.

A value also carries the scale that its numbers still have to be multiplied by. What was quantized stays the integers
that it is, held in floats, whose sums are exact below 2²⁴: a convolution of integers gives integers, and one
multiplication by both scales, per output channel, is all between it and the next rounding. That is the arithmetic of
the QuantizeLinear/DequantizeLinear pairs; weights take one byte each in the file.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from featcache.errors import VerificationError

_TYPES = {"float32": "DT_FLOAT", "int32": "DT_INT32"}
_INPUT_TYPE = "int32"  # TensorFlow.js has no uint8: it reads the pixels of a page as int32
_CHANNELS_LAST = (0, 2, 3, 1)
_BYTE_SHIFT = 128  # integers of −128 to 127 are stored as bytes plus this
_FAST_SLICE_AXES = 4  # one of more axes takes the WebAssembly backend entry by entry
_CONVOLUTIONS = ("_FusedConv2D", "FusedDepthwiseConv2dNative")
_LOWEST = float(np.finfo(np.float32).min)

Array = npt.NDArray[Any]
Attributes = Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """One constant of the graph. `integers`: its whole numbers of −128 to 127 are stored as bytes, else as `values`."""

    name: str
    values: Array
    integers: bool

    def manifest(self) -> dict[str, Any]:
        """Return its entry in a ``weightsManifest``."""
        entry: dict[str, Any] = {"name": self.name, "shape": list(self.values.shape), "dtype": self.values.dtype.name}
        if self.integers:
            entry["quantization"] = {"dtype": "uint8", "scale": 1, "min": -_BYTE_SHIFT}
        return entry

    def data(self) -> bytes:
        """Return its bytes, little-endian."""
        if self.integers:
            return (self.values + _BYTE_SHIFT).astype(np.uint8).tobytes()
        return self.values.astype(self.values.dtype.newbyteorder("<")).tobytes()


@dataclass(frozen=True, slots=True, eq=False)
class _Constant:
    """What the ONNX graph holds as numbers: `values`, times `scale` (of the same number of axes) where there is one."""

    values: Array
    scale: Array | None = None

    def real(self) -> Array:
        """Return the numbers it stands for: float32 where they are scaled, as DequantizeLinear gives."""
        return self.values if self.scale is None else self.values.astype(np.float32) * self.scale

    def transposed(self) -> _Constant:
        """Return it with its axes reversed."""
        return _Constant(self.values.T, None if self.scale is None else self.scale.T)


@dataclass(frozen=True, slots=True)
class _Value:
    """A tensor that a node computes.

    `shape`: in ONNX's order. `order`: which of ONNX's axes each axis here is. `scale`: what its numbers are still to be
    multiplied by, of the rank of `shape` or a single number, None for 1.
    """

    node: str
    shape: tuple[int, ...]
    order: tuple[int, ...]
    scale: Any = None  # an array; numpy's equality is none

    def here(self) -> list[int]:
        """Return the shape as it lies here."""
        return [self.shape[axis] for axis in self.order]


class GraphDef:
    """The nodes and weights for the ONNX graph `proto`, of a fixed batch; raises where it cannot be held.

    `NotImplementedError` names operations, or forms of them, without an equivalent; `VerificationError` says that the
    shape of a tensor is not known.
    """

    def __init__(self, proto: onnx.ModelProto, *, outputs: tuple[str, ...]) -> None:
        graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
        unknown = sorted({node.op_type for node in graph.node} - set(_OPERATIONS))
        if unknown:
            raise NotImplementedError(f"operations without a TensorFlow.js form: {', '.join(unknown)}")
        self.nodes: list[dict[str, Any]] = []
        self.weights: list[Weight] = []
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
        self._taken = {"", *outputs}
        self._made: dict[tuple[Any, ...], str] = {}
        self._by_name: dict[str, dict[str, Any]] = {}
        self._constants = {tensor.name: _Constant(numpy_helper.to_array(tensor)) for tensor in graph.initializer}
        self._values: dict[str, _Value] = {}
        self._shapes = {
            value.name: tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
            for value in (*graph.value_info, *graph.output)
        }
        self._readers: dict[str, int] = dict.fromkeys(outputs, 1)
        for node in graph.node:
            for name in node.input:
                self._readers[name] = self._readers.get(name, 0) + 1
        (image,) = graph.input
        self._begin(image.name, tuple(size.dim_value for size in image.type.tensor_type.shape.dim))
        for node in graph.node:
            attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
            _OPERATIONS[node.op_type](self, node, attributes)
        for name in outputs:
            value = self.as_written(self.plain(self._values[name]))
            self._add("Identity", name, [value.node], {"T": _type("float32")}, named=True)
            self.outputs[name] = _described(name, "float32", value.shape)

    # --- nodes ------------------------------------------------------------------------------------------------------

    def _begin(self, name: str, shape: tuple[int, ...]) -> None:
        self._taken.add(name)
        sizes = {"shape": {"dim": [{"size": str(size)} for size in shape]}}
        self._add("Placeholder", name, [], {"dtype": _type(_INPUT_TYPE), "shape": sizes}, named=True)
        self.inputs[name] = _described(name, _INPUT_TYPE, shape)
        self._values[name] = _Value(name, shape, tuple(range(len(shape))))

    def _add(
        self, kind: str, name: str, inputs: Sequence[str], attributes: Mapping[str, Any], *, named: bool = False
    ) -> str:
        unique = name if named else self._name(name)
        node: dict[str, Any] = {"name": unique, "op": kind}
        if inputs:
            node["input"] = list(inputs)
        if attributes:
            node["attr"] = dict(attributes)
        self.nodes.append(node)
        self._by_name[unique] = node
        return unique

    def _name(self, wish: str) -> str:
        wish = wish.replace(":", "_")  # a colon separates a node's name from the number of its output
        unique, count = wish, 0
        while unique in self._taken:
            count += 1
            unique = f"{wish}_{count}"
        self._taken.add(unique)
        return unique

    def node(self, kind: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Return the name of a new node of floats: operation `kind`, called `name` or much like it."""
        return self._add(kind, name, inputs, {"T": _type("float32"), **attributes})

    def numbers(self, values: Any, name: str, *, integers: bool = False) -> str:
        """Return the node of a constant: int32 where `values` are whole, else float32; equal ones are one node.

        `integers`: they are of −128 to 127, computed with as floats and stored as bytes.
        """
        array = np.asarray(values)
        array = array.astype(np.int32 if array.dtype.kind == "i" and not integers else np.float32, order="C")
        key = ("constant", array.dtype.name, array.shape, hashlib.sha256(array.tobytes()).digest(), integers)
        if key not in self._made:
            tensor = {"dtype": _TYPES[array.dtype.name], "tensorShape": _shape(array.shape)}
            attributes = {"dtype": _type(array.dtype.name), "value": {"tensor": tensor}}
            self._made[key] = self._add("Const", name, [], attributes)
            self.weights.append(Weight(self._made[key], array, integers))
        return self._made[key]

    # --- values -----------------------------------------------------------------------------------------------------

    def constant(self, name: str) -> _Constant | None:
        """Return what the ONNX graph holds under `name`, None where that is computed."""
        return self._constants.get(name)

    def keep(self, name: str, constant: _Constant) -> None:
        """Say that what ONNX calls `name` is `constant`."""
        self._constants[name] = constant

    def known(self, node: onnx.NodeProto, position: int) -> Array | None:
        """Return the numbers of the node's input at `position`, None without one; they must not be computed."""
        if position >= len(node.input) or not node.input[position]:
            return None
        found = self._constants.get(node.input[position])
        if found is None:
            raise NotImplementedError(f"{node.op_type} with a computed {node.input[position]!r}")
        return found.real()

    def scaled(self, name: str) -> _Value:
        """Return the value `name`, its scale still to be multiplied by."""
        if name not in self._values:
            raise NotImplementedError(f"{name!r}, a constant where a computed value is expected")
        return self._values[name]

    def value(self, name: str) -> _Value:
        """Return the value `name`, in the order it lies in."""
        return self.plain(self.scaled(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of what ONNX calls `name`."""
        shape = self._shapes.get(name, ())
        if name not in self._shapes or not all(shape):
            raise VerificationError(f"the shape of {name!r} must be known to convert the graph, got {shape!r}")
        return shape

    def put(self, name: str, node: str, *, order: Sequence[int] | None = None, scale: Any = None) -> None:
        """Say that `node` computes what ONNX calls `name`; `order` as it is written, unless given."""
        shape = self.shape(name)
        self._values[name] = _Value(node, shape, tuple(range(len(shape)) if order is None else order), scale)

    def plain(self, value: _Value) -> _Value:
        """Return `value`, multiplied by its scale."""
        if value.scale is None:
            return value
        key = ("plain", value.node)
        if key not in self._made:
            scale = self.numbers(_laid(value.scale, value.order), f"{value.node}/scale")
            self._made[key] = self.node("Mul", f"{value.node}/scaled", value.node, scale)
        return replace(value, node=self._made[key], scale=None)

    def ordered(self, value: _Value, order: Sequence[int]) -> _Value:
        """Return `value` with its axes in `order`; its scale, told in ONNX's order, stays."""
        wanted = tuple(order)
        if value.order == wanted:
            return value
        perm = [value.order.index(axis) for axis in wanted]
        key = ("ordered", value.node, *perm)
        if key not in self._made:
            long = [[axis for axis in axes if value.shape[axis] != 1] for axes in (value.order, wanted)]
            if long[0] == long[1]:  # only axes of one entry move: the numbers stay where they are
                sizes = self.numbers(np.array([value.shape[axis] for axis in wanted]), f"{value.node}/shape")
                self._made[key] = self.node("Reshape", f"{value.node}/reshaped", value.node, sizes)
            else:
                places = self.numbers(np.array(perm), f"{value.node}/perm")
                self._made[key] = self.node("Transpose", f"{value.node}/transposed", value.node, places)
        return replace(value, node=self._made[key], order=wanted)

    def as_written(self, value: _Value) -> _Value:
        """Return `value` with its axes in ONNX's order."""
        return self.ordered(value, range(len(value.shape)))

    def written(self, name: str) -> _Value:
        """Return the value `name`, its axes in ONNX's order."""
        return self.as_written(self.value(name))

    def aligned(self, names: Sequence[str]) -> tuple[list[str], tuple[int, ...]]:
        """Return nodes of values and constants that broadcast with each other, and the order that their axes have."""
        values = {name: self.value(name) for name in names if name in self._values}
        if not values:
            raise NotImplementedError(f"an operation on constants alone: {', '.join(names)}")
        leading = max(values.values(), key=lambda value: (len(value.shape), math.prod(value.shape)))
        rank, order = len(leading.shape), leading.order
        constants = {name: self._constants[name].real() for name in names if name not in values}
        if max([rank, *(value.ndim for value in constants.values())]) > rank:
            raise NotImplementedError(f"an operation whose constant has more axes than {leading.node!r}")
        nodes = []
        for name in names:
            if name in constants:
                nodes.append(self.numbers(_laid(constants[name], order), name))
                continue
            value = values[name]
            if len(value.shape) < rank:
                value = self.as_written(value)
                shape = (1,) * (rank - len(value.shape)) + value.shape
                sizes = self.numbers(np.array(shape), f"{value.node}/shape")
                node = self.node("Reshape", f"{value.node}/reshaped", value.node, sizes)
                value = _Value(node, shape, tuple(range(rank)))
            nodes.append(self.ordered(value, order).node)
        return nodes, order

    def reads(self, name: str) -> int:
        """Return how often what ONNX calls `name` is read."""
        return self._readers.get(name, 0)

    def activate(self, value: _Value, kind: str) -> bool:
        """Return whether the convolution that computes `value` could take over the activation `kind`."""
        node = self._by_name[value.node]
        if node["op"] not in _CONVOLUTIONS or node["attr"]["fused_ops"] != _texts("BiasAdd"):
            return False
        node["attr"]["fused_ops"] = _texts("BiasAdd", kind)
        return True


# --- attributes and arrays ------------------------------------------------------------------------------------------


def _type(name: str) -> dict[str, Any]:
    return {"type": _TYPES[name]}


def _shape(shape: Sequence[int]) -> dict[str, Any]:
    return {"dim": [{"size": str(size)} for size in shape]}


def _described(name: str, kind: str, shape: Sequence[int]) -> dict[str, Any]:
    return {"name": f"{name}:0", "dtype": _TYPES[kind], "tensorShape": _shape(shape)}


def _texts(*texts: str) -> dict[str, Any]:
    return {"list": {"s": [base64.b64encode(text.encode()).decode() for text in texts]}}


def _text(text: str) -> dict[str, Any]:
    return {"s": base64.b64encode(text.encode()).decode()}


def _whole(values: Sequence[int]) -> dict[str, Any]:
    return {"list": {"i": [str(int(value)) for value in values]}}


def _laid(values: Array, order: Sequence[int]) -> Array:
    """Return `values`, broadcastable in ONNX's order, so that they broadcast with a tensor of `order`."""
    if values.size == 1:
        return values.reshape(())
    return values.reshape((1,) * (len(order) - values.ndim) + values.shape).transpose(order)


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
        ratio = graph.numbers(_laid(source.scale / scale.reshape(()), source.order), f"{name}/ratio")
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
    graph.keep(node.output[0], _Constant(stored.values, along))


def _multiplied(graph: GraphDef, name: str) -> _Value:
    """Return a value to be multiplied with others: its integers where one scale is theirs, else its floats."""
    value = graph.scaled(name)
    return value if value.scale is None or np.size(value.scale) == 1 else graph.plain(value)


def _per_output(weight: _Constant, axis: int) -> _Constant:
    """Return `weight`, its scale left apart only where it is one per output along `axis`, or a single one."""
    if weight.scale is None or weight.scale.size in (1, weight.scale.shape[axis]):
        return weight
    return _Constant(weight.real())


def _bias(graph: GraphDef, node: onnx.NodeProto, scale: Any) -> Array | None:
    """Return the node's bias (n,) to be added before the multiplication by `scale`, None without one."""
    if graph.known(node, 2) is None:
        return None
    bias = graph.constant(node.input[2]) or _Constant(np.zeros(0))
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
        made = graph.node("ConcatV2", name, *parts, graph.numbers(np.array(3), f"{name}/axis"), N={"i": str(groups)})
    graph.put(name, made, order=_CHANNELS_LAST, scale=scale)


def _conv_settings(attributes: Attributes) -> dict[str, Any]:
    if attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise NotImplementedError("Conv with automatic padding")
    strides, dilations = attributes.get("strides", [1, 1]), attributes.get("dilations", [1, 1])
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    return {
        "fused_ops": _texts("BiasAdd"),
        "num_args": {"i": "1"},
        "strides": _whole([1, *strides, 1]),
        "dilations": _whole([1, *dilations, 1]),
        "data_format": _text("NHWC"),
        "padding": _text("EXPLICIT"),
        "explicit_paddings": _whole([0, 0, top, bottom, left, right, 0, 0]),
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
        places = graph.numbers(np.array([[0, 0], *around, [0, 0]]), f"{name}/paddings")
        x = graph.node("PadV2", f"{name}/padded", x, places, graph.numbers(0.0 if average else _LOWEST, f"{name}/edge"))
    made = graph.node(
        "AvgPool" if average else "MaxPool", name, x,
        ksize=_whole([1, *kernel, 1]), strides=_whole([1, *strides, 1]), padding=_text("VALID"),
        data_format=_text("NHWC"),
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
        kinds[node.op_type], name, value.node, graph.numbers(np.array(places), f"{name}/axes"),
        keep_dims={"b": keep}, Tidx=_type("int32"),
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
    alone = graph.reads(node.input[0]) == 1 and graph.activate(value, "Relu")
    graph.put(name, value.node if alone else graph.node("Relu", name, value.node), order=value.order, scale=value.scale)


def _clip(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
    low, high = graph.known(node, 1), graph.known(node, 2)
    value, name = graph.value(node.input[0]), node.output[0]
    if low is not None and high is not None and (float(low.item()), float(high.item())) == (0.0, 6.0):
        alone = graph.reads(node.input[0]) == 1 and graph.activate(value, "Relu6")
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
    made = graph._add("Cast", name, [value.node], {"SrcT": _type(_INPUT_TYPE), "DstT": _type("float32")})
    graph.put(name, made, order=value.order)


def _identity(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
    stored = graph.constant(node.input[0])
    if stored is not None:
        graph.keep(node.output[0], stored)
    else:
        value = graph.scaled(node.input[0])
        graph.put(node.output[0], value.node, order=value.order, scale=value.scale)


def _constant(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
    graph.keep(node.output[0], _Constant(numpy_helper.to_array(attributes["value"])))


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
    axes = graph.numbers(np.array(places), f"{name}/axes")
    settings = {"keep_dims": {"b": True}, "Tidx": _type("int32")}
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
            made = graph.node(kind, name, made, graph.numbers(_laid(given, value.order), node.input[position]))
    graph.put(name, made, order=value.order)


def _batch_norm(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
    value, name = graph.value(node.input[0]), node.output[0]
    found = [graph.known(node, position) for position in range(1, 5)]
    weight, bias, mean, variance = (np.asarray(entry, dtype=np.float64) for entry in found)
    factor = weight / np.sqrt(variance + attributes.get("epsilon", 1e-5))
    shape = (1, -1) + (1,) * (len(value.shape) - 2)
    factor, offset = factor.reshape(shape), (bias - mean * factor).reshape(shape)
    made = graph.node("Mul", f"{name}/factor", value.node, graph.numbers(_laid(factor, value.order), node.input[1]))
    made = graph.node("AddV2", name, made, graph.numbers(_laid(offset, value.order), node.input[2]))
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
    axis = graph.numbers(np.array(order.index(attributes["axis"] % len(order))), f"{node.output[0]}/axis")
    made = graph.node("ConcatV2", node.output[0], *nodes, axis, N={"i": str(len(nodes))})
    graph.put(node.output[0], made, order=order)


def _cut(graph: GraphDef, value: _Value, name: str, axis: int, first: int, count: int) -> str:
    """Return the node of `count` entries of `value` from `first` on, along ONNX's `axis`."""
    sizes, place = value.here(), value.order.index(axis)
    cut = [*sizes[:place], count, *sizes[place + 1 :]]
    if len(sizes) <= _FAST_SLICE_AXES:
        begins = [first if other == place else 0 for other in range(len(sizes))]
        limits = (graph.numbers(np.array(numbers), name) for numbers in (begins, cut))
        return graph.node("Slice", name, value.node, *limits)
    before, after = math.prod(sizes[:place]), math.prod(sizes[place + 1 :])
    flat = graph.node("Reshape", name, value.node, graph.numbers(np.array([before, sizes[place], after]), name))
    limits = (graph.numbers(np.array(numbers), name) for numbers in ([0, first, 0], [before, count, after]))
    return graph.node("Reshape", name, graph.node("Slice", name, flat, *limits), graph.numbers(np.array(cut), name))


def _gather(graph: GraphDef, node: onnx.NodeProto, attributes: Attributes) -> None:
    indices = graph.known(node, 1)
    value, name = graph.value(node.input[0]), node.output[0]
    axis = attributes.get("axis", 0) % len(value.shape)
    if indices is None or indices.ndim > 1:
        raise NotImplementedError("Gather with indices of more than one axis")
    if indices.ndim == 1:
        place = graph.numbers(np.array(value.order.index(axis)), f"{name}/axis")
        wanted = graph.numbers((indices % value.shape[axis]).astype(np.int32), f"{name}/indices")
        graph.put(name, graph.node("GatherV2", name, value.node, wanted, place), order=value.order)
        return
    made = _cut(graph, value, f"{name}/cut", axis, int(indices.item()) % value.shape[axis], 1)
    left = [other for other in value.order if other != axis]
    sizes = graph.numbers(np.array([value.shape[other] for other in left]), f"{name}/shape")
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
    inputs = (graph.numbers(np.array(entry), name) for entry in (begins, limits, strides))
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
        graph.keep(node.output[0], _Constant(np.broadcast_to(stored.real(), shape)))
        return
    value, name = graph.written(node.input[0]), node.output[0]
    sizes = graph.numbers(np.array(shape), f"{name}/shape")
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
