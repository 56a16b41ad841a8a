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
import onnx
from onnx import helper, numpy_helper

from featcache.graph.nodes import QUANTIZERS, Graph, Node

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
    rewriter = _Rewriter(Graph(proto))
    integer = [node for node in rewriter.graph.nodes if rewriter.fits(node)]
    products = [node for node in rewriter.graph.nodes if node.kind in _PRODUCTS]
    sizes = {node.output: rewriter.weight_size(node) for node in products}
    share = IntegerShare(
        sum(node.kind in _PRODUCTS for node in integer),
        len(products),
        sum(sizes.get(node.output, 0) for node in integer),
        sum(sizes.values()),
    )
    rewriter.rewrite({node.output for node in integer}, rewriter.values_of(integer))
    return share


class _Rewriter:
    """Writes the file of `graph` anew in place; `graph` stays as it was read."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.proto = graph.proto.graph
        self.added: dict[str, onnx.TensorProto] = {}

    def fits(self, node: Node) -> bool:
        """Return whether `node` is of the integer pattern."""
        if node.kind in ("Conv", "Gemm"):
            whole = self._activation(node.inputs[0]) is not None and self._weight(node.inputs[1]) is not None
        else:
            whole = node.kind == "Add" and all(self._activation(name) is not None for name in node.inputs)
        return whole and self._quantizer(node) is not None

    def values_of(self, integer: list[Node]) -> set[str]:
        """Return the names of quantized values that the `integer` nodes read or write."""
        names = set()
        for node in integer:
            quantizer = self._quantizer(node)
            assert quantizer is not None
            names.add(quantizer.output)
            names |= {source.inputs[0] for name in node.inputs if (source := self._activation(name)) is not None}
        return names

    def weight_size(self, node: Node) -> int:
        """Return how many numbers the constant second input of a product has; 0 where it is computed."""
        stored = self._weight(node.inputs[1])
        values = node.constant(1) if stored is None else stored.constant(0)
        return 0 if values is None else math.prod(values.shape)

    def rewrite(self, integer: set[str], kept: set[str]) -> None:
        """Write the graph anew: `integer` names the outputs of nodes in integers, `kept` quantized values."""
        nodes: list[onnx.NodeProto] = []
        scales: dict[str, list[str]] = {}  # of each DequantizeLinear that is made here: its scale and zero point
        for node in self.graph.nodes:
            if node.kind == "DequantizeLinear":
                continue  # made where it is read
            if node.kind == "QuantizeLinear":
                if node.output in kept:
                    nodes.append(node.proto)
                continue
            whole = node.output in integer
            for position, name in enumerate(node.inputs):
                source = self.graph.maker(name)
                if source is None or source.kind != "DequantizeLinear":
                    continue
                if source.constant(0) is not None:
                    as_integers = whole and position == 1 and node.kind != "Add"
                    node.proto.input[position] = name if as_integers else self._float(source)
                    if as_integers:
                        nodes.append(source.proto)
                elif source.inputs[0] in kept:
                    copy = onnx.NodeProto()
                    copy.CopyFrom(source.proto)
                    copy.name = copy.output[0] = f"{name}/{node.name}:{position}"
                    scales[copy.output[0]] = list(source.inputs[1:])
                    nodes.append(copy)
                    node.proto.input[position] = copy.output[0]
                else:
                    node.proto.input[position] = self._rounded(source)
            if whole and node.kind == "Conv":
                nodes.extend(self._padding(node, scales[node.proto.input[0]]))
            nodes.append(node.proto)
        used = {name for node in nodes for name in node.input}
        tensors = [tensor for tensor in (*self.proto.initializer, *self.added.values()) if tensor.name in used]
        del self.proto.node[:], self.proto.initializer[:]
        self.proto.node.extend(nodes)
        self.proto.initializer.extend(tensors)

    def _activation(self, name: str) -> Node | None:
        """Return the DequantizeLinear that makes the computed value `name`, else None."""
        node = self.graph.maker(name)
        return node if node is not None and node.kind == "DequantizeLinear" and node.constant(0) is None else None

    def _weight(self, name: str) -> Node | None:
        """Return the DequantizeLinear of stored int8 that makes `name`, else None."""
        node = self.graph.maker(name)
        stored = node.constant(0) if node is not None and node.kind == "DequantizeLinear" else None
        return node if stored is not None and stored.dtype == np.int8 else None

    def _quantizer(self, node: Node) -> Node | None:
        """Return the QuantizeLinear that alone reads what `node`, perhaps with a Relu or Clip, computes, else None."""
        reader = self.graph.only_reader(node.output)
        if reader is not None and reader.kind in _FUSED:
            reader = self.graph.only_reader(reader.output)
        return reader if reader is not None and reader.kind == "QuantizeLinear" else None

    def _rounded(self, source: Node) -> str:
        """Return the name of the value that was rounded before the DequantizeLinear `source`."""
        quantizer = self.graph.maker(source.inputs[0])
        assert quantizer is not None
        assert quantizer.kind in QUANTIZERS
        return quantizer.inputs[0]

    def _float(self, source: Node) -> str:
        """Return the name of a constant with the floats that `source` makes of stored integers."""
        name = f"{source.output}/float"
        stored = source.stored()
        assert stored is not None
        if name not in self.added:
            self.added[name] = numpy_helper.from_array(stored.real(), name)
        return name

    def _padding(self, node: Node, scale: list[str]) -> Iterator[onnx.NodeProto]:
        """Give nodes that pad what the convolution `node` reads where its two sides differ, and take that from it.

        `scale`: the names of scale and zero point of what it reads.
        """
        pads = list(node.window().pads)
        half = len(pads) // 2
        if pads[:half] == pads[half:]:
            return
        for attribute in [entry for entry in node.proto.attribute if entry.name in ("pads", "auto_pad")]:
            node.proto.attribute.remove(attribute)
        node.proto.attribute.append(helper.make_attribute("pads", [0] * len(pads)))
        # a batch and channels are never padded; what is added is 0, which the zero point stands for exactly
        around = np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], dtype=np.int64)
        name, padded = f"{node.name}/pads", f"{node.name}/padded"
        self.added[name] = numpy_helper.from_array(around, name)
        integers, floats = f"{padded}/quantized", f"{padded}/dequantized"
        yield helper.make_node("Pad", [node.proto.input[0], name], [padded], padded)
        yield helper.make_node("QuantizeLinear", [padded, *scale], [integers], f"{padded}/quantize")
        yield helper.make_node("DequantizeLinear", [integers, *scale], [floats], f"{padded}/dequantize")
        node.proto.input[0] = floats
