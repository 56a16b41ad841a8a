"""The classifier's ONNX graph as a torch module, and what each of its operations is in torch.

For tools that take torch programs only (ExecuTorch, Core ML, ncnn): every format is made from the one ONNX file, so a
pruned or a quantized network needs no second description. What is quantized becomes torch's ``quantized_decomposed``
operations, which those tools lower to their own integer kernels. And for training the graph as it will be deployed,
which takes its `OPERATIONS`.
It imports nothing of featcache, the graph is handed in: a driver loads this one file inside a tool's own environment
(`featcache.formats.drivers.graph_reader`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from featcache.graph.nodes import Graph, Node

_SHIFT = 128  # unsigned 8-bit values minus this are signed ones with the same meaning
_SIXTH = 1e-6  # how near a slope must be to 1/6 to be one


class TorchGraph(torch.nn.Module):
    """The `graph`, of a fixed batch: image (1, H, W, 3) in, `outputs` float32 (1, n_classes) out.

    The image's values are 0 to 255 in any dtype. `integers`: how what is quantized is written. ``stored``: node by node
    as it is, with unsigned activations shifted to signed ones of the same meaning; ``none``: weights as the floats they
    stand for, activations not rounded. Raises `NotImplementedError` naming operations that have no equivalent here.
    """

    def __init__(
        self, graph: Graph, *, outputs: tuple[str, ...] = ("logits", "probabilities"), integers: str = "stored"
    ) -> None:
        super().__init__()
        graph.check_kinds(KINDS, form="torch")
        self._image = graph.inputs[0]
        self._outputs = outputs
        self._constants = dict(graph.constants)
        self._steps: list[Node] = []
        self._same: dict[str, str] = {}  # what hands a value on → that value
        self._places: dict[str, str] = {}
        for node in graph.leading_to(outputs):
            self._add(node, integers)
        for node in self._steps:
            self._keep(node)

    def _add(self, node: Node, integers: str) -> None:
        """Add `node` to the steps, unless it is folded into a constant or hands a value on."""
        if node.kind not in _QUANTIZERS or integers != "none":
            self._steps.append(node)
        elif (stored := node.stored()) is not None:
            self._constants[node.output] = stored.real()
        else:
            self._same[node.output] = self._source(node.inputs[0])

    def _keep(self, node: Node) -> None:
        """Keep the float constants and integer weights that `node` reads as buffers."""
        if node.kind in _QUANTIZERS and self._constants[node.inputs[2]].size > 1:
            self._constants[node.inputs[2]] = self._constants[node.inputs[2]].astype(np.int64)
            self._place(node.inputs[2])
        for name in node.inputs:
            value = self._constants.get(name)
            # a single number stays one in the program: only tensors are worth a place in the file
            if value is not None and value.ndim and value.dtype in (np.float32, np.int8):
                self._place(name)

    def _place(self, name: str) -> None:
        if name not in self._places:
            self._places[name] = f"constant_{len(self._places)}"
            self.register_buffer(self._places[name], torch.from_numpy(np.array(self._constants[name])))

    def _source(self, name: str) -> str:
        return self._same.get(name, name)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs for `image`."""
        values: dict[str, Any] = {self._image: image}
        for node in self._steps:
            if node.kind in _QUANTIZERS:
                values[node.output] = self._requantize(node, values)
                continue
            result = OPERATIONS[node.kind]([self._value(name, values) for name in node.inputs], node)
            for name, value in zip(node.outputs, result if isinstance(result, tuple) else (result,), strict=False):
                values[name] = value
        return tuple(values[self._source(name)] for name in self._outputs)

    def _value(self, name: str, values: Mapping[str, Any]) -> Any:
        if not name:
            return None
        name = self._source(name)
        if name in values:
            return values[name]
        if name in self._places:
            return getattr(self, self._places[name])
        constant = self._constants[name]
        return constant.item() if constant.ndim == 0 and constant.dtype == np.float32 else constant

    def _requantize(self, node: Node, values: Mapping[str, Any]) -> torch.Tensor:
        from torch.ao.quantization.fx import _decomposed  # noqa: F401  registers the operations

        operations = torch.ops.quantized_decomposed
        scale, zero = self._constants[node.inputs[1]], self._constants[node.inputs[2]]
        source, rounds = self._value(node.inputs[0], values), node.kind == "QuantizeLinear"
        if scale.size > 1:
            scales, zeros = (getattr(self, self._places[name]) for name in node.inputs[1:3])
            along = operations.quantize_per_channel if rounds else operations.dequantize_per_channel
            channels: torch.Tensor = along(source, scales, zeros, node.attributes["axis"], -127, 127, torch.int8)
            return channels
        operation = operations.quantize_per_tensor if rounds else operations.dequantize_per_tensor
        shift = _SHIFT if zero.dtype == np.uint8 else 0
        moved: torch.Tensor = operation(
            source, float(scale.reshape(())), int(zero.reshape(())) - shift, -_SHIFT, _SHIFT - 1, torch.int8
        )
        return moved


