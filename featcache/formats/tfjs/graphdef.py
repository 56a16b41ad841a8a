"""A TensorFlow graph in TensorFlow.js's own form: its nodes and its weights.

The scale of a value is what its numbers still have to be multiplied by: of the rank of its shape in ONNX's order, or a
single number. What was quantized stays the integers that it is, held in floats, whose sums are exact below 2²⁴: a
convolution of integers gives integers, and one multiplication by both scales, per output channel, is all between it and
the next rounding. That is the arithmetic of the QuantizeLinear/DequantizeLinear pairs; weights take one byte each in
the file.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featcache.formats.channels_last.graph import ChannelsLastGraph, Value, laid
from featcache.graph.halves import is_of_halves
from featcache.graph.nodes import Array, Graph

_TYPES = {"float32": "DT_FLOAT", "int32": "DT_INT32"}
INPUT_TYPE = "int32"  # TensorFlow.js has no uint8: it reads the pixels of a page as int32
_BYTE_SHIFT = 128  # integers of −128 to 127 are stored as bytes plus this
_CONVOLUTIONS = ("_FusedConv2D", "FusedDepthwiseConv2dNative")
_KINDS = {"Add": "AddV2", "Div": "RealDiv", "Max": "Maximum", "Min": "Minimum"}  # others are called as ONNX's


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """One constant of the graph. `integers`: its whole numbers of −128 to 127 are stored as bytes, else as `values`.

    `halves`: they are stored in half precision, which they are.
    """

    name: str
    values: Array
    integers: bool
    halves: bool = False

    def manifest(self) -> dict[str, Any]:
        """Return its entry in a ``weightsManifest``."""
        entry: dict[str, Any] = {"name": self.name, "shape": list(self.values.shape), "dtype": self.values.dtype.name}
        if self.integers:
            entry["quantization"] = {"dtype": "uint8", "scale": 1, "min": -_BYTE_SHIFT}
        elif self.halves:
            entry["quantization"] = {"dtype": "float16"}
        return entry

    def data(self) -> bytes:
        """Return its bytes, little-endian."""
        if self.integers:
            return (self.values + _BYTE_SHIFT).astype(np.uint8).tobytes()
        if self.halves:
            return self.values.astype("<f2").tobytes()
        return self.values.astype(self.values.dtype.newbyteorder("<")).tobytes()


class GraphDef(ChannelsLastGraph):
    """The nodes and weights for the ONNX graph `source`, of known shapes: empty but for its image.

    `halves`: weights that are of half precision are stored so. `nodes`, `weights`, `inputs` and `outputs` are what
    ``model.json`` holds, as JSON values.
    """

    def __init__(self, source: Graph, *, outputs: tuple[str, ...], halves: bool = False) -> None:
        super().__init__(source, outputs=outputs)
        self._halves = halves
        self.nodes: list[dict[str, Any]] = []
        self.weights: list[Weight] = []
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
        self._by_name: dict[str, dict[str, Any]] = {}
        image, shape = self._image, self.shape(self._image)
        self._append("Placeholder", image, (), {"dtype": type_of(INPUT_TYPE), "shape": {"shape": _shape(shape)}})
        self.inputs[image] = _described(image, INPUT_TYPE, shape)
        self.put(image, image)

    def finish(self) -> None:
        """End at the outputs, which lie in ONNX's order."""
        for name in self._ends:
            value = self.written(name)
            self._append("Identity", name, [value.node], {"T": type_of("float32")})
            self.outputs[name] = _described(name, "float32", value.shape)

    def _append(self, kind: str, name: str, inputs: Sequence[str], attributes: Mapping[str, Any]) -> str:
        node: dict[str, Any] = {"name": name, "op": kind}
        if inputs:
            node["input"] = list(inputs)
        self.nodes.append(node | {"attr": dict(attributes)})
        self._by_name[name] = self.nodes[-1]
        return name

    def _name(self, wish: str) -> str:
        return super()._name(wish.replace(":", "_"))  # a colon separates a node's name from the number of its output

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
            halves = self._halves and not integers and is_of_halves(array)
            self.weights.append(Weight(self._made[key], array, integers, halves))
        return self._made[key]

    def elementwise(self, kind: str, name: str, *inputs: str) -> str:
        """Compute `kind` of one input or of two that broadcast."""
        return self.node(_KINDS.get(kind, kind), name, *inputs)

    def reduce(self, kind: str, name: str, x: str, axes: Sequence[int], *, keep: bool) -> str:
        """Compute `kind` over `axes`."""
        places = self.numbers(list(axes), f"{name}/axes")
        return self.node(kind, name, x, places, keep_dims={"b": keep}, Tidx=type_of("int32"))

    def reshape(self, name: str, x: str, sizes: Sequence[int]) -> str:
        """Give `x` another shape."""
        return self.node("Reshape", name, x, self.numbers(np.array(sizes, dtype=np.int32), f"{name}/shape"))

    def transpose(self, name: str, x: str, places: Sequence[int]) -> str:
        """Move the axes of `x`."""
        return self.node("Transpose", name, x, self.numbers(list(places), f"{name}/perm"))

    def softmax(self, name: str, x: str) -> str:
        """Compute the softmax over the last axis."""
        return self.node("Softmax", name, x)

    def concatenate(self, name: str, parts: Sequence[str], axis: int) -> str:
        """Join `parts` along `axis`."""
        return self.node("ConcatV2", name, *parts, self.numbers(axis, f"{name}/axis"), N={"i": str(len(parts))})

    def cut(self, name: str, x: str, begins: Sequence[int], sizes: Sequence[int]) -> str:
        """Take `sizes` entries of each axis from `begins` on."""
        return self.node("Slice", name, x, self.numbers(list(begins), name), self.numbers(list(sizes), name))

    def stride(self, name: str, x: str, begins: Sequence[int], ends: Sequence[int], steps: Sequence[int]) -> str:
        """Take the entries of each axis from `begins` until before `ends`, in `steps`."""
        inputs = (self.numbers(list(entry), name) for entry in (begins, ends, steps))
        masks = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")
        return self.node("StridedSlice", name, x, *inputs, **{mask: {"i": "0"} for mask in masks})

    def gather(self, name: str, x: str, indices: Array, axis: int) -> str:
        """Take the entries at `indices` along `axis`."""
        place, wanted = self.numbers(axis, f"{name}/axis"), self.numbers(indices, f"{name}/indices")
        return self.node("GatherV2", name, x, wanted, place)

    def pad(self, name: str, x: str, around: Any, edge: float) -> str:
        """Put `edge` around `x`."""
        places, limit = self.numbers(around, f"{name}/paddings"), self.numbers(edge, f"{name}/edge")
        return self.node("PadV2", name, x, places, limit)

    def pool(self, kind: str, name: str, x: str, kernel: Sequence[int], strides: Sequence[int]) -> str:
        """Compute `kind` over windows of `kernel` at every `strides`."""
        return self.node(
            {"AveragePool": "AvgPool"}.get(kind, kind), name, x,
            ksize=whole([1, *kernel, 1]), strides=whole([1, *strides, 1]), padding=text("VALID"),
            data_format=text("NHWC"),
        )  # fmt: skip

    def broadcast(self, name: str, x: str, sizes: Sequence[int]) -> str:
        """Repeat `x` to `sizes`."""
        return self.node("BroadcastTo", name, x, self.numbers(list(sizes), f"{name}/shape"))

    def plain(self, value: Value) -> Value:
        """Return `value`, multiplied by its scale."""
        if value.scale is None:
            return value
        key = ("plain", value.node)
        if key not in self._made:
            scale = self.numbers(laid(value.scale, value.order), f"{value.node}/scale")
            self._made[key] = self.elementwise("Mul", f"{value.node}/scaled", value.node, scale)
        return replace(value, node=self._made[key], scale=None)

    def activate(self, name: str, kind: str) -> bool:
        """Return whether a convolution computes `name` and took over the activation `kind`, which alone reads it."""
        node = self._by_name[self._values[name].node]
        if not self.alone(name) or node["op"] not in _CONVOLUTIONS or node["attr"]["fused_ops"] != texts("BiasAdd"):
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
