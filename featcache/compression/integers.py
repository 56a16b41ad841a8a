"""What an integer runtime computes, in torch: exact sums of products of integers, rounded once to the next 8 bits.

Float arithmetic of the same network differs in the last bit, a last bit decides a rounding now and then, and each layer
multiplies what is decided otherwise: through fifty layers of MobileNetV2 two float implementations end as far apart as
a third of what quantization itself costs, and choose another class for one image in eight of 200 classes. So what is
said of a quantized network, before it is deployed, is computed as it will be: as ONNX Runtime's QLinearConv and
QLinearAdd do (MLAS, on processors with AVX2), in float32 where all sums are exact there, else in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_EXACT_IN_FLOAT32 = 2**24
_ALL = (-math.inf, math.inf)


@dataclass(frozen=True, slots=True)
class Grid:
    """Where 8 bits stand: `scale`, `zero` (the zero point), and the least and largest integers relative to that."""

    scale: Tensor
    zero: int
    low: int
    high: int

    def within(self, limits: tuple[float, float]) -> bool:
        """Return whether all its values lie within `limits`: a clip to these before the rounding is none."""
        scale = float(self.scale)
        return limits[0] <= self.low * scale and self.high * scale <= limits[1]


@dataclass(frozen=True, slots=True)
class Integers:
    """Values rounded to a grid: `steps` float32 holding integers, relative to the zero point."""

    steps: Tensor
    grid: Grid

    def real(self) -> Tensor:
        """Return the values they stand for, as DequantizeLinear gives them."""
        return self.steps * self.grid.scale


@dataclass(frozen=True, slots=True)
class Products:
    """Sums of products `total` float32 (exact integers, rounded once), each standing for itself times `scale`.

    `limits`: of a ReLU or clip that follows, which the rounding to come may make idle.
    """

    total: Tensor
    scale: Tensor
    limits: tuple[float, float] = _ALL

    def clipped(self, low: float, high: float) -> Products:
        """Return them with a clip that follows."""
        return replace(self, limits=(max(low, self.limits[0]), min(high, self.limits[1])))

    def real(self) -> Tensor:
        """Return the values they stand for."""
        return (self.total * self.scale).clamp(*self.limits)

    def rounded(self, grid: Grid) -> Integers:
        """Return them on `grid`."""
        if not grid.within(self.limits):
            return rounded(self.real(), grid)
        return Integers((self.total * (self.scale / grid.scale)).round_().clamp_(grid.low, grid.high), grid)


@dataclass(frozen=True, slots=True)
class Sum:
    """The sum of two tensors of integers, still to be rounded."""

    first: Integers
    second: Integers
    limits: tuple[float, float] = _ALL

    def clipped(self, low: float, high: float) -> Sum:
        """Return it with a clip that follows."""
        return replace(self, limits=(max(low, self.limits[0]), min(high, self.limits[1])))

    def real(self) -> Tensor:
        """Return the values it stands for."""
        return (self.first.real() + self.second.real()).clamp(*self.limits)

    def rounded(self, grid: Grid) -> Integers:
        """Return it on `grid`: stored integers times the ratios of scales, each step one fused multiply-add."""
        if not grid.within(self.limits):
            return rounded(self.real(), grid)
        one, two = ((part.grid.scale / grid.scale).double() for part in (self.first, self.second))
        zero_one, zero_two = self.first.grid.zero, self.second.grid.zero
        # a float64 sum of such products is exact: made float32, it is what one fused instruction gives
        offset = (grid.zero - (one * zero_one + (two * zero_two).float()).float()).double()
        total = ((self.second.steps.double() + zero_two) * two + offset).float().double()
        total = ((self.first.steps.double() + zero_one) * one + total).float()
        stored = total.round_().clamp_(grid.low + grid.zero, grid.high + grid.zero)
        return Integers(stored - grid.zero, grid)


def rounded(values: Tensor, grid: Grid) -> Integers:
    """Return float `values` on `grid`, as QuantizeLinear rounds them."""
    return Integers((values / grid.scale).round_().clamp_(grid.low, grid.high), grid)


def multiply(
    product: Callable[[Tensor, Tensor], Tensor],
    inputs: Integers,
    weight: Integers,
    bias: Tensor | None,
    *,
    axis: int,
    channels: int,
) -> Products:
    """Return `product` (of inputs and weight) with `bias` in integers.

    `bias` float32 is rounded to 32 bits at the scale inputs · weight. `axis` of the weight, along which its scales go,
    becomes the axis `channels` of the result.
    """
    scale = inputs.grid.scale * weight.grid.scale.flatten()
    largest = weight.steps.abs().movedim(axis, 0).flatten(1).sum(dim=1) * max(inputs.grid.high, -inputs.grid.low)
    kind = torch.float32 if float(largest.max()) < _EXACT_IN_FLOAT32 else torch.float64
    total = product(inputs.steps.to(kind), weight.steps.to(kind))
    shape = [1] * total.ndim
    shape[channels] = -1
    if bias is not None:  # what is stored of it is computed in float64, by `apply_quantization`
        limits = torch.iinfo(torch.int32)
        terms = (bias.double() / scale.double()).round_().clamp_(limits.min, limits.max).view(shape)
        kind = torch.float32 if float((largest + terms.flatten().abs()).max()) < _EXACT_IN_FLOAT32 else torch.float64
        total = total.to(kind) + terms.to(kind)
    return Products(total.float(), scale.view(shape))