# --- the operations: of the values of a node's inputs, constants among them, and the node ---------------------------


def _padded(x: torch.Tensor, pads: tuple[int, ...], *, value: float = 0.0) -> tuple[torch.Tensor, list[int]]:
    """Return `x`, padded where the two sides differ, and the padding (height, width) left for the operation."""
    half = len(pads) // 2
    if pads[:half] == pads[half:]:
        return x, list(pads[:half])
    around = [pad for axis in reversed(range(half)) for pad in (pads[axis], pads[axis + half])]
    return functional.pad(x, around, value=value), [0] * half


def _conv(inputs: list[Any], node: Node) -> torch.Tensor:
    window = node.window()
    x, padding = _padded(inputs[0], window.pads)
    bias = inputs[2] if len(inputs) > 2 else None
    return functional.conv2d(
        x, inputs[1], bias, stride=window.strides, padding=padding, dilation=window.dilations,
        groups=node.attributes["group"],
    )  # fmt: skip


def _max_pool(inputs: list[Any], node: Node) -> torch.Tensor:
    window = node.window()
    x, padding = _padded(inputs[0], window.pads, value=float("-inf"))
    ceil = bool(node.attributes["ceil_mode"])
    return functional.max_pool2d(x, window.kernel, window.strides, padding, window.dilations, ceil_mode=ceil)


def _average_pool(inputs: list[Any], node: Node) -> torch.Tensor:
    window = node.window()
    half = len(window.pads) // 2
    if window.pads[:half] != window.pads[half:] or set(window.dilations) != {1}:
        raise NotImplementedError("AveragePool with unequal padding or dilation")
    return functional.avg_pool2d(
        inputs[0], window.kernel, window.strides, window.pads[:half], ceil_mode=bool(node.attributes["ceil_mode"]),
        count_include_pad=bool(node.attributes["count_include_pad"]),
    )  # fmt: skip


def _gemm(inputs: list[Any], node: Node) -> torch.Tensor:
    weight = inputs[1] if node.transposes_weight() else inputs[1].t()
    return functional.linear(inputs[0], weight, inputs[2] if len(inputs) > 2 else None)


def _clip(inputs: list[Any], node: Node) -> torch.Tensor:
    low, high = node.limits()
    if low is not None and high is not None:
        # the form of it that XNNPACK's integer kernels compute together with a product
        return functional.hardtanh(inputs[0], low, high)
    return torch.clamp(inputs[0], low, high)


def _cast(inputs: list[Any], node: Node) -> torch.Tensor:
    kinds = {1: torch.float32, 6: torch.int32, 7: torch.int64}
    return inputs[0].to(kinds[node.attributes["to"]])  # type: ignore[no-any-return]


def _reshape(inputs: list[Any], node: Node) -> torch.Tensor:
    sizes = node.integers("shape", 1) or ()
    return inputs[0].reshape([inputs[0].shape[i] if size == 0 else size for i, size in enumerate(sizes)])  # type: ignore[no-any-return]


def _squeeze(inputs: list[Any], node: Node) -> torch.Tensor:
    x = inputs[0]
    for axis in sorted(node.axes(x.ndim), reverse=True):
        x = x.squeeze(axis)
    return x  # type: ignore[no-any-return]


def _unsqueeze(inputs: list[Any], node: Node) -> torch.Tensor:
    x, named = inputs[0], node.integers("axes", 1) or ()
    for axis in sorted(node.axes(x.ndim + len(named))):
        x = x.unsqueeze(axis)
    return x  # type: ignore[no-any-return]


def _split(inputs: list[Any], node: Node) -> tuple[torch.Tensor, ...]:
    axis = node.attributes["axis"]
    if node.has(1):
        return torch.split(inputs[0], list(node.split_sizes(inputs[0].shape[axis])), dim=axis)
    return torch.chunk(inputs[0], len(node.outputs), dim=axis)


def _gather(inputs: list[Any], node: Node) -> torch.Tensor:
    axis, indices = node.attributes["axis"], np.asarray(inputs[1])
    if indices.ndim == 0:
        return inputs[0].select(axis, int(indices))  # type: ignore[no-any-return]
    if indices.ndim > 1:
        raise NotImplementedError("Gather with indices of more than one axis")
    return torch.index_select(inputs[0], axis, torch.from_numpy(indices.astype(np.int64)))


