"""An ONNX graph on its way into one that convolves images with their channels last: where its values lie there.

A value carries the order that its axes have in the other graph, and is transposed only where an operation wants
another: an ONNX Transpose costs nothing, and a convolutional network has none left.

A value also carries the scale that makes its numbers those of ONNX. What was quantized stays the integers that it is
until an operation wants floats; operations of integers never ask for them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featcache.errors import VerificationError
from featcache.graph.nodes import Array, Graph, Node

_ROWS_AXES = 3  # of a batch of rows, such as a transformer's tokens


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

    `shape`: in ONNX's order. `order`: which of ONNX's axes each axis here is. `scale`: what `ChannelsLastGraph.plain`
    still has to apply to its numbers, in the form of the graph that is written; None where they are ONNX's.
    """

    node: str
    shape: tuple[int, ...]
    order: tuple[int, ...]
    scale: Any = None  # may be an array; numpy's equality is none

    def here(self) -> list[int]:
        """Return the shape as it lies here."""
        return [self.shape[axis] for axis in self.order]


class ChannelsLastGraph(ABC):
    """The graph that is written for the ONNX graph `source`, of known shapes: empty but for its image.

    A node is called by its name. The abstract methods add one and return its name, which is `name` or much like it;
    axes, sizes and places are those of the graph that is written.
    """

    def __init__(self, source: Graph, *, outputs: tuple[str, ...]) -> None:
        self.source = source
        self._made: dict[tuple[Any, ...], str] = {}
        self._constants = {name: Constant(values) for name, values in source.constants.items()}
        self._values: dict[str, Value] = {}
        (self._image,) = source.inputs
        self._ends = outputs
        self._taken = {self._image, *outputs}

    # --- nodes of the graph that is written -------------------------------------------------------------------------

    @abstractmethod
    def numbers(self, values: Any, name: str) -> str:
        """Return the node of a constant: int32 where `values` are whole, else float32; equal ones are one node."""

    @abstractmethod
    def elementwise(self, kind: str, name: str, *inputs: str) -> str:
        """Compute `kind`, in ONNX's words (also ``Rsqrt`` and ``Square``), of one input or of two that broadcast."""

    @abstractmethod
    def reduce(self, kind: str, name: str, x: str, axes: Sequence[int], *, keep: bool) -> str:
        """Compute ``Mean``, ``Sum`` or ``Max`` over `axes`, which stay as axes of one entry where `keep` is true."""

    @abstractmethod
    def reshape(self, name: str, x: str, sizes: Sequence[int]) -> str:
        """Give `x` another shape."""

    @abstractmethod
    def transpose(self, name: str, x: str, places: Sequence[int]) -> str:
        """Move the axes of `x`: each comes from its place."""

    @abstractmethod
    def softmax(self, name: str, x: str) -> str:
        """Compute the softmax over the last axis."""

    @abstractmethod
    def concatenate(self, name: str, parts: Sequence[str], axis: int) -> str:
        """Join `parts` along `axis`."""

    @abstractmethod
    def cut(self, name: str, x: str, begins: Sequence[int], sizes: Sequence[int]) -> str:
        """Take `sizes` entries of each axis from `begins` on."""

    @abstractmethod
    def stride(self, name: str, x: str, begins: Sequence[int], ends: Sequence[int], steps: Sequence[int]) -> str:
        """Take the entries of each axis from `begins` until before `ends`, in positive `steps`."""

    @abstractmethod
    def gather(self, name: str, x: str, indices: Array, axis: int) -> str:
        """Take the entries at `indices` (n,) along `axis`."""

    @abstractmethod
    def pad(self, name: str, x: str, around: Any, edge: float) -> str:
        """Put `edge` around `x`: `around` (axes, 2) entries before and after."""

    @abstractmethod
    def pool(self, kind: str, name: str, x: str, kernel: Sequence[int], strides: Sequence[int]) -> str:
        """Compute ``AveragePool`` or ``MaxPool`` of (1, height, width, channels), which the windows do not leave."""

    @abstractmethod
    def broadcast(self, name: str, x: str, sizes: Sequence[int]) -> str:
        """Repeat `x` to `sizes`."""

    @abstractmethod
    def finish(self) -> None:
        """End at the outputs, which lie in ONNX's order and have its names."""

    @abstractmethod
    def plain(self, value: Value) -> Value:
        """Return `value` with its scale applied."""

    def _name(self, wish: str) -> str:
        """Return a name that no node has, `wish` or much like it."""
        unique, count = wish, 0
        while unique in self._taken:
            count += 1
            unique = f"{wish}_{count}"
        self._taken.add(unique)
        return unique

    # --- what ONNX calls by name ------------------------------------------------------------------------------------

    def constant(self, name: str) -> Constant | None:
        """Return what the ONNX graph holds under `name`, None where that is computed."""
        return self._constants.get(name)

    def keep(self, name: str, constant: Constant) -> None:
        """Say that what ONNX calls `name` is `constant`."""
        self._constants[name] = constant

    def known(self, node: Node, position: int) -> Array | None:
        """Return the numbers of the node's input at `position`, None without one.

        Raises `NotImplementedError` where they are computed.
        """
        if not node.has(position):
            return None
        constant = self._constants.get(node.inputs[position])
        if constant is None:
            raise NotImplementedError(f"{node.kind} with a computed {node.inputs[position]!r}")
        return constant.real()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of what ONNX calls `name`; raises `VerificationError` where it is not known."""
        shape = self.source.shape(name)
        if shape is None:
            raise VerificationError(f"the shape of {name!r} must be known to convert the graph, it is not")
        return shape

    def put(self, name: str, node: str, *, order: Sequence[int] | None = None, scale: Any = None) -> None:
        """Say that `node` computes what ONNX calls `name`; `order` as it is written, unless given."""
        shape = self.shape(name)
        self._values[name] = Value(node, shape, tuple(range(len(shape)) if order is None else order), scale)

    def computed(self, names: Sequence[str]) -> bool:
        """Return whether nodes compute all of what ONNX calls `names`."""
        return all(name in self._values for name in names)

    def alone(self, name: str) -> bool:
        """Return whether what ONNX calls `name` is read once, and is no output."""
        return len(self.source.readers(name)) == 1 and name not in self._ends

    def scaled(self, name: str) -> Value:
        """Return the value `name`, its scale still to be applied; raises `NotImplementedError` for a constant."""
        if name not in self._values:
            raise NotImplementedError(f"{name!r}, a constant where a computed value is expected")
        return self._values[name]

    def value(self, name: str) -> Value:
        """Return the value `name`, in the order it lies in."""
        return self.plain(self.scaled(name))

    def ordered(self, value: Value, order: Sequence[int]) -> Value:
        """Return `value` with its axes in `order`; its scale stays."""
        wanted = tuple(order)
        if value.order == wanted:
            return value
        places = [value.order.index(axis) for axis in wanted]
        key = ("ordered", value.node, *places)
        if key not in self._made:
            long = [[axis for axis in axes if value.shape[axis] != 1] for axes in (value.order, wanted)]
            if long[0] == long[1]:  # only axes of one entry move: the numbers stay where they are
                sizes = [value.shape[axis] for axis in wanted]
                self._made[key] = self.reshape(f"{value.node}/reshaped", value.node, sizes)
            else:
                self._made[key] = self.transpose(f"{value.node}/transposed", value.node, places)
        return replace(value, node=self._made[key], order=wanted)

    def as_written(self, value: Value) -> Value:
        """Return `value` with its axes in ONNX's order."""
        return self.ordered(value, range(len(value.shape)))

    def written(self, name: str) -> Value:
        """Return the value `name`, its axes in ONNX's order."""
        return self.as_written(self.value(name))

    def aligned(self, names: Sequence[str]) -> tuple[list[str], tuple[int, ...]]:
        """Return nodes of values and constants that broadcast with each other, and the order that their axes have.

        Raises `NotImplementedError` for constants alone, and for ones that have more axes than the values.
        """
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
                value = Value(self.reshape(f"{value.node}/reshaped", value.node, shape), shape, tuple(range(rank)))
            nodes.append(self.ordered(value, order).node)
        return nodes, order


def laid(values: Array, order: Sequence[int]) -> Array:
    """Return `values`, broadcastable in ONNX's order, so that they broadcast with a tensor of `order`."""
    if values.size == 1:
        return values.reshape(())
    return values.reshape((1,) * (len(order) - values.ndim) + values.shape).transpose(order)
