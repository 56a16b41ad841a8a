"""The classifier's ONNX graph as a MindSpore cell, which is what the framework exports.

MindSpore compiles `construct` from its source and unrolls loops over what is fixed, so the network is a list of steps,
each an operation of the framework on values that came before. It runs inside the format's own environment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import mindspore
import numpy as np
import onnx
from mindspore import nn, ops
from onnx import numpy_helper

_LOWEST = float(np.finfo(np.float32).min)


class MindSporeGraph(nn.Cell):  # type: ignore[misc]
    """The graph at `path`, of a fixed batch: image (1, H, W, 3) uint8 in, (logits, probabilities) float32 out.

    Weights are parameters, called as in the graph. Those of a quantized network are the integers they are and become
    floats in use; activations are not rounded. Raises `NotImplementedError` naming operations that have no equivalent.
    """

    def __init__(self, path: str) -> None:
        super().__init__(auto_prefix=False)
        graph = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True).graph
        unknown = sorted({node.op_type for node in graph.node} - set(_OPERATIONS) - _REWRITTEN)
        if unknown:
            raise NotImplementedError(f"operations without a MindSpore form: {', '.join(unknown)}")
        nodes, constants = _read(graph)
        used = [name for name in dict.fromkeys(name for node in nodes for name in node.tensors) if name in constants]
        weights = [name for name in used if constants[name].size > 1]
        numbers = [name for name in used if constants[name].size == 1]
        self.weights = mindspore.ParameterTuple(
            [mindspore.Parameter(mindspore.Tensor(constants[name]), name=name) for name in weights]
        )
        self.numbers = tuple(mindspore.Tensor(constants[name]) for name in numbers)
        self.steps = nn.CellList([_Step(*_OPERATIONS[node.kind](node)) for node in nodes])
        order = [graph.input[0].name, *weights, *numbers, *(node.output for node in nodes)]
        places = {name: place for place, name in enumerate(order)}
        self.sources = tuple(tuple(places[name] for name in node.tensors) for node in nodes)
        self.logits, self.probabilities = places["logits"], places["probabilities"]

    def construct(self, image: Any) -> Any:
        """Return the outputs for `image`."""
        values = (image, *self.weights, *self.numbers)
        for step, sources in zip(self.steps, self.sources):  # noqa: B905 - the compiler knows no `strict`
            values = (*values, step(*[values[source] for source in sources]))
        return values[self.logits], values[self.probabilities]


class _Step(nn.Cell):  # type: ignore[misc]
    """`function` of the step's tensors and of what is fixed."""

    def __init__(self, function: Any, *fixed: Any) -> None:
        super().__init__(auto_prefix=False)
        self.function = function
        self.fixed = fixed

    def construct(self, *tensors: Any) -> Any:
        """Return the value."""
        return self.function(*tensors, *self.fixed)


class _First(nn.Cell):  # type: ignore[misc]
    """The first of the results of `function`."""

    def __init__(self, function: Any) -> None:
        super().__init__(auto_prefix=False)
        self.function = function

    def construct(self, *tensors: Any) -> Any:
        """Return the value."""
        return self.function(*tensors)[0]


class _Joined(nn.Cell):  # type: ignore[misc]
    """`function` of all tensors as one tuple."""

    def __init__(self, function: Any) -> None:
        super().__init__(auto_prefix=False)
        self.function = function

    def construct(self, *tensors: Any) -> Any:
        """Return the value."""
        return self.function(tensors)


@dataclass(frozen=True)
class _Node:
    """One operation of one result. `tensors`: what it computes on; `fixed`: constants that only give it its form.

    `shape`, `result`: of the first tensor and of the result.
    """

    kind: str
    tensors: tuple[str, ...]
    output: str
    shape: tuple[int, ...]
    result: tuple[int, ...]
    attributes: dict[str, Any]
    fixed: tuple[Any, ...] = ()

    def ints(self, place: int, key: str) -> tuple[int, ...]:
        """Return integers that new opsets hold in an input, old ones in an attribute."""
        found = self.fixed[place] if len(self.fixed) > place else self.attributes[key]
        return tuple(int(value) for value in np.asarray(found).reshape(-1))


