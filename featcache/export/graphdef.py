"""A TensorFlow graph in TensorFlow.js's own form: its nodes, its weights, and where a graph of ONNX's is in it.

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
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from featcache.errors import VerificationError

_TYPES = {"float32": "DT_FLOAT", "int32": "DT_INT32"}
INPUT_TYPE = "int32"  # TensorFlow.js has no uint8: it reads the pixels of a page as int32
_ROWS_AXES = 3  # of a batch of rows, such as a transformer's tokens
_BYTE_SHIFT = 128  # integers of −128 to 127 are stored as bytes plus this
_CONVOLUTIONS = ("_FusedConv2D", "FusedDepthwiseConv2dNative")

Array = npt.NDArray[Any]


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
class Constant:
    """What the ONNX graph holds as numbers: `values`, times `scale` (of the same number of axes) where there is one."""

    values: Array
    scale: Array | None = None

    def real(self) -> Array:
        """Return the numbers it stands for: float32 where they are scaled, as DequantizeLinear gives."""
        return self.values if self.scale is None else self.values.astype(np.float32) * self.scale

    def transposed(self) -> Constant:
        """Return it with its axes reversed."""
        return Constant(self.values.T, None if self.scale is None else self.scale.T)


@dataclass(frozen=True, slots=True)
class Value:
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
    """The nodes and weights for the ONNX `graph`, whose shapes are stated: empty but for its image.

    `nodes`, `weights`, `inputs` and `outputs` are what ``model.json`` holds, as JSON values.
    """

    def __init__(self, graph: onnx.GraphProto, *, outputs: tuple[str, ...]) -> None:
        self.nodes: list[dict[str, Any]] = []
        self.weights: list[Weight] = []
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
        self._by_name: dict[str, dict[str, Any]] = {}
        self._made: dict[tuple[Any, ...], str] = {}
        self._constants = {tensor.name: Constant(numpy_helper.to_array(tensor)) for tensor in graph.initializer}
        self._values: dict[str, Value] = {}
        (image,) = graph.input
        self._shapes = {
            value.name: tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
            for value in (image, *graph.value_info, *graph.output)
        }
        self._readers = Counter([*outputs, *(name for node in graph.node for name in node.input)])
        self._ends = outputs
        self._taken = {image.name, *outputs}
        shape = self.shape(image.name)
        self._append("Placeholder", image.name, (), {"dtype": type_of(INPUT_TYPE), "shape": {"shape": _shape(shape)}})
        self.inputs[image.name] = _described(image.name, INPUT_TYPE, shape)
        self.put(image.name, image.name)

    def finish(self) -> None:
        """End at the outputs, which lie in ONNX's order."""
        for name in self._ends:
            value = self.written(name)
            self._append("Identity", name, [value.node], {"T": type_of("float32")})
            self.outputs[name] = _described(name, "float32", value.shape)

    # --- nodes ------------------------------------------------------------------------------------------------------

    def _append(self, kind: str, name: str, inputs: Sequence[str], attributes: Mapping[str, Any]) -> str:
        node: dict[str, Any] = {"name": name, "op": kind}
        if inputs:
            node["input"] = list(inputs)
        self.nodes.append(node | {"attr": dict(attributes)})
        self._by_name[name] = self.nodes[-1]
        return name

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
        return self._append(kind, self._name(name), inputs, {"T": type_of("float32"), **attributes})

    def numbers(self, values: Any, name: str, *, integers: bool = False) -> str:
        """Return the node of a constant: int32 where `values` are whole, else float32; equal ones are one node.

        `integers`: they are of −128 to 127, computed with as floats and stored as bytes.
        """
        array = np.asarray(values)
        array = array.astype(np.int32 if array.dtype.kind == "i" and not integers else np.float32, order="C")
        key = ("constant", array.dtype.name, array.shape, hashlib.sha256(array.tobytes()).digest(), integers)
        if key not in self._made:
            tensor = {"dtype": _TYPES[array.dtype.name], "tensorShape": _shape(array.shape)}
            attributes = {"dtype": type_of(array.dtype.name), "value": {"tensor": tensor}}
            self._made[key] = self._append("Const", self._name(name), (), attributes)
            self.weights.append(Weight(self._made[key], array, integers))
        return self._made[key]

    # --- values -----------------------------------------------------------------------------------------------------

    def constant(self, name: str) -> Constant | None:
        """Return what the ONNX graph holds under `name`, None where that is computed."""
        return self._constants.get(name)

    def keep(self, name: str, constant: Constant) -> None:
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

    def scaled(self, name: str) -> Value:
        """Return the value `name`, its scale still to be multiplied by."""
        if name not in self._values:
            raise NotImplementedError(f"{name!r}, a constant where a computed value is expected")
        return self._values[name]

    def value(self, name: str) -> Value:
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
        self._values[name] = Value(node, shape, tuple(range(len(shape)) if order is None else order), scale)

    def plain(self, value: Value) -> Value:
        """Return `value`, multiplied by its scale."""
        if value.scale is None:
            return value
        key = ("plain", value.node)
        if key not in self._made:
            scale = self.numbers(laid(value.scale, value.order), f"{value.node}/scale")
            self._made[key] = self.node("Mul", f"{value.node}/scaled", value.node, scale)
        return replace(value, node=self._made[key], scale=None)

    def ordered(self, value: Value, order: Sequence[int]) -> Value:
        """Return `value` with its axes in `order`; its scale, told in ONNX's order, stays."""
        wanted = tuple(order)
        if value.order == wanted:
            return value
        perm = [value.order.index(axis) for axis in wanted]
        key = ("ordered", value.node, *perm)
        if key not in self._made:
            long = [[axis for axis in axes if value.shape[axis] != 1] for axes in (value.order, wanted)]
            if long[0] == long[1]:  # only axes of one entry move: the numbers stay where they are
                sizes = self.numbers([value.shape[axis] for axis in wanted], f"{value.node}/shape")
                self._made[key] = self.node("Reshape", f"{value.node}/reshaped", value.node, sizes)
            else:
                places = self.numbers(perm, f"{value.node}/perm")
                self._made[key] = self.node("Transpose", f"{value.node}/transposed", value.node, places)
        return replace(value, node=self._made[key], order=wanted)

    def as_written(self, value: Value) -> Value:
        """Return `value` with its axes in ONNX's order."""
        return self.ordered(value, range(len(value.shape)))

    def written(self, name: str) -> Value:
        """Return the value `name`, its axes in ONNX's order."""
        return self.as_written(self.value(name))

    def aligned(self, names: Sequence[str]) -> tuple[list[str], tuple[int, ...]]:
        """Return nodes of values and constants that broadcast with each other, and the order that their axes have."""
        values = {name: self.value(name) for name in names if name in self._values}
        if not values:
            raise NotImplementedError(f"an operation on constants alone: {', '.join(names)}")
        leading = max(values.values(), key=lambda value: (len(value.shape), math.prod(value.shape)))
        rank = len(leading.shape)
        # images stay as convolutions leave them; rows go on into products, which want them as written
        order = leading.order if rank > _ROWS_AXES else tuple(range(rank))
        constants = {name: self._constants[name].real() for name in names if name not in values}
        if max([rank, *(value.ndim for value in constants.values())]) > rank:
            raise NotImplementedError(f"an operation whose constant has more axes than {leading.node!r}")
        nodes = []
        for name in names:
            if name in constants:
                nodes.append(self.numbers(laid(constants[name], order), name))
                continue
            value = values[name]
            if len(value.shape) < rank:
                value = self.as_written(value)
                shape = (1,) * (rank - len(value.shape)) + value.shape
                sizes = self.numbers(shape, f"{value.node}/shape")
                node = self.node("Reshape", f"{value.node}/reshaped", value.node, sizes)
                value = Value(node, shape, tuple(range(rank)))
            nodes.append(self.ordered(value, order).node)
        return nodes, order

    def activate(self, name: str, kind: str) -> bool:
        """Return whether a convolution computes `name` and took over the activation `kind`, which alone reads it."""
        node = self._by_name[self._values[name].node]
        if self._readers[name] > 1 or node["op"] not in _CONVOLUTIONS or node["attr"]["fused_ops"] != texts("BiasAdd"):
            return False
        node["attr"]["fused_ops"] = texts("BiasAdd", kind)
        return True


