"""The classifier's ONNX graph as a torch module, for tools that take torch programs only (ExecuTorch, Core ML, ncnn).

Every format is made from the one ONNX file, so a pruned or a quantized network needs no second description. What is
quantized becomes torch's ``quantized_decomposed`` operations, which those tools lower to their own integer kernels.
It imports nothing of featcache: it also runs inside the tools' own environments.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch.nn import functional

_SHIFT = 128  # unsigned 8-bit values minus this are signed ones with the same meaning


class TorchGraph(torch.nn.Module):
    """The graph at `path`, of a fixed batch: image (1, H, W, 3) in, `outputs` float32 (1, n_classes) out.

    The image's values are 0 to 255 in any dtype. `integers`: how what is quantized is written. ``stored``: node by node
    as it is, with unsigned activations shifted to signed ones of the same meaning; ``none``: weights as the floats they
    stand for, activations not rounded. Raises `NotImplementedError` naming operations that have no equivalent here.
    """

    def __init__(
        self, path: str, *, outputs: tuple[str, ...] = ("logits", "probabilities"), integers: str = "stored"
    ) -> None:
        super().__init__()
        graph = onnx.load(path).graph
        unknown = sorted({node.op_type for node in graph.node} - set(_OPERATIONS) - set(_QUANTIZED))
        if unknown:
            raise NotImplementedError(f"operations without a torch form: {', '.join(unknown)}")
        self._input = graph.input[0].name
        self._outputs = outputs
        self._integers = integers
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self._steps: list[tuple[str, list[str], list[str], dict[str, Any]]] = []
        self._places: dict[str, str] = {}
        needed = set(outputs)
        kept = []
        for node in reversed(graph.node):
            if needed & set(node.output):
                needed |= set(node.input)
                kept.append(node)
        for node in reversed(kept):
            attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
            self._steps.append((node.op_type, list(node.input), list(node.output), attributes))
        self._prepare()

    def _prepare(self) -> None:
        """Fold what is constant, and keep float constants and integer weights as buffers."""
        steps: list[tuple[str, list[str], list[str], dict[str, Any]]] = []
        for kind, inputs, outputs, attributes in self._steps:
            if kind == "Constant":
                self._constants[outputs[0]] = numpy_helper.to_array(attributes["value"])
            elif kind in _QUANTIZED and self._integers == "none":
                if inputs[0] in self._constants:
                    stored, scale, zero = (self._constants[name] for name in inputs)
                    difference = stored.astype(np.float64) - _along(zero, stored, attributes)
                    self._constants[outputs[0]] = (difference * _along(scale, stored, attributes)).astype(np.float32)
                else:
                    steps.append(("Identity", inputs[:1], outputs, {}))
            else:
                steps.append((kind, inputs, outputs, attributes))
        self._steps = steps
        for kind, inputs, _, _ in steps:
            if kind in _QUANTIZED and self._constants[inputs[2]].size > 1:
                self._constants[inputs[2]] = self._constants[inputs[2]].astype(np.int64)
                self._place(inputs[2])
            for name in inputs:
                value = self._constants.get(name)
                # a single number stays one in the program: only tensors are worth a place in the file
                if value is not None and value.ndim and value.dtype in (np.float32, np.int8):
                    self._place(name)

    def _place(self, name: str) -> None:
        if name not in self._places:
            self._places[name] = f"constant_{len(self._places)}"
            self.register_buffer(self._places[name], torch.from_numpy(np.array(self._constants[name])))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs for `image`."""
        values: dict[str, Any] = {self._input: image}
        for kind, inputs, outputs, attributes in self._steps:
            if kind in _QUANTIZED:
                values[outputs[0]] = self._requantize(kind, inputs, attributes, values)
                continue
            arguments = [self._value(name, values) for name in inputs]
            result = _OPERATIONS[kind](arguments, attributes)
            for name, value in zip(outputs, result if isinstance(result, tuple) else (result,), strict=False):
                values[name] = value
        return tuple(values[name] for name in self._outputs)

    def _value(self, name: str, values: Mapping[str, Any]) -> Any:
        if not name:
            return None
        if name in values:
            return values[name]
        if name in self._places:
            return getattr(self, self._places[name])
        constant = self._constants[name]
        return constant.item() if constant.ndim == 0 and constant.dtype == np.float32 else constant

    def _requantize(
        self, kind: str, inputs: list[str], attributes: Mapping[str, Any], values: Mapping[str, Any]
    ) -> torch.Tensor:
        from torch.ao.quantization.fx import _decomposed  # noqa: F401  registers the operations

        operations = torch.ops.quantized_decomposed
        scale, zero = self._constants[inputs[1]], self._constants[inputs[2]]
        source = self._value(inputs[0], values)
        if scale.size > 1:
            scales, zeros = (getattr(self, self._places[name]) for name in inputs[1:3])
            along = operations.quantize_per_channel if kind == "QuantizeLinear" else operations.dequantize_per_channel
            channels: torch.Tensor = along(source, scales, zeros, attributes.get("axis", 1), -127, 127, torch.int8)
            return channels
        operation = operations.quantize_per_tensor if kind == "QuantizeLinear" else operations.dequantize_per_tensor
        shift = _SHIFT if zero.dtype == np.uint8 else 0
        moved: torch.Tensor = operation(
            source, float(scale.reshape(())), int(zero.reshape(())) - shift, -_SHIFT, _SHIFT - 1, torch.int8
        )
        return moved