def _read(graph: onnx.GraphProto) -> tuple[list[_Node], dict[str, Any]]:
    """Return the operations in order, each of one result, and the constants by name."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    same: dict[str, str] = {}  # what passes a value on
    nodes: list[_Node] = []
    for proto in graph.node:
        attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in proto.attribute}
        inputs = [same.get(name, name) for name in proto.input]
        output = proto.output[0]
        if proto.op_type == "Constant":
            constants[output] = numpy_helper.to_array(attributes["value"])
        elif proto.op_type == "DequantizeLinear" and inputs[0] in constants:
            nodes += _dequantized(inputs, output, attributes, constants)
        elif proto.op_type in ("Identity", "QuantizeLinear", "DequantizeLinear"):
            same[output] = inputs[0]
        else:
            count = 1 if proto.op_type in _OF_ONE else len(inputs)
            tensors = tuple(name for name in inputs[:count] if name)
            fixed = tuple(constants[name] if name else None for name in inputs[count:])
            shape = shapes.get(inputs[0], ())
            node = _Node(proto.op_type, tensors, output, shape, shapes[output], attributes, fixed)
            nodes += _whole(node, list(proto.output))
    return nodes, constants


def _dequantized(
    inputs: list[str], output: str, attributes: dict[str, Any], constants: dict[str, Any]
) -> Iterator[_Node]:
    """Yield the operations that make floats of a constant's integers; a bias, of 32 bits, is stored as floats."""
    stored, scale, zero = (constants[name] for name in inputs)
    along = [1] * stored.ndim
    if scale.size > 1:
        along[attributes.get("axis", 1)] = -1
    scale, zero = scale.reshape(along), zero.reshape(along)
    if stored.dtype == np.int32:
        constants[output] = ((stored.astype(np.float64) - zero) * scale).astype(np.float32)
        return
    floats = f"{output}/floats"
    yield _Node("Cast", (inputs[0],), floats, stored.shape, stored.shape, {"to": onnx.TensorProto.FLOAT})
    if zero.any():
        constants[f"{output}/zero"] = zero.astype(np.float32)
        yield _Node("Sub", (floats, f"{output}/zero"), f"{floats}/shifted", stored.shape, stored.shape, {})
        floats = f"{floats}/shifted"
    constants[inputs[1]] = scale
    yield _Node("Mul", (floats, inputs[1]), output, stored.shape, stored.shape, {})


def _whole(node: _Node, outputs: list[str]) -> Iterator[_Node]:
    """Yield `node`, whose results are `outputs`, as operations that are one in MindSpore."""
    if node.kind == "Split":
        axis, sizes = node.attributes.get("axis", 0) % len(node.shape), node.ints(0, "split")
        for place, (name, size) in enumerate(zip(outputs, sizes, strict=True)):
            result = (*node.shape[:axis], size, *node.shape[axis + 1 :])
            start = sum(sizes[:place])
            yield replace(node, kind="Slice", output=name, result=result, fixed=([start], [start + size], [axis]))
    elif node.kind in ("Conv", "Gemm") and len(node.tensors) == 3:
        product = f"{node.output}/product"
        yield replace(node, tensors=node.tensors[:2], output=product)
        yield replace(node, kind="BiasAdd", tensors=(product, node.tensors[2]))
    elif node.kind == "MaxPool":
        padded = f"{node.output}/padded"
        around = _reached(node)
        grown = tuple(size + before + after for size, before, after in zip(node.shape, *around, strict=True))
        fixed = ([*around[0], *around[1]], _LOWEST)
        yield replace(node, kind="Pad", output=padded, result=grown, attributes={}, fixed=fixed)
        yield replace(node, tensors=(padded,), shape=grown)
    else:
        yield node


def _reached(node: _Node) -> tuple[list[int], list[int]]:
    """Return how far the windows of a pooling reach beyond the image, before and after, along each of the four axes."""
    top, left, _, _ = node.attributes.get("pads", [0, 0, 0, 0])
    kernel, strides = node.attributes["kernel_shape"], node.attributes.get("strides", [1, 1])
    below, beside = (
        max(0, (node.result[axis] - 1) * strides[axis - 2] + kernel[axis - 2] - before - node.shape[axis])
        for axis, before in ((2, top), (3, left))
    )
    return [0, 0, top, left], [0, 0, below, beside]


# --- the operations: from a node, the function of its tensors, and what is fixed -------------------------------------


def _conv(node: _Node) -> tuple[Any, ...]:
    top, left, bottom, right = node.attributes.get("pads", [0, 0, 0, 0])
    function = ops.Conv2D(
        node.result[1], tuple(node.attributes["kernel_shape"]), pad_mode="pad", pad=(top, bottom, left, right),
        stride=tuple(node.attributes.get("strides", [1, 1])), group=node.attributes.get("group", 1),
        dilation=tuple(node.attributes.get("dilations", [1, 1])),
    )  # fmt: skip
    return (function,)


def _gemm(node: _Node) -> tuple[Any, ...]:
    if node.attributes.get("alpha", 1.0) != 1.0 or node.attributes.get("beta", 1.0) != 1.0:
        raise NotImplementedError("Gemm that scales its inputs")
    return (ops.MatMul(bool(node.attributes.get("transA", 0)), bool(node.attributes.get("transB", 0))),)


def _windows(node: _Node) -> tuple[tuple[int, ...], tuple[int, ...], str]:
    return tuple(node.attributes["kernel_shape"]), tuple(node.attributes.get("strides", [1, 1])), "valid"


def _average_pool(node: _Node) -> tuple[Any, ...]:
    before, after = _reached(node)
    if any(before) or any(after):
        raise NotImplementedError("AveragePool with windows that reach beyond the image")
    return (ops.AvgPool(*_windows(node)),)


def _clip(node: _Node) -> tuple[Any, ...]:
    # an old opset's limits are attributes, a new one's inputs that may be absent
    given = dict(zip(("min", "max"), node.fixed, strict=False))
    low, high = (given.get(key, node.attributes.get(key)) for key in ("min", "max"))
    if (low, high) == (0.0, 6.0):
        return (ops.ReLU6(),)
    return ops.clamp, None if low is None else float(low), None if high is None else float(high)


