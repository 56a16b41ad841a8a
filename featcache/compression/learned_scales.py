"""Rounding to 8 bits whose step is learned with the weights (Esser et al. 2020, LSQ, arXiv 1902.08153).

The forward pass rounds; the backward pass lets the gradient through where a value is in range, and gives the step the
gradient of the rounded value: by its rounding error inside, by the bound that it meets outside.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from featcache.compression.integers import Grid, Integers, rounded
from featcache.compression.ranges import LEVELS, affine_qparams
from featcache.model.quantization import QuantParams


class _Rounded(torch.autograd.Function):
    """x on the grid of `scale`, which broadcasts with it: clamp(round(x / scale), low, high) · scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int, share: float) -> Tensor:
        """Return the rounded x. `low`, `high`: relative to the zero point; `share`: multiplies the scale's gradient."""
        rounded = (x / scale).round_().clamp_(low, high).mul_(scale)
        ctx.save_for_backward(x, scale, rounded)
        ctx.low, ctx.high, ctx.share = low, high, share
        return rounded

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Return the gradients of x and scale."""
        x, scale, rounded = ctx.saved_tensors
        if scale.ndim == 0:  # large: few passes over it
            step = float(scale)
            passed = torch.ops.aten.hardtanh_backward(gradient, x, ctx.low * step, ctx.high * step)
            of_scale = (_dot(gradient, rounded) - _dot(passed, x)) / scale
        else:
            inside = (x > ctx.low * scale) & (x < ctx.high * scale)
            passed = gradient * inside
            of_scale = (gradient * rounded - passed * x).sum_to_size(scale.shape) / scale
        return passed, of_scale * ctx.share, None, None, None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of the products of all elements, in one pass where both lie in memory alike."""
    dense = a.is_contiguous() or a.is_contiguous(memory_format=torch.channels_last)
    if dense and a.stride() == b.stride():
        return torch.dot(*(tensor.as_strided((tensor.numel(),), (1,)) for tensor in (a, b)))
    return (a * b).sum()


class _Rounding(nn.Module):
    """A tensor's step, learned as a factor of the calibrated one: weights and steps then learn at one rate.

    `calibrated`: the step or steps to begin with, broadcasting with the tensor. `most`: what it may not exceed.
    """

    calibrated: Tensor

    def __init__(self, calibrated: Tensor, *, low: int, high: int, most: float = math.inf) -> None:
        super().__init__()
        self.low, self.high, self.most = low, high, most
        self.register_buffer("calibrated", calibrated)
        # of one axis, whatever the tensor's: an optimizer that decays weights leaves such parameters alone
        self.factor = nn.Parameter(torch.ones(calibrated.numel()))

    def scale(self) -> Tensor:
        """Return the step or steps as they are now."""
        scale = self.calibrated * self.factor.view_as(self.calibrated)
        if math.isinf(self.most):
            return scale
        with torch.no_grad():  # the gradient passes: a step at its bound can come back from there
            over = scale - scale.clamp(max=self.most)
        return scale - over

    def forward(self, x: Tensor, count: int) -> Tensor:
        """Return `x` on the grid. `count`: of values that share a step, per image where they are activations."""
        return _Rounded.apply(x, self.scale(), self.low, self.high, 1 / math.sqrt(count * max(self.high, -self.low)))  # type: ignore[no-any-return, no-untyped-call]


class ActivationRounding(_Rounding):
    """8 bits of a value on the way, with the zero point of `params`, which stays. `upper`: the largest that may occur.

    A range that sticks out of ReLU6's 6 could not stand in for it, and the runtime would compute the clip apart.
    """

    def __init__(self, params: QuantParams, *, upper: float | None = None) -> None:
        zero = params.zero_point[0]
        low, high = (-zero, LEVELS - zero) if params.dtype == "uint8" else (-128 - zero, 127 - zero)
        most = math.inf if upper is None or low < 0 else max(params.scale[0], affine_qparams(0.0, upper).scale[0])
        super().__init__(torch.tensor(params.scale[0]), low=low, high=high, most=most)
        self._params = params

    def rounded(self, x: Tensor) -> Tensor:
        """Return `x` (n, …), the values of n images, as they come back from their 8 bits."""
        result: Tensor = self(x, x[0].numel())
        return result

    def grid(self) -> Grid:
        """Return the grid as it is now."""
        return Grid(self.scale().detach(), self._params.zero_point[0], self.low, self.high)

    def params(self) -> QuantParams:
        """Return what is to be stored of the step as it is now."""
        scale = float(self.scale().detach())
        return QuantParams((scale,), self._params.zero_point, self._params.dtype, None)


class WeightRounding(_Rounding):
    """8 bits of a weight, symmetric, with a step for each slice along the axis of `params`.

    `rank`: of the weight. `limit`: its largest integer.
    """

    def __init__(self, params: QuantParams, *, rank: int, limit: int) -> None:
        assert params.axis is not None
        self.axis = params.axis
        shape = [1] * rank
        shape[params.axis] = -1
        super().__init__(torch.tensor(params.scale).view(shape), low=-limit, high=limit)

    def rounded(self, weight: Tensor) -> Tensor:
        """Return `weight` as its integers stand for it."""
        result: Tensor = self(weight, weight.numel() // self.calibrated.numel())
        return result

    def integers(self, weight: Tensor) -> Integers:
        """Return `weight` on its grid."""
        return rounded(weight, Grid(self.scale().detach(), 0, self.low, self.high))