def _along(values: np.ndarray[Any, Any], stored: np.ndarray[Any, Any], attributes: Mapping[str, Any]) -> Any:
    """Return `values`, one per slice of `stored` along its axis, in a shape that broadcasts."""
    if values.size == 1:
        return values.reshape(())
    shape = [1] * stored.ndim
    shape[attributes.get("axis", 1)] = -1
    return values.reshape(shape)


def _ints(value: Any) -> list[int]:
    return [int(entry) for entry in np.asarray(value).reshape(-1)]


def _padded(x: torch.Tensor, attributes: Mapping[str, Any], *, value: float = 0.0) -> tuple[torch.Tensor, list[int]]:
    """Return `x`, padded where the two sides differ, and the padding (height, width) left for the operation."""
    pads = list(attributes.get("pads", [0, 0, 0, 0]))
    half = len(pads) // 2
    if pads[:half] == pads[half:]:
        return x, pads[:half]
    around = [pad for axis in reversed(range(half)) for pad in (pads[axis], pads[axis + half])]
    return functional.pad(x, around, value=value), [0] * half


def _conv(inputs: list[Any], attributes: Mapping[str, Any]) -> torch.Tensor:
    x, padding = _padded(inputs[0], attributes)
    bias = inputs[2] if len(inputs) > 2 else None
    return functional.conv2d(
        x, inputs[1], bias, stride=attributes.get("strides", [1, 1]), padding=padding,
        dilation=attributes.get("dilations", [1, 1]), groups=attributes.get("group", 1),
    )  # fmt: skip


def _max_pool(inputs: list[Any], attributes: Mapping[str, Any]) -> torch.Tensor:
    x, padding = _padded(inputs[0], attributes, value=float("-inf"))
    strides, ceil = attributes.get("strides", [1, 1]), bool(attributes.get("ceil_mode", 0))
    return functional.max_pool2d(x, attributes["kernel_shape"], strides, padding, ceil_mode=ceil)


def _average_pool(inputs: list[Any], attributes: Mapping[str, Any]) -> torch.Tensor:
    counted = bool(attributes.get("count_include_pad", 0))
    pads = attributes.get("pads", [0, 0, 0, 0])
    if pads[:2] != pads[2:]:
        raise NotImplementedError("AveragePool with unequal padding")
    return functional.avg_pool2d(
        inputs[0], attributes["kernel_shape"], attributes.get("strides", [1, 1]), pads[:2],
        ceil_mode=bool(attributes.get("ceil_mode", 0)), count_include_pad=counted,
    )  # fmt: skip