def _slice(inputs: list[Any], node: Node) -> torch.Tensor:
    x, taken = inputs[0], node.slices(inputs[0].shape)
    for axis in node.integers("axes", 3) or range(x.ndim):
        index = [slice(None)] * x.ndim
        index[axis] = taken[axis]
        x = x[tuple(index)]
    return x  # type: ignore[no-any-return]


def _pad(inputs: list[Any], node: Node) -> torch.Tensor:
    around = [size for pair in reversed(node.paddings(inputs[0].ndim)) for size in pair]
    return functional.pad(inputs[0], around, value=node.pad_value())


def _layer_norm(inputs: list[Any], node: Node) -> torch.Tensor:
    x = inputs[0]
    axis = node.attributes["axis"] % x.ndim
    bias = inputs[2] if len(inputs) > 2 else None
    return functional.layer_norm(x, list(x.shape[axis:]), inputs[1], bias, node.attributes["epsilon"])


def _batch_norm(inputs: list[Any], node: Node) -> torch.Tensor:
    x, weight, bias, mean, variance = inputs
    return functional.batch_norm(x, mean, variance, weight, bias, False, 0.0, node.attributes["epsilon"])


def _reduced(function: Callable[..., torch.Tensor]) -> Operation:
    """Return the operation that computes `function` over the node's axes."""

    def operation(inputs: list[Any], node: Node) -> torch.Tensor:
        axes = node.integers("axes", 1) or tuple(range(inputs[0].ndim))
        return function(inputs[0], axes, keepdim=bool(node.attributes["keepdims"]))

    return operation


def _length(x: torch.Tensor, axes: tuple[int, ...], *, keepdim: bool) -> torch.Tensor:
    """Return the Euclidean length over `axes`, of operations that every tool has."""
    return (x * x).sum(axes, keepdim=keepdim).sqrt()


def _hard_sigmoid(inputs: list[Any], node: Node) -> torch.Tensor:
    alpha, beta = node.attributes["alpha"], node.attributes["beta"]
    if abs(alpha - 1 / 6) < _SIXTH and beta == 0.5:
        return functional.hardsigmoid(inputs[0])
    return torch.clamp(inputs[0] * alpha + beta, 0.0, 1.0)


def _tensor(value: Any) -> Any:
    return value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value, dtype=np.float32))


def _binary(function: Callable[[Any, Any], torch.Tensor]) -> Operation:
    return lambda inputs, node: function(inputs[0], inputs[1])


def _unary(function: Callable[[torch.Tensor], torch.Tensor]) -> Operation:
    return lambda inputs, node: function(inputs[0])


Operation = Callable[[list[Any], "Node"], Any]
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
# what has values computed from others; QuantizeLinear and DequantizeLinear depend on what the graph is made into
OPERATIONS: dict[str, Operation] = {
    "Add": _binary(operator.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda inputs, node: torch.cat([_tensor(value) for value in inputs], node.attributes["axis"]),
    "Conv": _conv,
    "Div": _binary(operator.truediv),
    "Elu": lambda inputs, node: functional.elu(inputs[0], node.attributes["alpha"]),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Expand": lambda inputs, node: inputs[0].expand(node.integers("shape", 1)),
    "Flatten": lambda inputs, node: torch.flatten(inputs[0], node.attributes["axis"]),
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": _unary(lambda x: torch.mean(x, (2, 3), keepdim=True)),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(functional.hardswish),
    "Identity": lambda inputs, node: inputs[0],
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda inputs, node: functional.leaky_relu(inputs[0], node.attributes["alpha"]),
    "MatMul": _binary(torch.matmul),
    "Max": _binary(lambda a, b: torch.maximum(_tensor(a), _tensor(b))),
    "MaxPool": _max_pool,
    "Min": _binary(lambda a, b: torch.minimum(_tensor(a), _tensor(b))),
    "Mul": _binary(operator.mul),
    "Neg": _unary(torch.neg),
    "Pad": _pad,
    "Pow": _binary(operator.pow),
    "ReduceL2": _reduced(_length),
    "ReduceMax": _reduced(torch.amax),
    "ReduceMean": _reduced(torch.mean),
    "ReduceSum": _reduced(torch.sum),
    "Relu": _unary(functional.relu),
    "Reshape": _reshape,
    "Sigmoid": _unary(torch.sigmoid),
    "Slice": _slice,
    "Softmax": lambda inputs, node: torch.softmax(inputs[0], node.attributes["axis"]),
    "Split": _split,
    "Sqrt": _unary(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _binary(operator.sub),
    "Tanh": _unary(torch.tanh),
    "Transpose": lambda inputs, node: inputs[0].permute(node.attributes["perm"]),
    "Unsqueeze": _unsqueeze,
}
KINDS = frozenset(OPERATIONS) | _QUANTIZERS  # the operations that have a torch form
