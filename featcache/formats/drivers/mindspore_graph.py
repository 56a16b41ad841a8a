"""The classifier's ONNX graph as a MindSpore cell, which is what the framework exports.

MindSpore compiles `construct` from its source and unrolls loops over what is fixed, so the network is a list of steps,
each an operation of the framework on values that came before. It runs inside the format's own environment and imports
nothing of featcache: the graph is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mindspore
import numpy as np
from mindspore import nn, ops

if TYPE_CHECKING:
    from featcache.graph.nodes import Graph, Node

_LOWEST = float(np.finfo(np.float32).min)
_FLOAT = 1  # ONNX's number of float32
_SIXTH = 1e-6  # how near a slope must be to 1/6 to be one


class MindSporeGraph(nn.Cell):  # type: ignore[misc]
    """The `graph`, of a fixed batch: image (1, H, W, 3) uint8 in, (logits, probabilities) float32 out.

    Weights are parameters, called as in the graph. Those of a quantized network are the integers they are and become
    floats in use; activations are not rounded. Raises `NotImplementedError` naming operations that have no equivalent.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__(auto_prefix=False)
        graph.check_kinds(KINDS, form="MindSpore")
        operations, constants, same = _read(graph)
        used = [
            name for name in dict.fromkeys(name for entry in operations for name in entry.tensors) if name in constants
        ]
        weights = [name for name in used if constants[name].size > 1]
        numbers = [name for name in used if constants[name].size == 1]
        self.weights = mindspore.ParameterTuple(
            [mindspore.Parameter(mindspore.Tensor(constants[name]), name=name) for name in weights]
        )
        self.numbers = tuple(mindspore.Tensor(constants[name]) for name in numbers)
        self.steps = nn.CellList([_Step(entry.function, *entry.fixed) for entry in operations])
        order = [graph.inputs[0], *weights, *numbers, *(entry.output for entry in operations)]
        places = {name: place for place, name in enumerate(order)}
        self.sources = tuple(tuple(places[name] for name in entry.tensors) for entry in operations)
        self.logits, self.probabilities = (places[same.get(name, name)] for name in ("logits", "probabilities"))

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
class _Operation:
    """`output` is `function`, of the framework, of the values called `tensors` and then of what is `fixed`."""

    tensors: tuple[str, ...]
    output: str
    function: Any
    fixed: tuple[Any, ...] = ()


def _read(graph: Graph) -> tuple[list[_Operation], dict[str, Any], dict[str, str]]:
    """Return the steps in order, the constants by name, and of what hands a value on the name of that value."""
    constants: dict[str, Any] = dict(graph.constants)
    same: dict[str, str] = {}
    steps: list[_Operation] = []
    for node in graph.nodes:
        if node.kind == "DequantizeLinear" and node.inputs[0] in graph.constants:
            steps += _dequantized(node, constants)
        elif node.kind in _HANDING_ON:
            same[node.output] = same.get(node.inputs[0], node.inputs[0])
        else:
            for step in _OPERATIONS[node.kind](node):
                tensors = tuple(same.get(name, name) for name in step.tensors)
                steps.append(_Operation(tensors, step.output, step.function, step.fixed))
    return steps, constants, same


def _dequantized(node: Node, constants: dict[str, Any]) -> Iterator[_Operation]:
    """Yield the steps that make floats of a constant's integers; a bias, of 32 bits, is stored as floats."""
    stored = node.stored()
    assert stored is not None
    if stored.values.dtype == np.int32:
        constants[node.output] = stored.real()
        return
    floats = f"{node.output}/floats"
    yield _Operation((node.inputs[0],), floats, ops.Cast(), (mindspore.float32,))
    if stored.zero_point.any():
        constants[f"{node.output}/zero"] = stored.zero_point.astype(np.float32)
        yield _Operation((floats, f"{node.output}/zero"), f"{floats}/shifted", ops.Sub())
        floats = f"{floats}/shifted"
    constants[node.inputs[1]] = stored.scale
    yield _Operation((floats, node.inputs[1]), node.output, ops.Mul())


# --- the operations: from a node, its steps -------------------------------------------------------------------------


def _of_first(node: Node, function: Any, *fixed: Any) -> Iterator[_Operation]:
    """Yield `function` of the first input alone: the others are constants, which only give it its form."""
    yield _Operation(node.inputs[:1], node.output, function, fixed)