def _hard_sigmoid(node: _Node) -> tuple[Any, ...]:
    if abs(node.attributes.get("alpha", 0.2) - 1 / 6) > 1e-6 or node.attributes.get("beta", 0.5) != 0.5:
        raise NotImplementedError("HardSigmoid of another slope than a sixth")
    return (ops.HSigmoid(),)


def _cast(node: _Node) -> tuple[Any, ...]:
    if node.attributes["to"] != onnx.TensorProto.FLOAT:
        raise NotImplementedError("Cast other than to float32")
    return ops.Cast(), mindspore.float32


def _slice(node: _Node) -> tuple[Any, ...]:
    starts, ends = node.ints(0, "starts"), node.ints(1, "ends")
    axes = node.ints(2, "axes") if len(node.fixed) > 2 and node.fixed[2] is not None else tuple(range(len(starts)))
    steps = node.ints(3, "steps") if len(node.fixed) > 3 else (1,) * len(starts)
    taken = [slice(0, size, 1) for size in node.shape]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0:
            raise NotImplementedError("Slice with a negative step")
        taken[axis] = slice(*slice(start, end, step).indices(node.shape[axis]))
    return ops.StridedSlice(), *(tuple(getattr(part, key) for part in taken) for key in ("start", "stop", "step"))


def _gather(node: _Node) -> tuple[Any, ...]:
    return ops.Gather(), mindspore.Tensor(np.asarray(node.fixed[0], dtype=np.int32)), node.attributes.get("axis", 0)


def _pad(node: _Node) -> tuple[Any, ...]:
    if node.attributes.get("mode", b"constant") != b"constant":
        raise NotImplementedError("Pad other than with a constant")
    pads = node.ints(0, "pads")
    before, after = pads[: len(node.shape)], pads[len(node.shape) :]
    # MindSpore counts from the last axis
    around = tuple(int(size) for pair in zip(reversed(before), reversed(after), strict=True) for size in pair)
    value = 0.0 if len(node.fixed) < 2 or node.fixed[1] is None else float(node.fixed[1])
    return ops.PadV3(), around, value


def _reduce_mean(node: _Node) -> tuple[Any, ...]:
    return ops.ReduceMean(bool(node.attributes.get("keepdims", 1))), node.ints(0, "axes")


def _layer_norm(node: _Node) -> tuple[Any, ...]:
    axis = node.attributes.get("axis", -1)
    return (_First(ops.LayerNorm(axis, axis, node.attributes.get("epsilon", 1e-5))),)


def _batch_norm(node: _Node) -> tuple[Any, ...]:
    return (_First(ops.BatchNorm(epsilon=node.attributes.get("epsilon", 1e-5))),)


def _reshape(node: _Node) -> tuple[Any, ...]:
    return ops.Reshape(), node.result


def _plain(operation: Any) -> Callable[[_Node], tuple[Any, ...]]:
    return lambda node: (operation(),)


# of these only the first input is computed on, the others are constants
_OF_ONE = frozenset(
    {"Clip", "Expand", "Flatten", "Gather", "Pad", "ReduceMean", "Reshape", "Slice", "Split", "Squeeze", "Unsqueeze"}
)
_REWRITTEN = frozenset({"Constant", "DequantizeLinear", "Identity", "QuantizeLinear", "Split"})
_OPERATIONS: dict[str, Callable[[_Node], tuple[Any, ...]]] = {
    "Add": _plain(ops.Add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "BiasAdd": _plain(ops.BiasAdd),
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda node: (_Joined(ops.Concat(node.attributes["axis"])),),
    "Conv": _conv,
    "Div": _plain(ops.Div),
    "Erf": _plain(ops.Erf),
    "Exp": _plain(ops.Exp),
    "Expand": lambda node: (ops.BroadcastTo(node.result),),
    "Flatten": _reshape,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda node: (ops.ReduceMean(True), (2, 3)),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _plain(ops.HSwish),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda node: (nn.LeakyReLU(node.attributes.get("alpha", 0.01)),),
    "MatMul": lambda node: (ops.matmul,),
    "Max": _plain(ops.Maximum),
    "MaxPool": lambda node: (ops.MaxPool(*_windows(node)),),
    "Min": _plain(ops.Minimum),
    "Mul": _plain(ops.Mul),
    "Neg": _plain(ops.Neg),
    "Pad": _pad,
    "Pow": _plain(ops.Pow),
    "ReduceMean": _reduce_mean,
    "Relu": _plain(ops.ReLU),
    "Reshape": _reshape,
    "Sigmoid": _plain(ops.Sigmoid),
    "Slice": _slice,
    "Softmax": lambda node: (ops.Softmax(node.attributes.get("axis", -1)),),
    "Sqrt": _plain(ops.Sqrt),
    "Squeeze": _reshape,
    "Sub": _plain(ops.Sub),
    "Tanh": _plain(ops.Tanh),
    "Transpose": lambda node: (ops.Transpose(), tuple(node.attributes["perm"])),
    "Unsqueeze": _reshape,
}
