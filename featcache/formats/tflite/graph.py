"""A TensorFlow Lite graph: its tensors and its operators, in the words of the format's schema.

The scale of a value is that of its tensor of int8, until something wants floats: then one DEQUANTIZE is put behind it.
Activations that the ONNX graph rounds to uint8 are int8 here, their zero points 128 lower: the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featcache.formats.channels_last.graph import ChannelsLastGraph, Constant, Value
from featcache.graph.halves import is_of_halves
from featcache.graph.nodes import Array, Graph, Node

# ONNX's words, where the schema's are others; the rest is the same in capitals
_KINDS = {
    "Add": "ADD", "And": "LOGICAL_AND", "Div": "DIV", "Equal": "EQUAL", "Max": "MAXIMUM", "Min": "MINIMUM",
    "Not": "LOGICAL_NOT", "NotEqual": "NOT_EQUAL", "Sigmoid": "LOGISTIC",
}  # fmt: skip
_TRUTHS = ("And", "Equal", "Not", "NotEqual")  # whose result is true or false
_INPUTS = {"uint8": "uint8", "int64": "int32"}  # ONNX's bytes of images and numbers of tokens
_REDUCTIONS = {"Mean": "MEAN", "Sum": "SUM", "Max": "REDUCE_MAX"}
_POOLS = {"AveragePool": "AVERAGE_POOL_2D", "MaxPool": "MAX_POOL_2D"}
_FUSING = ("ADD", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_WITHOUT_BIAS = 2  # inputs
_ENDS = (-128, 127)  # of the range of int8
_BYTE_SHIFT = 128


@dataclass(frozen=True, slots=True)
class Scale:
    """How integers stand for real numbers: (integer − `zero_point`) · `values`, one for each slice along `axis`.

    One of `values` alone is that of the whole tensor.
    """

    values: tuple[float, ...]
    zero_point: int = 0
    axis: int = 0


@dataclass(slots=True, eq=False)
class Tensor:
    """`shape` and `dtype` (numpy's word) as they lie in memory; `values` where they are constant."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    values: Array | None = None
    scale: Scale | None = None


@dataclass(slots=True, eq=False)
class Operator:
    """`kind`: of the schema's BuiltinOperator. `options`: fields of its table `table`, enumerations by their words."""

    kind: str
    inputs: list[str]
    output: str
    table: str | None
    options: dict[str, Any]


class TfliteGraph(ChannelsLastGraph):
    """The graph that is written for the ONNX graph `source`, of known shapes: empty but for its image or its tokens.

    `halves`: weights that are of half precision are stored so. A node is called by the name of the tensor that it
    computes: keys of `tensors`. `inputs` and `outputs` are such names; those of the ONNX graph are in the tensors.
    """

    def __init__(self, source: Graph, *, outputs: tuple[str, ...], halves: bool = False) -> None:
        super().__init__(source, outputs=outputs)
        self._halves = halves
        self.tensors: dict[str, Tensor] = {}
        self.operators: list[Operator] = []
        self.inputs: tuple[str, ...] = (self._image,)
        self.outputs: tuple[str, ...] = ()
        self._makers: dict[str, Operator] = {}
        dtype = source.dtype(self._image)
        if dtype is None or dtype.name not in _INPUTS:
            raise NotImplementedError(f"an input of {dtype}: images of uint8 and tokens of int64 have a form")
        self.tensors[self._image] = Tensor(self._image, self.shape(self._image), _INPUTS[dtype.name])
        self.put(self._image, self._image)

    def finish(self) -> None:
        """End at the outputs, which lie in ONNX's order and have its names; drop what leads to none of them."""
        for name in self._ends:
            value = self.written(name)
            node = value.node
            if node not in self._makers or node in self.outputs:  # it has a name already
                node = self.reshape(name, node, value.shape)
            self.tensors[node].name = name
            self.outputs += (node,)
        needed, kept = {*self.inputs, *self.outputs}, []
        for operator in reversed(self.operators):
            if operator.output in needed:
                needed.update(operator.inputs)
                kept.append(operator)
        self.operators = kept[::-1]
        self.tensors = {name: tensor for name, tensor in self.tensors.items() if name in needed}

    # --- nodes ------------------------------------------------------------------------------------------------------

    def node(
        self, kind: str, name: str, *inputs: str, shape: Sequence[int], table: str | None = None,
        dtype: str = "float32", scale: Scale | None = None, **options: Any,
    ) -> str:  # fmt: skip
        """Return the name of a new tensor of `shape`, which the operator `kind` computes of `inputs`."""
        unique = self._name(name)
        self.tensors[unique] = Tensor(unique, tuple(int(size) for size in shape), dtype, scale=scale)
        self.operators.append(Operator(kind, list(inputs), unique, table, options))
        self._makers[unique] = self.operators[-1]
        return unique

    def numbers(self, values: Any, name: str) -> str:
        """Return the tensor of a constant: int32 where `values` are whole, else float32; equal ones are one tensor.

        True and false stay what they are.
        """
        array = np.asarray(values)
        if array.dtype.kind != "b":
            array = array.astype(np.int32 if array.dtype.kind == "i" else np.float32)
        if not (self._halves and is_of_halves(array)):
            return self.stored(array, name)
        stored = self.stored(array.astype(np.float16), name)
        key = ("floats", stored)
        if key not in self._made:
            self._made[key] = self.node("DEQUANTIZE", f"{name}/floats", stored, shape=array.shape)
        return self._made[key]

    def stored(self, values: Array, name: str, scale: Scale | None = None) -> str:
        """Return the tensor of a constant with the dtype of `values`; equal ones are one tensor."""
        array = np.array(values, order="C")
        key = ("constant", array.dtype.name, array.shape, hashlib.sha256(array.tobytes()).digest(), scale)
        if key not in self._made:
            unique = self._made[key] = self._name(name)
            self.tensors[unique] = Tensor(unique, array.shape, array.dtype.name, array, scale)
        return self._made[key]

    def sizes(self, node: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self.tensors[node].shape

    def elementwise(self, kind: str, name: str, *inputs: str) -> str:
        """Compute `kind` of one input or of two that broadcast."""
        shape = np.broadcast_shapes(*(self.sizes(x) for x in inputs))
        dtype = "bool" if kind in _TRUTHS else "float32"
        return self.node(_KINDS.get(kind, kind.upper()), name, *inputs, shape=shape, dtype=dtype)

    def select(self, name: str, condition: str, x: str, y: str) -> str:
        """Take entries of `x` where `condition` is true, else of `y`; all broadcast."""
        shape = np.broadcast_shapes(*(self.sizes(node) for node in (condition, x, y)))
        return self.node("SELECT_V2", name, condition, x, y, shape=shape, dtype=self.tensors[x].dtype)

    def cast(self, name: str, x: str, dtype: str) -> str:
        """Give the numbers of `x` another dtype, in numpy's word."""
        source = self.tensors[x]
        if source.dtype == dtype:
            return x
        return self.node(
            "CAST", name, x, shape=source.shape, table="CastOptions", dtype=dtype, inDataType=source.dtype,
            outDataType=dtype,
        )  # fmt: skip

    def lookup(self, name: str, table: Constant, key: str, rows: str) -> str:
        """Return rows of `table` (count, width), called `key`, at the computed `rows`: integers, or else floats.

        Raises `NotImplementedError` for integers with a scale, which is to be applied to rows alone.
        """
        values = table.values
        if table.scale is not None:
            raise NotImplementedError("Gather of what was made floats before")
        halved = self._halves and is_of_halves(values)
        stored = self.stored(values.astype(np.float16) if halved else values, key)
        shape = (*self.sizes(rows), *values.shape[1:])
        taken = self.node(
            "GATHER", name, stored, rows, shape=shape, table="GatherOptions", axis=0, dtype=self.tensors[stored].dtype
        )
        return self.cast(f"{name}/floats", taken, "float32") if halved else taken

    def reduce(self, kind: str, name: str, x: str, axes: Sequence[int], *, keep: bool) -> str:
        """Compute `kind` over `axes`."""
        shape = [1 if axis in axes else size for axis, size in enumerate(self.sizes(x)) if keep or axis not in axes]
        places = self.numbers(list(axes), f"{name}/axes")
        return self.node(_REDUCTIONS[kind], name, x, places, shape=shape, table="ReducerOptions", keepDims=keep)

    def reshape(self, name: str, x: str, sizes: Sequence[int]) -> str:
        """Give `x` another shape."""
        shape = self.numbers(np.array(sizes, dtype=np.int32), f"{name}/shape")
        return self._moved("RESHAPE", name, x, shape, shape=sizes)

    def transpose(self, name: str, x: str, places: Sequence[int]) -> str:
        """Move the axes of `x`."""
        shape = [self.sizes(x)[place] for place in places]
        return self._moved("TRANSPOSE", name, x, self.numbers(list(places), f"{name}/perm"), shape=shape)

    def softmax(self, name: str, x: str) -> str:
        """Compute the softmax over the last axis."""
        return self.node("SOFTMAX", name, x, shape=self.sizes(x), table="SoftmaxOptions", beta=1.0)

    def concatenate(self, name: str, parts: Sequence[str], axis: int) -> str:
        """Join `parts` along `axis`."""
        shape = list(self.sizes(parts[0]))
        shape[axis] = sum(self.sizes(part)[axis] for part in parts)
        return self._moved("CONCATENATION", name, *parts, shape=shape, table="ConcatenationOptions", axis=axis)

    def cut(self, name: str, x: str, begins: Sequence[int], sizes: Sequence[int]) -> str:
        """Take `sizes` entries of each axis from `begins` on."""
        limits = (self.numbers(list(entry), f"{name}/limits") for entry in (begins, sizes))
        return self._moved("SLICE", name, x, *limits, shape=sizes)

    def stride(self, name: str, x: str, begins: Sequence[int], ends: Sequence[int], steps: Sequence[int]) -> str:
        """Take the entries of each axis from `begins` until before `ends`, in `steps`."""
        limits = (self.numbers(list(entry), f"{name}/limits") for entry in (begins, ends, steps))
        shape = [len(range(*entry)) for entry in zip(begins, ends, steps, strict=True)]
        return self._moved("STRIDED_SLICE", name, x, *limits, shape=shape, table="StridedSliceOptions")

    def gather(self, name: str, x: str, indices: Array, axis: int) -> str:
        """Take the entries at `indices` along `axis`."""
        shape = list(self.sizes(x))
        shape[axis] = len(indices)
        wanted = self.numbers(indices, f"{name}/indices")
        return self._moved("GATHER", name, x, wanted, shape=shape, table="GatherOptions", axis=axis)

    def pad(self, name: str, x: str, around: Any, edge: float) -> str:
        """Put `edge` around `x`; what is 0 may be around integers too."""
        places = np.asarray(around, dtype=np.int32)
        shape = np.add(self.sizes(x), places.sum(axis=1))
        paddings = self.numbers(places, f"{name}/paddings")
        if edge == 0:
            return self._moved("PAD", name, x, paddings, shape=shape)
        return self.node("PADV2", name, x, paddings, self.numbers(edge, f"{name}/edge"), shape=shape)

    def pool(self, kind: str, name: str, x: str, kernel: Sequence[int], strides: Sequence[int]) -> str:
        """Compute `kind` over windows of `kernel` at every `strides`."""
        batch, height, width, channels = self.sizes(x)
        steps = [(s - k) // d + 1 for s, k, d in zip((height, width), kernel, strides, strict=True)]
        return self.node(
            _POOLS[kind], name, x, shape=[batch, *steps, channels], table="Pool2DOptions", padding="VALID",
            filterHeight=kernel[0], filterWidth=kernel[1], strideH=strides[0], strideW=strides[1],
        )  # fmt: skip

    def broadcast(self, name: str, x: str, sizes: Sequence[int]) -> str:
        """Repeat `x` to `sizes`."""
        return self._moved("BROADCAST_TO", name, x, self.numbers(list(sizes), f"{name}/shape"), shape=sizes)

    def _moved(
        self, kind: str, name: str, x: str, *others: str, shape: Sequence[int], table: str | None = None,
        **options: Any,
    ) -> str:  # fmt: skip
        """Return entries of `x` elsewhere: of its dtype, with its scale."""
        source = self.tensors[x]
        return self.node(
            kind, name, x, *others, shape=shape, table=table, dtype=source.dtype, scale=source.scale, **options
        )

    def activate(self, name: str, kind: str) -> bool:
        """Return whether what computes `name` in floats took over the activation `kind`, which alone reads it."""
        operator = self._makers.get(self.scaled(name).node)
        if operator is None or operator.kind not in _FUSING or "fusedActivationFunction" in operator.options:
            return False
        if not self.alone(name) or self.tensors[operator.output].scale is not None:
            return False
        operator.table = operator.table or "AddOptions"
        operator.options["fusedActivationFunction"] = kind
        return True

    def add_bias(self, name: str, bias: Array) -> bool:
        """Return whether the product that computes `name` in floats took over `bias`, which alone is added to it."""
        operator = self._makers.get(self._values[name].node) if name in self._values else None
        if operator is None or operator.kind != "FULLY_CONNECTED" or len(operator.inputs) > _WITHOUT_BIAS:
            return False
        outputs = self.sizes(operator.output)[-1]
        if not self.alone(name) or bias.shape not in ((outputs,), (1, outputs), (1, 1, outputs)):
            return False
        operator.inputs.append(self.numbers(bias.reshape(-1), f"{operator.output}/bias"))
        return True

    # --- what is quantized ------------------------------------------------------------------------------------------

    def plain(self, value: Value) -> Value:
        """Return `value` in floats."""
        if value.scale is None:
            return value
        key = ("plain", value.node)
        if key not in self._made:
            name, shape = f"{value.node}/dequantized", self.sizes(value.node)
            self._made[key] = self.node("DEQUANTIZE", name, value.node, shape=shape)
        return replace(value, node=self._made[key], scale=None)

    def spanning(self, value: Value) -> Value:
        """Return rows of int8 as they are written, with both ends of their range behind each."""
        value = self.as_written(value)
        key = ("spanning", value.node)
        shape = (*value.shape[:-1], value.shape[-1] + len(_ENDS))
        if key not in self._made:
            ends = np.broadcast_to(np.array(_ENDS, dtype=np.int8), (*value.shape[:-1], len(_ENDS)))
            stored = self.stored(ends, f"{value.node}/ends", value.scale)
            self._made[key] = self.concatenate(f"{value.node}/spanning", [value.node, stored], len(shape) - 1)
        return replace(value, node=self._made[key], shape=shape)

    def rounded(self, node: Node) -> Scale:
        """Return the scale that the QuantizeLinear or DequantizeLinear `node` states, of int8.

        Raises `NotImplementedError` for other integers than those of 8 bits, and for several scales.
        """
        scale, zero = self.known(node, 1), self.known(node, 2)
        if scale is None or zero is None or scale.size > 1 or zero.dtype not in (np.int8, np.uint8):
            raise NotImplementedError(f"{node.kind} of other than 8 bits with one scale for the tensor")
        shift = _BYTE_SHIFT if zero.dtype == np.uint8 else 0
        return Scale((float(scale.item()),), int(zero.item()) - shift)

    # --- the ONNX graph around a node -------------------------------------------------------------------------------

    def reader(self, name: str) -> Node | None:
        """Return the node that alone reads what ONNX calls `name`, None where others do or it is an output."""
        return self.source.only_reader(name) if name not in self._ends else None