def _of_all(node: Node, function: Any) -> Iterator[_Operation]:
    """Yield `function` of every input."""
    yield _Operation(tuple(name for name in node.inputs if name), node.output, function)


def _plain(operation: Any) -> Callable[[Node], Iterator[_Operation]]:
    """Return the form of an operation that takes all inputs and nothing else."""
    return lambda node: _of_all(node, operation())


def _shape(node: Node) -> tuple[int, ...]:
    """Return the shape of the first input."""
    if node.shape is None:
        raise NotImplementedError(f"{node.kind} of a value of unknown shape")
    return node.shape


def _result_shape(node: Node) -> tuple[int, ...]:
    """Return the shape of the first result."""
    if node.result_shape is None:
        raise NotImplementedError(f"{node.kind} with a result of unknown shape")
    return node.result_shape


def _with_bias(node: Node, function: Any) -> Iterator[_Operation]:
    """Yield a product, and the addition of its bias where it has one."""
    product = f"{node.output}/product" if node.has(2) else node.output
    yield _Operation(node.inputs[:2], product, function)
    if node.has(2):
        yield _Operation((product, node.inputs[2]), node.output, ops.BiasAdd())


def _conv(node: Node) -> Iterator[_Operation]:
    window = node.window()
    top, left, bottom, right = window.pads
    function = ops.Conv2D(
        _result_shape(node)[1], window.kernel, pad_mode="pad", pad=(top, bottom, left, right), stride=window.strides,
        group=node.attributes["group"], dilation=window.dilations,
    )  # fmt: skip
    return _with_bias(node, function)


def _gemm(node: Node) -> Iterator[_Operation]:
    return _with_bias(node, ops.MatMul(False, node.transposes_weight()))


def _reached(node: Node) -> tuple[tuple[int, int], ...]:
    """Return how far the windows of a pooling reach beyond the image, before and after, along each of the four axes."""
    window, shape, result = node.window(), _shape(node), _result_shape(node)
    around = [(0, 0), (0, 0)]
    for axis in (2, 3):
        before, size, stride = window.pads[axis - 2], window.kernel[axis - 2], window.strides[axis - 2]
        around.append((before, max(0, (result[axis] - 1) * stride + size - before - shape[axis])))
    return tuple(around)


def _max_pool(node: Node) -> Iterator[_Operation]:
    window, padded = node.window(), f"{node.output}/padded"
    if set(window.dilations) != {1}:
        raise NotImplementedError("MaxPool with dilation")
    yield _Operation(node.inputs[:1], padded, ops.PadV3(), (_from_last(_reached(node)), _LOWEST))
    yield _Operation((padded,), node.output, ops.MaxPool(window.kernel, window.strides, "valid"))


def _average_pool(node: Node) -> Iterator[_Operation]:
    window = node.window()
    if any(size for pair in _reached(node) for size in pair):
        raise NotImplementedError("AveragePool with windows that reach beyond the image")
    return _of_first(node, ops.AvgPool(window.kernel, window.strides, "valid"))


