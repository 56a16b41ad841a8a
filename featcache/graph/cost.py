"""What the graph of a device file costs by counting: multiplications, numbers stored, memory of values on the way.

Counted on the ONNX file with a batch of one, of texts of 32 tokens. A runtime may need more (buffers of its own) or
less (fused operations); what it did need is measured as `resident_bytes`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featcache.errors import FormatError

if TYPE_CHECKING:
    import onnx

    from featcache.graph.nodes import Graph, Node

_PRODUCTS = ("Conv", "Gemm", "MatMul")
_VIEWS = ("Reshape", "Flatten", "Identity", "Squeeze", "Unsqueeze", "Dropout")
_IN_PLACE = ("Relu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid", "LeakyRelu", "Elu", "Tanh", "Gelu", "Erf", "Sqrt",
             "BatchNormalization", "Softmax")  # fmt: skip


@dataclass(frozen=True, slots=True)
class GraphCost:
    """`macs`: multiply-accumulates per image of convolutions and matrix products. `parameters`: numbers stored.

    `peak_activation_bytes`: the most memory that values on the way need at once for one image, operations in the order
    of the file, activation functions in place, each value freed after its last use.
    """

    macs: int
    parameters: int
    peak_activation_bytes: int

    def to_json(self) -> dict[str, int]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)


def count_cost(path: str | Path, *, integers: bool) -> GraphCost:
    """Return what the graph of the ONNX file at `path` costs.

    `integers`: values between QuantizeLinear and DequantizeLinear are held as the bytes they are there; else as the
    floats they stand for, as by a runtime that was given the floats. Raises `FormatError` where a shape stays unknown.
    """
    import onnx

    graph = _of_one_image(onnx.load(str(path)))
    macs = sum(_node_macs(graph).values())
    return GraphCost(macs, _parameters(graph), _peak_bytes(graph, integers=integers))


def node_macs(model: onnx.ModelProto) -> dict[str, int]:
    """Return the multiply-accumulates per image of every convolution and matrix product, by node name.

    Counted on the exported graph with a batch of one. Raises `FormatError` where a shape stays unknown.
    """
    return _node_macs(_of_one_image(model))


def _of_one_image(model: onnx.ModelProto) -> Graph:
    from featcache.graph.nodes import Graph
    from featcache.graph.passes import fixed_batch, has_open_length, with_batch_of_one

    # of an open length the shapes on the way are computed in the graph: they are folded into it first
    return Graph(fixed_batch(model) if has_open_length(model) else with_batch_of_one(model))


def _node_macs(graph: Graph) -> dict[str, int]:
    return {node.name: _macs(graph, node) for node in graph.nodes if node.kind in _PRODUCTS}


def _macs(graph: Graph, node: Node) -> int:
    result, weight = node.result_shape, graph.shape(node.inputs[1])
    if not result or not weight:
        raise FormatError(f"the graph must have known shapes to count its work, node {node.name!r} has not")
    if node.kind == "Conv":
        per_value = math.prod(weight[1:])
    elif node.kind == "MatMul":
        per_value = weight[-2]
    else:
        per_value = weight[1] if node.attributes["transB"] else weight[0]
    return math.prod(result) * per_value


def _parameters(graph: Graph) -> int:
    """Return how many numbers the graph holds, scales, zero points and shapes not counted."""
    from featcache.graph.nodes import QUANTIZERS

    scales = {name for node in graph.nodes if node.kind in QUANTIZERS for name in node.inputs[1:]}
    shapes = (np.int64, np.bool_)
    counted = [v for name, v in graph.constants.items() if name not in scales and v.dtype not in shapes and v.ndim]
    return sum(math.prod(values.shape) for values in counted)


def _peak_bytes(graph: Graph, *, integers: bool) -> int:
    """Return the largest sum of bytes of values that are alive at once."""
    from featcache.graph.nodes import QUANTIZERS

    sizes = _value_bytes(graph)
    place: dict[str, str] = {}  # value → the value whose memory it is in

    def home(name: str) -> str:
        while name in place:
            name = place[name]
        return name

    for node in graph.nodes:
        source, result = next(iter(node.inputs), ""), node.output
        if source not in sizes:
            continue
        alone = len(graph.readers(source)) == 1
        if node.kind in QUANTIZERS:
            place[result] = source
            if integers and node.kind == "QuantizeLinear" and alone:
                # the operation before writes the integers itself
                sizes[home(source)] = min(sizes[home(source)], sizes[result])
        elif node.kind in _VIEWS or (node.kind in _IN_PLACE and alone):
            place[result] = source
    born: dict[str, int] = dict.fromkeys(graph.inputs, 0)
    died: dict[str, int] = dict(born)
    for position, node in enumerate(graph.nodes):
        for name in node.outputs:
            if name in sizes:
                born.setdefault(home(name), position)
                died[home(name)] = max(died.get(home(name), 0), position)
        for name in node.inputs:
            if home(name) in born:
                died[home(name)] = position
    for name in graph.outputs:
        died[home(name)] = len(graph.nodes)
    changes = [0] * (len(graph.nodes) + 2)
    for name, position in born.items():
        changes[position] += sizes[name]
        changes[died[name] + 1] -= sizes[name]
    alive = peak = 0
    for change in changes:
        alive += change
        peak = max(peak, alive)
    return peak


def _value_bytes(graph: Graph) -> dict[str, int]:
    """Return the bytes of every value that is computed from the image, by name; none of values of unknown shape."""
    reached = set(graph.inputs)
    for node in graph.nodes:
        if reached.intersection(node.inputs):
            reached.update(node.outputs)
    sizes: dict[str, int] = {}
    for name in reached:
        shape, dtype = graph.shape(name), graph.dtype(name)
        if shape is not None and dtype is not None:
            sizes[name] = math.prod(shape) * dtype.itemsize
    return sizes


def cost_json(cost: GraphCost | None, resident_bytes: int | None) -> Mapping[str, int | str | None]:
    """Return the cost as the JSON keys that reports and benchmarks share."""
    unknown = {"macs": None, "parameters": None, "peak_activation_bytes": None}
    return {
        **(unknown if cost is None else cost.to_json()),
        "resident_bytes": resident_bytes,
        "power": "not measured: it takes the device and a meter",
    }
