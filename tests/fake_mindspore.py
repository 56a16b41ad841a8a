"""As much of MindSpore's interface as its writer uses, computed by torch: the framework itself takes 2.7 GB.

It stands for what MindSpore 2.10's reference says of these operations, not for its compiler.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch.nn import functional


class Cell:
    """A network: calling it calls `construct`."""

    def __init__(self, auto_prefix: bool = True) -> None:
        assert not auto_prefix, "names of parameters are the graph's"

    def __call__(self, *tensors: Any) -> Any:
        return self.construct(*tensors)  # type: ignore[attr-defined]


def _operation(function: Callable[..., Any]) -> Callable[[], Callable[..., Any]]:
    """Return the class of an operation without settings."""
    return lambda: function


def _reduction(function: Callable[..., Any]) -> Callable[[bool], Callable[..., Any]]:
    """Return the class of a reduction: its setting is whether axes are kept, its axes come with the tensor."""
    return lambda keep: lambda x, axes=(): function(x, tuple(axes) or tuple(range(x.ndim)), keepdim=keep)


def _convolution(
    outputs: int, kernel: tuple[int, ...], *, pad_mode: str, pad: Any, stride: Any, group: int, dilation: Any
) -> Callable[..., Any]:
    assert pad_mode == "pad"
    top, bottom, left, right = pad

    def convolve(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        assert (weight.shape[0], *weight.shape[2:]) == (outputs, *kernel)
        padded = functional.pad(x, (left, right, top, bottom))
        return functional.conv2d(padded, weight, None, stride, 0, dilation, group)

    return convolve


def _pool(function: Callable[..., Any]) -> Callable[..., Callable[..., Any]]:
    def settings(kernel: tuple[int, ...], strides: tuple[int, ...], mode: str) -> Callable[..., Any]:
        assert mode == "valid"
        return lambda x: function(x, kernel, strides)

    return settings


def _strided_slice(x: torch.Tensor, begins: Any, ends: Any, steps: Any) -> torch.Tensor:
    return x[tuple(slice(*entry) for entry in zip(begins, ends, steps, strict=True))]


def _layer_norm(first: int, first_parameter: int, epsilon: float) -> Callable[..., Any]:
    assert first == first_parameter

    def normalise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return functional.layer_norm(x, x.shape[first % x.ndim :], weight, bias, epsilon), None, None

    return normalise


def _batch_norm(*, epsilon: float) -> Callable[..., Any]:
    def normalise(x: Any, weight: Any, bias: Any, mean: Any, variance: Any) -> tuple[torch.Tensor, None]:
        return functional.batch_norm(x, mean, variance, weight, bias, False, 0.0, epsilon), None

    return normalise


_OPS: dict[str, Any] = {
    "Add": _operation(torch.add),
    "AvgPool": _pool(functional.avg_pool2d),
    "BatchNorm": _batch_norm,
    "BiasAdd": _operation(lambda x, bias: x + bias.reshape(1, -1, *[1] * (x.ndim - 2))),
    "BroadcastTo": lambda shape: lambda x: x.expand(shape),
    "Cast": _operation(lambda x, dtype: x.to(dtype)),
    "Concat": lambda axis: lambda tensors: torch.cat(tensors, axis),
    "Conv2D": _convolution,
    "Div": _operation(torch.div),
    "Elu": lambda alpha: lambda x: functional.elu(x, alpha),
    "Erf": _operation(torch.erf),
    "Exp": _operation(torch.exp),
    "Gather": _operation(
        lambda x, indices, axis: x.select(axis, int(indices)) if indices.ndim == 0
        else x.index_select(axis, torch.where(indices < 0, indices + x.shape[axis], indices))
    ),
    "HSigmoid": _operation(functional.hardsigmoid),
    "HSwish": _operation(functional.hardswish),
    "LayerNorm": _layer_norm,
    "MatMul": lambda transpose_a, transpose_b: lambda a, b: (a.T if transpose_a else a) @ (b.T if transpose_b else b),
    "MaxPool": _pool(functional.max_pool2d),
    "Maximum": _operation(torch.maximum),
    "Minimum": _operation(torch.minimum),
    "Mul": _operation(torch.mul),
    "Neg": _operation(torch.neg),
    "PadV3": _operation(lambda x, around, value: functional.pad(x, around, value=value)),
    "Pow": _operation(torch.pow),
    "ReLU": _operation(functional.relu),
    "ReLU6": _operation(functional.relu6),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(torch.mean),
    "ReduceSum": _reduction(torch.sum),
    "Reshape": _operation(torch.reshape),
    "Sigmoid": _operation(torch.sigmoid),
    "Softmax": lambda axis: lambda x: torch.softmax(x, axis),
    "Sqrt": _operation(torch.sqrt),
    "StridedSlice": _operation(_strided_slice),
    "Sub": _operation(torch.sub),
    "Tanh": _operation(torch.tanh),
    "Transpose": _operation(torch.permute),
    "clamp": torch.clamp,
    "matmul": torch.matmul,
}  # fmt: skip


@contextmanager
def fake_mindspore() -> Iterator[ModuleType]:
    """Give `featcache.formats.drivers.mindspore_graph`, loaded beside a ``mindspore`` that is this one."""
    mindspore, nn, ops = (ModuleType(name) for name in ("mindspore", "mindspore.nn", "mindspore.ops"))
    mindspore.__dict__.update(
        nn=nn, ops=ops, float32=torch.float32, Tensor=lambda values: torch.from_numpy(np.array(values)),
        Parameter=lambda tensor, name: tensor, ParameterTuple=tuple,
    )  # fmt: skip
    nn.__dict__.update(Cell=Cell, CellList=list, LeakyReLU=lambda alpha: lambda x: functional.leaky_relu(x, alpha))
    ops.__dict__.update(_OPS)
    modules = {module.__name__: module for module in (mindspore, nn, ops)}
    name = "featcache.formats.drivers.mindspore_graph"
    before = {key: sys.modules.get(key) for key in (*modules, name)}
    sys.modules.update(modules)
    sys.modules.pop(name, None)
    try:
        import featcache.formats.drivers.mindspore_graph as driver

        yield driver
    finally:
        for key, module in before.items():
            sys.modules.pop(key, None)
            if module is not None:
                sys.modules[key] = module