def _from_last(around: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
    """Return the padding of each axis as MindSpore counts it: from the last axis."""
    return tuple(size for pair in reversed(around) for size in pair)


def _clip(node: Node) -> Iterator[_Operation]:
    limits = node.limits()
    return _of_first(node, ops.ReLU6()) if limits == (0.0, 6.0) else _of_first(node, ops.clamp, *limits)


def _hard_sigmoid(node: Node) -> Iterator[_Operation]:
    if abs(node.attributes["alpha"] - 1 / 6) > _SIXTH or node.attributes["beta"] != 0.5:
        raise NotImplementedError("HardSigmoid of another slope than a sixth")
    return _of_first(node, ops.HSigmoid())


def _elu(node: Node) -> Iterator[_Operation]:
    if node.attributes["alpha"] != 1.0:
        raise NotImplementedError("Elu with another alpha than 1")
    return _of_first(node, ops.Elu(1.0))


def _cast(node: Node) -> Iterator[_Operation]:
    if node.attributes["to"] != _FLOAT:
        raise NotImplementedError("Cast other than to float32")
    return _of_first(node, ops.Cast(), mindspore.float32)


def _slice(node: Node) -> Iterator[_Operation]:
    return _strided(node.inputs[0], node.output, node.slices(_shape(node)))


def _split(node: Node) -> Iterator[_Operation]:
    shape, start = _shape(node), 0
    axis = node.attributes["axis"] % len(shape)
    for output, size in zip(node.outputs, node.split_sizes(shape[axis]), strict=True):
        axes = [slice(0, length, 1) for length in shape]
        axes[axis] = slice(start, start + size, 1)
        yield from _strided(node.inputs[0], output, tuple(axes))
        start += size


def _strided(source: str, output: str, axes: tuple[slice, ...]) -> Iterator[_Operation]:
    begins, ends, steps = (tuple(getattr(axis, end) for axis in axes) for end in ("start", "stop", "step"))
    yield _Operation((source,), output, ops.StridedSlice(), (begins, ends, steps))


def _gather(node: Node) -> Iterator[_Operation]:
    indices = node.constant(1)
    if indices is None:
        raise NotImplementedError("Gather with computed indices")
    return _of_first(node, ops.Gather(), mindspore.Tensor(indices.astype(np.int32)), node.attributes["axis"])


def _pad(node: Node) -> Iterator[_Operation]:
    return _of_first(node, ops.PadV3(), _from_last(node.paddings(len(_shape(node)))), node.pad_value())


def _reduced(operation: Any) -> Callable[[Node], Iterator[_Operation]]:
    """Return the form of an operation over the node's axes, all of them where none are named."""
    return lambda node: _of_first(node, operation(bool(node.attributes["keepdims"])), node.integers("axes", 1) or ())


def _length(node: Node) -> Iterator[_Operation]:
    square, total = f"{node.output}/square", f"{node.output}/sum"
    yield _Operation((node.inputs[0], node.inputs[0]), square, ops.Mul())
    axes = node.integers("axes", 1) or ()
    yield _Operation((square,), total, ops.ReduceSum(bool(node.attributes["keepdims"])), (axes,))
    yield _Operation((total,), node.output, ops.Sqrt())


def _layer_norm(node: Node) -> Iterator[_Operation]:
    axis = node.attributes["axis"]
    return _of_all(node, _First(ops.LayerNorm(axis, axis, node.attributes["epsilon"])))


def _batch_norm(node: Node) -> Iterator[_Operation]:
    return _of_all(node, _First(ops.BatchNorm(epsilon=node.attributes["epsilon"])))


def _reshape(node: Node) -> Iterator[_Operation]:
    return _of_first(node, ops.Reshape(), _result_shape(node))


_HANDING_ON = frozenset({"DequantizeLinear", "Identity", "QuantizeLinear"})  # of what is computed
_OPERATIONS: Mapping[str, Callable[[Node], Iterator[_Operation]]] = {
    "Add": _plain(ops.Add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda node: _of_all(node, _Joined(ops.Concat(node.attributes["axis"]))),
    "Conv": _conv,
    "Div": _plain(ops.Div),
    "Elu": _elu,
    "Erf": _plain(ops.Erf),
    "Exp": _plain(ops.Exp),
    "Expand": lambda node: _of_first(node, ops.BroadcastTo(_result_shape(node))),
    "Flatten": _reshape,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda node: _of_first(node, ops.ReduceMean(True), (2, 3)),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _plain(ops.HSwish),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda node: _of_first(node, nn.LeakyReLU(node.attributes["alpha"])),
    "MatMul": lambda node: _of_all(node, ops.matmul),
    "Max": _plain(ops.Maximum),
    "MaxPool": _max_pool,
    "Min": _plain(ops.Minimum),
    "Mul": _plain(ops.Mul),
    "Neg": _plain(ops.Neg),
    "Pad": _pad,
    "Pow": _plain(ops.Pow),
    "ReduceL2": _length,
    "ReduceMax": _reduced(ops.ReduceMax),
    "ReduceMean": _reduced(ops.ReduceMean),
    "ReduceSum": _reduced(ops.ReduceSum),
    "Relu": _plain(ops.ReLU),
    "Reshape": _reshape,
    "Sigmoid": _plain(ops.Sigmoid),
    "Slice": _slice,
    "Softmax": lambda node: _of_first(node, ops.Softmax(node.attributes["axis"])),
    "Split": _split,
    "Sqrt": _plain(ops.Sqrt),
    "Squeeze": _reshape,
    "Sub": _plain(ops.Sub),
    "Tanh": _plain(ops.Tanh),
    "Transpose": lambda node: _of_first(node, ops.Transpose(), tuple(node.attributes["perm"])),
    "Unsqueeze": _reshape,
}
KINDS = frozenset(_OPERATIONS) | _HANDING_ON  # the operations that have a MindSpore form
