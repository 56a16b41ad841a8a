"""Reading an ONNX graph: its nodes with attributes resolved, what is constant, who makes and who reads each value.

It needs onnx and numpy alone and imports nothing of featcache: a driver loads this one file inside a device tool's own
environment, where the package may not be importable (`featcache.formats.drivers.graph_reader`).
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

Array = npt.NDArray[Any]
QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_WINDOWED = 2  # of an image's axes, the first that a window moves along
_SMALLEST_OPSET = 1


@dataclass(frozen=True, slots=True)
class Window:
    """How a convolution or a pooling moves over its input: one number per axis that it moves along.

    `pads`: what is added before each of these axes, then what is added behind each.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class IntegerConstant:
    """A constant that is stored as integers `values`; it stands for (values − zero_point) · scale.

    `scale` float32 and `zero_point` (of the integers' dtype) have as many axes as `values` and broadcast with them.
    """

    values: Array
    scale: Array
    zero_point: Array

    def real(self) -> npt.NDArray[np.float32]:
        """Return the numbers it stands for, as DequantizeLinear gives them."""
        shifted = self.values.astype(np.float64) - self.zero_point.astype(np.float64)
        return (shifted * self.scale.astype(np.float64)).astype(np.float32)


class Node:
    """One operation of a `Graph`.

    `kind`: ONNX's name of the operation. `inputs`: names, empty where one is left out. `attributes`: by name, with
    ONNX's defaults where it states any; texts are `str`, tensors arrays. `proto`: the node as it stands in the file.
    """

    __slots__ = ("_graph", "attributes", "inputs", "kind", "name", "outputs", "proto")

    def __init__(self, graph: Graph, proto: onnx.NodeProto) -> None:
        self._graph = graph
        self.proto = proto
        self.kind = str(proto.op_type)
        self.name = str(proto.name)
        self.inputs: tuple[str, ...] = tuple(proto.input)
        self.outputs: tuple[str, ...] = tuple(proto.output)
        defaults = _default_attributes(self.kind, str(proto.domain), graph.opset)
        self.attributes: dict[str, Any] = {**defaults, **{entry.name: _plain(entry) for entry in proto.attribute}}

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name or self.output!r}>"

    @property
    def output(self) -> str:
        """Name of the first result."""
        return self.outputs[0]

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of the first input, None where it is not fully known."""
        return self._graph.shape(self.inputs[0])

    @property
    def result_shape(self) -> tuple[int, ...] | None:
        """Shape of the first result, None where it is not fully known."""
        return self._graph.shape(self.output)

    def has(self, position: int) -> bool:
        """Return whether there is an input at `position`."""
        return position < len(self.inputs) and bool(self.inputs[position])

    def constant(self, position: int) -> Array | None:
        """Return the constant that is the input at `position`, None where it is computed or left out."""
        return self._graph.constants.get(self.inputs[position]) if self.has(position) else None

    def integers(self, name: str, position: int) -> tuple[int, ...] | None:
        """Return the integers called `name`: new opsets hold them in the input at `position`, old ones in an attribute.

        None where they are left out. Raises `NotImplementedError` where they are computed.
        """
        if self.has(position):
            stored = self.constant(position)
            if stored is None:
                raise NotImplementedError(f"{self.kind} with computed {name}")
            return tuple(int(value) for value in stored.reshape(-1))
        written = self.attributes.get(name)
        return None if written is None else tuple(int(value) for value in written)

    def axes(self, rank: int) -> tuple[int, ...]:
        """Return the axes that it works along, of `rank` (of the result for Unsqueeze), counted from the first.

        All of them where none are named. Raises `NotImplementedError` where they are computed.
        """
        named = self.integers("axes", 1)
        return tuple(range(rank)) if named is None else tuple(axis % rank for axis in named)

    def window(self) -> Window:
        """Return how a Conv, an AveragePool or a MaxPool moves over its input, automatic padding as numbers.

        Raises `NotImplementedError` where that takes a shape that is not known.
        """
        kernel = self.attributes.get("kernel_shape")
        if kernel is None:
            weight = self._graph.shape(self.inputs[1])
            if weight is None:
                raise NotImplementedError(f"{self.kind} with a weight of unknown shape")
            kernel = weight[_WINDOWED:]
        ones = [1] * len(kernel)
        strides = tuple(self.attributes.get("strides", ones))
        dilations = tuple(self.attributes.get("dilations", ones))
        pads = tuple(self.attributes.get("pads", [0] * 2 * len(kernel)))
        automatic = self.attributes.get("auto_pad", "NOTSET")
        if automatic == "VALID":
            pads = (0,) * 2 * len(kernel)
        elif automatic != "NOTSET":
            pads = self._same_pads(kernel, strides, dilations, more_before=automatic == "SAME_LOWER")
        return Window(tuple(kernel), strides, dilations, pads)

    def _same_pads(
        self, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], *, more_before: bool
    ) -> tuple[int, ...]:
        """Return the padding with which there are as many windows as strides in the input."""
        if self.shape is None:
            raise NotImplementedError(f"{self.kind} with automatic padding of an input of unknown shape")
        before, after = [], []
        for size, length, stride, dilation in zip(self.shape[_WINDOWED:], kernel, strides, dilations, strict=True):
            reach = (length - 1) * dilation + 1
            missing = max((-(-size // stride) - 1) * stride + reach - size, 0)
            less = missing // 2
            before.append(missing - less if more_before else less)
            after.append(less if more_before else missing - less)
        return (*before, *after)

    def slices(self, shape: Sequence[int]) -> tuple[slice, ...]:
        """Return what a Slice takes of each axis of an input of `shape`: from where, to before where, in which steps.

        Raises `NotImplementedError` for limits that are computed and for negative steps.
        """
        starts, ends, steps = (self.integers(name, at) for name, at in (("starts", 1), ("ends", 2), ("steps", 4)))
        if starts is None or ends is None:
            raise NotImplementedError("Slice without starts and ends")
        steps = (1,) * len(starts) if steps is None else steps
        if min(steps) < 1:
            raise NotImplementedError("Slice with a negative step")
        named = self.integers("axes", 3)
        axes = range(len(starts)) if named is None else [axis % len(shape) for axis in named]
        taken = [slice(0, size, 1) for size in shape]
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            taken[axis] = slice(*slice(start, end, step).indices(shape[axis]))
        return tuple(taken)

    def paddings(self, rank: int) -> tuple[tuple[int, int], ...]:
        """Return how many entries a Pad with a constant adds before and after each of `rank` axes.

        Raises `NotImplementedError` for other modes than a constant's, for cutting, and where the numbers are computed.
        """
        pads, axes = self.integers("pads", 1), self.integers("axes", 3)
        if self.attributes["mode"] != "constant" or pads is None or min(pads) < 0:
            raise NotImplementedError("Pad other than with a constant around the input")
        named = range(rank) if axes is None else [axis % rank for axis in axes]
        half = len(pads) // 2
        around = dict(zip(named, zip(pads[:half], pads[half:], strict=True), strict=True))
        return tuple(around.get(axis, (0, 0)) for axis in range(rank))

    def pad_value(self) -> float:
        """Return the constant that a Pad adds."""
        value = self.constant(2)
        return 0.0 if value is None else float(value.item())

    def split_sizes(self, size: int) -> tuple[int, ...]:
        """Return the sizes of the parts into which a Split divides an axis of `size`."""
        sizes = self.integers("split", 1)
        if sizes is not None:
            return sizes
        parts = len(self.outputs)
        largest = -(-size // parts)
        return (*(largest,) * (parts - 1), size - largest * (parts - 1))

    def limits(self) -> tuple[float | None, float | None]:
        """Return the least and the most that a Clip lets pass, None where it does not limit.

        Raises `NotImplementedError` where one is computed.
        """
        limits = []
        for position, name in ((1, "min"), (2, "max")):
            stored = self.constant(position)
            if self.has(position) and stored is None:
                raise NotImplementedError(f"{self.kind} with a computed limit")
            written = self.attributes.get(name)
            limits.append(written if stored is None else float(stored.item()))
        return limits[0], limits[1]

    def transposes_weight(self) -> bool:
        """Return whether the second input of a Gemm is transposed.

        Raises `NotImplementedError` for a Gemm that is more than a product and a bias.
        """
        scales = (self.attributes["alpha"], self.attributes["beta"])
        if self.attributes["transA"] or scales != (1.0, 1.0):
            raise NotImplementedError("Gemm that scales or transposes its first input")
        return bool(self.attributes["transB"])

    def stored(self) -> IntegerConstant | None:
        """Return the constant that a DequantizeLinear makes floats of, None for what is computed.

        Raises `NotImplementedError` where its scale or its zero point is computed.
        """
        values = self.constant(0)
        if values is None:
            return None
        scale = self.constant(1)
        zero_point = self.constant(2) if self.has(2) else np.zeros((), dtype=values.dtype)
        if scale is None or zero_point is None:
            raise NotImplementedError(f"{self.kind} with a computed scale or zero point")
        axis = int(self.attributes["axis"])
        return IntegerConstant(values, along_axis(scale, values.ndim, axis), along_axis(zero_point, values.ndim, axis))


class Graph:
    """The graph of an ONNX model, read once: later changes of `proto` are not seen.

    `nodes`: the operations in the file's order. `constants`: initialisers and what ``Constant`` nodes hold, by name.
    `inputs`, `outputs`: names, constants not among them. `opset`: of ONNX's own operations.

    Examples
    --------
    >>> from onnx import helper, TensorProto
    >>> shape = helper.make_tensor_value_info
    >>> nodes = [helper.make_node("LeakyRelu", ["image"], ["x"]), helper.make_node("Flatten", ["x"], ["logits"])]
    >>> image, logits = shape("image", TensorProto.FLOAT, [1, 2, 2]), shape("logits", TensorProto.FLOAT, None)
    >>> graph = Graph(helper.make_model(helper.make_graph(nodes, "small", [image], [logits])))
    >>> [node.kind for node in graph.nodes], graph.inputs, graph.outputs
    (['LeakyRelu', 'Flatten'], ('image',), ('logits',))
    >>> round(graph.nodes[0].attributes["alpha"], 6)  # ONNX's default: the file does not say
    0.01
    >>> graph.only_reader("x"), graph.maker("image"), graph.shape("logits")
    (<Flatten 'logits'>, None, (1, 4))
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        self.opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)
        self.constants: dict[str, Array] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer
        }
        nodes = [Node(self, node) for node in proto.graph.node]
        for node in nodes:
            if node.kind == "Constant":
                self.constants[node.output] = _constant(node)
        self.nodes: tuple[Node, ...] = tuple(node for node in nodes if node.kind != "Constant")
        self.inputs: tuple[str, ...] = tuple(v.name for v in proto.graph.input if v.name not in self.constants)
        self.outputs: tuple[str, ...] = tuple(value.name for value in proto.graph.output)
        self._makers = {name: node for node in self.nodes for name in node.outputs}
        self._readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                self._readers.setdefault(name, []).append(node)

    @classmethod
    def load(cls, path: str | Path) -> Graph:
        """Return the graph of the file at `path`."""
        return cls(onnx.load(str(path)))

    @functools.cached_property
    def _inferred(self) -> Mapping[str, onnx.ValueInfoProto]:
        graph = onnx.shape_inference.infer_shapes(self.proto, data_prop=True).graph
        return {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of the value or constant `name`, None where ONNX's inference does not know all of it."""
        if name in self.constants:
            return tuple(self.constants[name].shape)
        value = self._inferred.get(name)
        if value is None or not value.type.tensor_type.HasField("shape"):
            return None
        sizes = tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim)
        return sizes if all(sizes) else None

    def dtype(self, name: str) -> np.dtype[Any] | None:
        """Return the dtype of the value or constant `name`, None where it is not known."""
        if name in self.constants:
            return self.constants[name].dtype
        value = self._inferred.get(name)
        kind = None if value is None else value.type.tensor_type.elem_type
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)) if kind else None

    def maker(self, name: str) -> Node | None:
        """Return the node that computes `name`, None for inputs and constants."""
        return self._makers.get(name)

    def readers(self, name: str) -> tuple[Node, ...]:
        """Return the nodes that read `name`; one that reads it twice stands there twice."""
        return tuple(self._readers.get(name, ()))

    def only_reader(self, name: str) -> Node | None:
        """Return the node that alone reads `name`, and once; None where others do or it is an output."""
        readers = self._readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def leading_to(self, outputs: Collection[str]) -> tuple[Node, ...]:
        """Return the nodes that are needed to compute `outputs`, in the file's order."""
        needed, kept = set(outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                needed.update(node.inputs)
                kept.append(node)
        return tuple(reversed(kept))

    def check_kinds(self, known: Collection[str], *, form: str) -> None:
        """Raise `NotImplementedError` naming the operations that are not among `known`, which have a `form` form."""
        unknown = sorted({node.kind for node in self.nodes} - set(known))
        if unknown:
            raise NotImplementedError(f"operations without a {form} form: {', '.join(unknown)}")


def along_axis(values: Array, rank: int, axis: int) -> Array:
    """Return `values`, one for each slice along `axis` or a single one, with `rank` axes, so that they broadcast."""
    shape = [1] * rank
    if values.size > 1:
        shape[axis] = -1
    return values.reshape(shape)


def _constant(node: Node) -> Array:
    """Return what a ``Constant`` node holds; of its seven forms, those that make tensors of numbers."""
    for name, dtype in (("value", None), ("value_float", np.float32), ("value_int", np.int64),
                        ("value_floats", np.float32), ("value_ints", np.int64)):  # fmt: skip
        if node.attributes.get(name) is not None:
            return np.asarray(node.attributes[name], dtype=dtype)
    raise NotImplementedError(f"Constant of other than numbers: {node.output!r}")


@functools.cache
def _default_attributes(kind: str, domain: str, opset: int) -> Mapping[str, Any]:
    """Return the attributes of an operation for which ONNX states a default; none of an operation it does not know."""
    if domain not in ("", "ai.onnx") or not onnx.defs.has(kind):
        return {}
    try:
        schema = onnx.defs.get_schema(kind, max(opset, _SMALLEST_OPSET), "")
    except onnx.defs.SchemaError:  # it came with a later opset
        return {}
    return {
        name: _plain(attribute.default_value)
        for name, attribute in schema.attributes.items()
        if attribute.default_value.type
    }


def _plain(entry: onnx.AttributeProto) -> Any:
    """Return an attribute's value: a number, a text, an array, or a list of them."""
    value = onnx.helper.get_attribute_value(entry)
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return list(value) if entry.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS) else value
