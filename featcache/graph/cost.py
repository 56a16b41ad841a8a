"""What the graph of a device file costs by counting: multiplications, numbers stored, memory of values on the way.

Counted on the ONNX file with a batch of one. A runtime may need more (buffers of its own) or less (fused operations);
what it did need is measured as `resident_bytes`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.errors import FormatError

if TYPE_CHECKING:
    import onnx

_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
_VIEWS = ("Reshape", "Flatten", "Identity", "Squeeze", "Unsqueeze", "Dropout")
_IN_PLACE = ("Relu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid", "LeakyRelu", "Elu", "Tanh", "Gelu", "Erf", "Sqrt",
             "BatchNormalization", "Softmax")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Figures:
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


def count_figures(path: str | Path, *, integers: bool) -> Figures:
    """Return the figures of the ONNX file at `path`.

    `integers`: values between QuantizeLinear and DequantizeLinear are held as the bytes they are there; else as the
    floats they stand for, as by a runtime that was given the floats. `FormatError` where a shape stays unknown.
    """
    import onnx

    model = onnx.load(str(path))
    inferred = _inferred(model)
    macs = sum(_node_macs(inferred).values())
    return Figures(macs, _parameters(model.graph), _peak_bytes(inferred, integers=integers))


def node_macs(model: onnx.ModelProto) -> dict[str, int]:
    """Return the multiply-accumulates per image of every convolution and matrix product, by node name.

    Counted on the exported graph with a batch of one, after shape inference; `FormatError` where a shape stays unknown.
    """
    return _node_macs(_inferred(model))


def _inferred(model: onnx.ModelProto) -> onnx.GraphProto:
    import onnx

    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    return onnx.shape_inference.infer_shapes(fixed, strict_mode=True, data_prop=True).graph


def _shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        shapes[value.name] = tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim)
    return shapes


def _node_macs(graph: onnx.GraphProto) -> dict[str, int]:
    shapes = _shapes(graph)
    counts: dict[str, int] = {}
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        result, weight = shapes.get(node.output[0], ()), shapes.get(node.input[1], ())
        if not result or not weight or not all(result) or not all(weight):
            raise FormatError(f"the graph must have known shapes to count its work, node {node.name!r} has not")
        if node.op_type == "Conv":
            per_value = math.prod(weight[1:])
        elif node.op_type == "MatMul":
            per_value = weight[-2]
        else:
            transposed = any(entry.name == "transB" and entry.i for entry in node.attribute)
            per_value = weight[1] if transposed else weight[0]
        counts[node.name] = math.prod(result) * per_value
    return counts


def _parameters(graph: onnx.GraphProto) -> int:
    """Return how many numbers the graph holds, scales, zero points and shapes not counted."""
    import onnx

    scales = {name for node in graph.node if node.op_type in _QUANTIZERS for name in node.input[1:]}
    shapes = (onnx.TensorProto.INT64, onnx.TensorProto.BOOL)
    counted = [t for t in graph.initializer if t.name not in scales and t.data_type not in shapes and len(t.dims)]
    return sum(math.prod(tensor.dims) for tensor in counted)


def _peak_bytes(graph: onnx.GraphProto, *, integers: bool) -> int:
    """Return the largest sum of bytes of values that are alive at once."""
    sizes = _value_bytes(graph)
    readers: dict[str, list[int]] = {}
    for position, node in enumerate(graph.node):
        for name in node.input:
            readers.setdefault(name, []).append(position)
    place: dict[str, str] = {}  # value → the value whose memory it is in

    def home(name: str) -> str:
        while name in place:
            name = place[name]
        return name

    for node in graph.node:
        source, result = next(iter(node.input), ""), node.output[0]
        if source not in sizes:
            continue
        alone = len(readers.get(source, [])) == 1
        if node.op_type in _QUANTIZERS:
            place[result] = source
            if integers and node.op_type == "QuantizeLinear" and alone:
                # the operation before writes the integers itself
                sizes[home(source)] = min(sizes[home(source)], sizes[result])
        elif node.op_type in _VIEWS or (node.op_type in _IN_PLACE and alone):
            place[result] = source
    born: dict[str, int] = {value.name: 0 for value in graph.input}
    died: dict[str, int] = dict(born)
    for position, node in enumerate(graph.node):
        for name in node.output:
            if name in sizes:
                born.setdefault(home(name), position)
                died[home(name)] = max(died.get(home(name), 0), position)
        for name in node.input:
            if home(name) in born:
                died[home(name)] = position
    for value in graph.output:
        died[home(value.name)] = len(graph.node)
    changes = [0] * (len(graph.node) + 2)
    for name, position in born.items():
        changes[position] += sizes[name]
        changes[died[name] + 1] -= sizes[name]
    alive = peak = 0
    for change in changes:
        alive += change
        peak = max(peak, alive)
    return peak


def _value_bytes(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the bytes of every value that is computed from the image, by name."""
    import onnx

    shapes = _shapes(graph)
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    reached = {value.name for value in graph.input}
    sizes: dict[str, int] = {}
    for node in graph.node:
        if reached.intersection(node.input):
            reached.update(node.output)
    for name in reached:
        if name in kinds:
            width = onnx.helper.tensor_dtype_to_np_dtype(kinds[name]).itemsize
            sizes[name] = math.prod(shapes[name]) * int(width)
    return sizes


def figures_json(figures: Figures | None, resident_bytes: int | None) -> Mapping[str, int | str | None]:
    """Return the figures as the JSON keys that reports and benchmarks share."""
    unknown = {"macs": None, "parameters": None, "peak_activation_bytes": None}
    return {
        **(unknown if figures is None else figures.to_json()),
        "resident_bytes": resident_bytes,
        "power": "not measured: it takes the device and a meter",
    }