# --- attributes and arrays ------------------------------------------------------------------------------------------


def type_of(name: str) -> dict[str, Any]:
    """Return an attribute: the type ``float32`` or ``int32``."""
    return {"type": _TYPES[name]}


def _shape(shape: Sequence[int]) -> dict[str, Any]:
    return {"dim": [{"size": str(size)} for size in shape]}


def _described(name: str, kind: str, shape: Sequence[int]) -> dict[str, Any]:
    return {"name": f"{name}:0", "dtype": _TYPES[kind], "tensorShape": _shape(shape)}


def texts(*values: str) -> dict[str, Any]:
    """Return an attribute: texts."""
    return {"list": {"s": [text(value)["s"] for value in values]}}


def text(value: str) -> dict[str, Any]:
    """Return an attribute: a text."""
    return {"s": base64.b64encode(value.encode()).decode()}


def whole(values: Sequence[int]) -> dict[str, Any]:
    """Return an attribute: whole numbers."""
    return {"list": {"i": [str(int(value)) for value in values]}}


def laid(values: Array, order: Sequence[int]) -> Array:
    """Return `values`, broadcastable in ONNX's order, so that they broadcast with a tensor of `order`."""
    if values.size == 1:
        return values.reshape(())
    return values.reshape((1,) * (len(order) - values.ndim) + values.shape).transpose(order)