def _gemm(inputs: list[Any], attributes: Mapping[str, Any]) -> torch.Tensor:
    if attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
        raise NotImplementedError("Gemm that scales or transposes its first input")
    weight = inputs[1] if attributes.get("transB", 0) else inputs[1].t()
    return functional.linear(inputs[0], weight, inputs[2] if len(inputs) > 2 else None)


def _clip(inputs: list[Any], attributes: Mapping[str, Any]) -> torch.Tensor:
    low, high = (
        float(inputs[i]) if len(inputs) > i and inputs[i] is not None else attributes.get(key)
        for i, key in ((1, "min"), (2, "max"))
    )
    if low is not None and high is not None:
        # the form of it that XNNPACK's integer kernels compute together with a product
        return functional.hardtanh(inputs[0], low, high)
    return torch.clamp(inputs[0], low, high)


def _cast(inputs: list[Any], attributes: Mapping[str, Any]) -> torch.Tensor:
    kinds = {1: torch.float32, 6: torch.int32, 7: torch.int64}
    return inputs[0].to(kinds[attributes["to"]])  # type: ignore[no-any-return]


def _reshape(inputs: list[Any], attributes: Mapping[str, Any]) -> torch.Tensor:
    shape = [inputs[0].shape[i] if size == 0 else size for i, size in enumerate(_ints(inputs[1]))]
    return inputs[0].reshape(shape)  # type: ignore[no-any-return]


def _axes(inputs: list[Any], attributes: Mapping[str, Any]) -> list[int]:
    return _ints(inputs[1] if len(inputs) > 1 else attributes["axes"])


def _squeeze(inputs: list[Any], attributes: Mapping[str, Any]) -> torch.Tensor:
    x = inputs[0]
    for axis in sorted((axis % x.ndim for axis in _axes(inputs, attributes)), reverse=True):
        x = x.squeeze(axis)
    return x  # type: ignore[no-any-return]


def _unsqueeze(inputs: list[Any], attributes: Mapping[str, Any]) -> torch.Tensor:
    x, axes = inputs[0], _axes(inputs, attributes)
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x  # type: ignore[no-any-return]


def _split(inputs: list[Any], attributes: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
    axis = attributes.get("axis", 0)
    if len(inputs) > 1:
        return torch.split(inputs[0], _ints(inputs[1]), dim=axis)
    return torch.chunk(inputs[0], attributes["num_outputs"], dim=axis)


def _gather(inputs: list[Any], attributes: Mapping[str, Any]) -> torch.Tensor:
    axis, indices = attributes.get("axis", 0), np.asarray(inputs[1])
    if indices.ndim == 0:
        return inputs[0].select(axis, int(indices))  # type: ignore[no-any-return]
    if indices.ndim > 1:
        raise NotImplementedError("Gather with indices of more than one axis")
    return torch.index_select(inputs[0], axis, torch.from_numpy(indices.astype(np.int64)))


def _slice(inputs: list[Any], attributes: Mapping[str, Any]) -> torch.Tensor:
    x = inputs[0]
    starts, ends = _ints(inputs[1]), _ints(inputs[2])
    axes = _ints(inputs[3]) if len(inputs) > 3 and inputs[3] is not None else list(range(len(starts)))
    steps = _ints(inputs[4]) if len(inputs) > 4 else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        first, last, stride = slice(start, end, step).indices(x.shape[axis])
        if stride < 0:
            raise NotImplementedError("Slice with a negative step")
        index = [slice(None)] * x.ndim
        index[axis] = slice(first, last, stride)
        x = x[tuple(index)]
    return x  # type: ignore[no-any-return]


def _pad(inputs: list[Any], attributes: Mapping[str, Any]) -> torch.Tensor:
    if attributes.get("mode", b"constant") != b"constant":
        raise NotImplementedError("Pad other than with a constant")
    pads = _ints(inputs[1])
    half = len(pads) // 2
    around = [pad for axis in reversed(range(half)) for pad in (pads[axis], pads[axis + half])]
    value = 0.0 if len(inputs) < 3 or inputs[2] is None else float(inputs[2])
    return functional.pad(inputs[0], around, value=value)


def _layer_norm(inputs: list[Any], attributes: Mapping[str, Any]) -> torch.Tensor:
    x = inputs[0]
    axis = attributes.get("axis", -1) % x.ndim
    bias = inputs[2] if len(inputs) > 2 else None
    return functional.layer_norm(x, list(x.shape[axis:]), inputs[1], bias, attributes.get("epsilon", 1e-5))


def _batch_norm(inputs: list[Any], attributes: Mapping[str, Any]) -> torch.Tensor:
    x, weight, bias, mean, variance = inputs
    return functional.batch_norm(x, mean, variance, weight, bias, False, 0.0, attributes.get("epsilon", 1e-5))


def _reduce_mean(inputs: list[Any], attributes: Mapping[str, Any]) -> torch.Tensor:
    return torch.mean(inputs[0], _axes(inputs, attributes), keepdim=bool(attributes.get("keepdims", 1)))


def _hard_sigmoid(inputs: list[Any], attributes: Mapping[str, Any]) -> torch.Tensor:
    alpha, beta = attributes.get("alpha", 0.2), attributes.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return functional.hardsigmoid(inputs[0])
    return torch.clamp(inputs[0] * alpha + beta, 0.0, 1.0)


def _tensor(value: Any) -> Any:
    return value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value, dtype=np.float32))


