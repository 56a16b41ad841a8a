"""Leave a quantized ONNX graph with integers only where a device's kernels compute with them.

A kernel of integers takes a whole pattern: integers in, integer weights, integers out. What our graphs hold beyond that
(integer weights of a head that reads floats, products that hand on floats, scales between operations in floats) a tool
would carry out as it is written: roundings at run time, slower than floats and no smaller.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

_PRODUCTS = ("Conv", "Gemm", "MatMul")
_FUSED = ("Relu", "Clip")  # computed by the kernel of the operation before


@dataclass(frozen=True, slots=True)
class IntegerShare:
    """What `keep_integers` left: convolutions and matrix products in integers, of all; their weights, of all."""

    operations: int
    all_operations: int
    weights: int
    all_weights: int

    def described(self) -> str:
        """Return it for people."""
        share = f"{100 * self.weights // max(self.all_weights, 1)} % of their weights"
        return f"{self.operations} of {self.all_operations} convolutions and matrix products ({share})"


def keep_integers(proto: onnx.ModelProto) -> IntegerShare:
    """Leave, in place, QuantizeLinear/DequantizeLinear around operations of the integer pattern alone; say how many.

    The pattern: a Conv or Gemm whose input and weight are dequantized, or an Add of two dequantized values, then
    perhaps a Relu or Clip, then a QuantizeLinear, none read by anything else. Every reader gets a DequantizeLinear of
    its own, biases and other weights become the floats they stand for, and unequal padding an operation before, whose
    result is quantized again (on the same integers). Values change only where a rounding goes away.
    """
    graph = _Graph(proto.graph)
    integer = [node for node in proto.graph.node if graph.fits(node)]
    kept = graph.quantizers_of(integer)
    products = [node for node in proto.graph.node if node.op_type in _PRODUCTS]
    sizes = {node.output[0]: graph.weight_size(node) for node in products}
    share = IntegerShare(
        sum(node.op_type in _PRODUCTS for node in integer),
        len(products),
        sum(sizes.get(node.output[0], 0) for node in integer),
        sum(sizes.values()),
    )
    graph.rewrite({node.output[0] for node in integer}, kept)
    return share


class _Graph:
    """One graph with its constants, and who makes and reads each value."""

    def __init__(self, proto: onnx.GraphProto) -> None:
        self.proto = proto
        self.constants = {tensor.name: tensor for tensor in proto.initializer}
        self.made = {name: node for node in proto.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in proto.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in proto.output}

    def fits(self, node: onnx.NodeProto) -> bool:
        """Return whether `node` is of the integer pattern."""
        if node.op_type in ("Conv", "Gemm"):
            whole = self._activation(node.input[0]) is not None and self._weight(node.input[1]) is not None
        else:
            whole = node.op_type == "Add" and all(self._activation(name) is not None for name in node.input)
        return whole and self._quantizer(node) is not None

    def quantizers_of(self, integer: list[onnx.NodeProto]) -> set[str]:
        """Return the names of quantized values that the `integer` nodes read or write."""
        kept = set()
        for node in integer:
            quantizer = self._quantizer(node)
            assert quantizer is not None
            kept.add(quantizer.output[0])
            kept |= {found.input[0] for name in node.input if (found := self._activation(name)) is not None}
        return kept

    def weight_size(self, node: onnx.NodeProto) -> int:
        """Return how many numbers the constant second input of a product has; 0 where it is computed."""
        found = self._weight(node.input[1])
        tensor = self.constants.get(node.input[1] if found is None else found.input[0])
        return 0 if tensor is None else math.prod(tensor.dims)

    def rewrite(self, integer: set[str], kept: set[str]) -> None:
        """Write the graph anew: `integer` names the outputs of nodes in integers, `kept` quantized values."""
        nodes: list[onnx.NodeProto] = []
        own_scales: dict[str, list[str]] = {}  # of each DequantizeLinear that is made here: its scale and zero point
        for node in self.proto.node:
            if node.op_type == "DequantizeLinear":
                continue  # made where it is read
            if node.op_type == "QuantizeLinear":
                if node.output[0] in kept:
                    nodes.append(node)
                continue
            whole = node.output[0] in integer
            for position, name in enumerate(node.input):
                source = self.made.get(name)
                if source is None or source.op_type != "DequantizeLinear":
                    continue
                if source.input[0] in self.constants:
                    as_integers = whole and position == 1 and node.op_type != "Add"
                    node.input[position] = name if as_integers else self._float(source)
                    if as_integers:
                        nodes.append(source)
                elif source.input[0] in kept:
                    own = onnx.NodeProto()
                    own.CopyFrom(source)
                    own.name = own.output[0] = f"{name}/{node.name}:{position}"
                    own_scales[own.output[0]] = list(own.input[1:])
                    nodes.append(own)
                    node.input[position] = own.output[0]
                else:
                    node.input[position] = self.made[source.input[0]].input[0]
            if whole and node.op_type == "Conv":
                nodes.extend(self._padding(node, own_scales[node.input[0]]))
            nodes.append(node)
        used = {name for node in nodes for name in node.input}
        tensors = [tensor for tensor in self.constants.values() if tensor.name in used]
        del self.proto.node[:], self.proto.initializer[:]
        self.proto.node.extend(nodes)
        self.proto.initializer.extend(tensors)

    def _activation(self, name: str) -> onnx.NodeProto | None:
        """Return the DequantizeLinear that makes the computed value `name`, else None."""
        node: onnx.NodeProto | None = self.made.get(name)
        if node is None or node.op_type != "DequantizeLinear" or node.input[0] in self.constants:
            return None
        return node

    def _weight(self, name: str) -> onnx.NodeProto | None:
        """Return the DequantizeLinear of stored int8 that makes `name`, else None."""
        node: onnx.NodeProto | None = self.made.get(name)
        if node is None or node.op_type != "DequantizeLinear" or node.input[0] not in self.constants:
            return None
        stored: bool = self.constants[node.input[0]].data_type == onnx.TensorProto.INT8
        return node if stored else None

    def _quantizer(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """Return the QuantizeLinear that alone reads what `node`, perhaps with a Relu or Clip, computes, else None."""
        reader = self._only_reader(node)
        if reader is not None and reader.op_type in _FUSED:
            reader = self._only_reader(reader)
        return reader if reader is not None and reader.op_type == "QuantizeLinear" else None

    def _only_reader(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        readers: list[onnx.NodeProto] = self.readers.get(node.output[0], [])
        if len(readers) != 1 or node.output[0] in self.outputs:
            return None
        (reader,) = readers
        return reader

    def _float(self, source: onnx.NodeProto) -> str:
        """Return the name of a constant with the floats that `source` makes of stored integers."""
        name = f"{source.output[0]}/float"
        if name not in self.constants:
            stored, scale, zero = (numpy_helper.to_array(self.constants[key]) for key in source.input)
            axis = next((entry.i for entry in source.attribute if entry.name == "axis"), 1)
            values = (stored.astype(np.float64) - _along(zero, stored, axis)) * _along(scale, stored, axis)
            self.constants[name] = numpy_helper.from_array(values.astype(np.float32), name)
        return name

    def _padding(self, node: onnx.NodeProto, scale: list[str]) -> Iterator[onnx.NodeProto]:
        """Give nodes that pad what the convolution `node` reads where its two sides differ, and take that from it.

        `scale`: the names of scale and zero point of what it reads.
        """
        attribute = next((entry for entry in node.attribute if entry.name == "pads"), None)
        if attribute is None:
            return
        pads = list(attribute.ints)
        half = len(pads) // 2
        if pads[:half] == pads[half:]:
            return
        attribute.ints[:] = [0] * len(pads)
        # a batch and channels are never padded; what is added is 0, which the zero point stands for exactly
        around = np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], dtype=np.int64)
        name, padded = f"{node.name}/pads", f"{node.name}/padded"
        self.constants[name] = numpy_helper.from_array(around, name)
        integers, floats = f"{padded}/quantized", f"{padded}/dequantized"
        yield helper.make_node("Pad", [node.input[0], name], [padded], padded)
        yield helper.make_node("QuantizeLinear", [padded, *scale], [integers], f"{padded}/quantize")
        yield helper.make_node("DequantizeLinear", [integers, *scale], [floats], f"{padded}/dequantize")
        node.input[0] = floats


def _along(values: npt.NDArray[np.generic], stored: npt.NDArray[np.generic], axis: int) -> npt.NDArray[np.float64]:
    """Return `values`, one for all or one per slice of `stored` along `axis`, as float64 that broadcasts."""
    if values.size == 1:
        return values.astype(np.float64).reshape(())
    shape = [1] * stored.ndim
    shape[axis] = -1
    return values.astype(np.float64).reshape(shape)
