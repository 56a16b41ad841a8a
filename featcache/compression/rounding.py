"""Round a layer's weights to integers so that its output on real inputs, not each weight, changes least.

Each weight is rounded in turn and the error it makes is handed on to the weights not rounded yet, in the metric of the
layer's own inputs (Frantar et al. 2022, GPTQ). For MobileNetV2 that leaves a third of the error in the features that
rounding to nearest with corrected biases leaves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from featcache.compression.factor import cholesky

# Symmetric, and half of int8's range: x86 processors without VNNI add two products of an unsigned byte and a signed one
# in 16 bits (vpmaddubsw), which saturate; 255 · 64 twice fits. One file then computes the same on every processor.
LIMIT = 64
# Symmetric, of all 255 levels: for processors that add such products in 32 bits.
FULL_LIMIT = 127
_DAMPING = 0.01  # of the mean diagonal (GPTQ's own)
_SMALLEST = 1e-8
_MOST_EXACT = 1024  # inputs of an output whose factorisation is done in float64; damped, larger ones bear float32
_BLOCK = 128  # columns rounded before the rest of the matrix is touched (Frantar et al. 2022, section 3)


@dataclass(frozen=True, slots=True)
class InputMoments:
    """Covariance (groups, d, d) float64 and mean (groups, d) float64 of a layer's inputs, d weights per output."""

    covariance: Tensor
    mean: Tensor


class MomentsSum:
    """Adds up `InputMoments` over batches."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: Tensor | None = None
        self._products: Tensor | None = None

    def add(self, inputs: Tensor) -> None:
        """Take `inputs` (groups, d, positions) float32."""
        products, total = torch.bmm(inputs, inputs.transpose(1, 2)).double(), inputs.sum(dim=2).double()
        self._products = products if self._products is None else self._products + products
        self._sum = total if self._sum is None else self._sum + total
        self._count += inputs.shape[2]

    def result(self) -> InputMoments:
        """Return the moments of everything added."""
        assert self._products is not None
        assert self._sum is not None
        mean = self._sum / self._count
        covariance = self._products / self._count - mean[:, :, None] * mean[:, None, :]
        return InputMoments(covariance, mean)


def channel_scales(weight: Tensor, *, limit: int = LIMIT) -> Tensor:
    """Return the int8 scale (n_out,) float32 of each channel of `weight` (n_out, …): its largest value / `limit`."""
    return (weight.flatten(1).abs().amax(dim=1) / limit).clamp(min=_SMALLEST).float()


def round_nearest(weight: Tensor, scales: Tensor, *, limit: int = LIMIT) -> Tensor:
    """Return `weight` (n_out, …) on the grid of `scales` (n_out,), each to the nearest of the integers to ±`limit`."""
    steps = scales.view(-1, *[1] * (weight.ndim - 1))
    return torch.clamp(torch.round(weight / steps), -limit, limit) * steps


def round_jointly(weight: Tensor, scales: Tensor, moments: InputMoments, *, limit: int = LIMIT) -> Tensor:
    """Return `weight` (n_out, …) float32 on the grid of `scales` (n_out,), rounded for inputs with these moments.

    The outputs are split evenly over the groups of the moments, in order; d values per output. `limit`: the largest
    integer.
    """
    groups, d, _ = moments.covariance.shape
    covariance = moments.covariance.to(torch.float64 if d <= _MOST_EXACT else torch.float32)
    left = weight.to(covariance.dtype).reshape(groups, -1, d).clone()
    steps = scales.to(covariance.dtype).reshape(groups, -1)
    diagonal = torch.diagonal(covariance, dim1=1, dim2=2)
    order = torch.argsort(diagonal, dim=1, descending=True)  # the most used inputs first: others can still make up
    damping = _DAMPING * diagonal.mean(dim=1).clamp(min=_SMALLEST)
    metric = covariance + damping[:, None, None] * torch.eye(d, dtype=covariance.dtype)
    metric = torch.gather(metric, 1, order[:, :, None].expand(-1, -1, d))
    metric = torch.gather(metric, 2, order[:, None, :].expand(-1, d, -1))
    left = torch.gather(left, 2, order[:, None, :].expand_as(left))
    # the upper factor of the inverse, from one factorisation: backwards, metric = R Rᵀ with R upper, and R⁻¹ is it
    reverse = cholesky(metric.flip(1, 2)).flip(1, 2)
    spread = torch.linalg.solve_triangular(reverse, torch.eye(d, dtype=covariance.dtype)[None], upper=True)
    rounded = torch.empty_like(left)
    for start in range(0, d, _BLOCK):
        stop = min(start + _BLOCK, d)
        block, errors = left[:, :, start:stop].clone(), torch.empty_like(left[:, :, start:stop])
        for column in range(stop - start):
            row = start + column
            value = torch.clamp(torch.round(block[:, :, column] / steps), -limit, limit) * steps
            rounded[:, :, row] = value
            error = (block[:, :, column] - value) / spread[:, None, row, row]
            block[:, :, column:] -= error[:, :, None] * spread[:, None, row, row:stop]
            errors[:, :, column] = error
        left[:, :, stop:] -= errors @ spread[:, start:stop, stop:]  # the others wait for the whole block: one product
    back = torch.argsort(order, dim=1)
    rounded = torch.gather(rounded, 2, back[:, None, :].expand_as(rounded)).reshape(weight.shape)
    return round_nearest(rounded.float(), scales, limit=limit)