def _binary(function: Callable[[Any, Any], torch.Tensor]) -> Callable[[list[Any], Mapping[str, Any]], torch.Tensor]:
    return lambda inputs, _: function(inputs[0], inputs[1])


def _unary(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[list[Any], Mapping[str, Any]], torch.Tensor]:
    return lambda inputs, _: function(inputs[0])


_QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear"})
_OPERATIONS: dict[str, Callable[[list[Any], Mapping[str, Any]], Any]] = {
    "Add": _binary(operator.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda inputs, attributes: torch.cat([_tensor(value) for value in inputs], attributes["axis"]),
    "Constant": lambda inputs, attributes: None,
    "Conv": _conv,
    "Div": _binary(operator.truediv),
    "Elu": lambda inputs, attributes: functional.elu(inputs[0], attributes.get("alpha", 1.0)),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Expand": lambda inputs, _: inputs[0].expand(*_ints(inputs[1])),
    "Flatten": lambda inputs, attributes: torch.flatten(inputs[0], attributes.get("axis", 1)),
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": _unary(lambda x: torch.mean(x, (2, 3), keepdim=True)),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(functional.hardswish),
    "Identity": lambda inputs, _: inputs[0],
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda inputs, attributes: functional.leaky_relu(inputs[0], attributes.get("alpha", 0.01)),
    "MatMul": _binary(torch.matmul),
    "Max": _binary(lambda a, b: torch.maximum(_tensor(a), _tensor(b))),
    "MaxPool": _max_pool,
    "Min": _binary(lambda a, b: torch.minimum(_tensor(a), _tensor(b))),
    "Mul": _binary(operator.mul),
    "Neg": _unary(torch.neg),
    "Pad": _pad,
    "Pow": _binary(operator.pow),
    "ReduceMean": _reduce_mean,
    "Relu": _unary(functional.relu),
    "Reshape": _reshape,
    "Sigmoid": _unary(torch.sigmoid),
    "Slice": _slice,
    "Softmax": lambda inputs, attributes: torch.softmax(inputs[0], attributes.get("axis", -1)),
    "Split": _split,
    "Sqrt": _unary(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _binary(operator.sub),
    "Tanh": _unary(torch.tanh),
    "Transpose": lambda inputs, attributes: inputs[0].permute(attributes["perm"]),
    "Unsqueeze": _unsqueeze,
}
