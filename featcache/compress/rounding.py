"""Round a layer's weights to integers so that its output on real inputs, not each weight, changes least.

Each weight is rounded in turn and the error it makes is handed on to the weights not rounded yet, in the metric of the
layer's own inputs (Frantar et al. 2022, GPTQ). For MobileNetV2 that leaves a third of the error in the features that
rounding to nearest with corrected biases leaves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LIMIT = 127  # symmetric int8: −128 is not used, so that a weight and its negative are both exact
_DAMPING = 0.01  # of the mean diagonal (GPTQ's own)
_SMALLEST = 1e-8


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


def channel_scales(weight: Tensor) -> Tensor:
    """Return the int8 scale (n_out,) float32 of each output channel of `weight` (n_out, …): its largest value / 127."""
    return (weight.flatten(1).abs().amax(dim=1) / LIMIT).clamp(min=_SMALLEST).float()


def round_nearest(weight: Tensor, scales: Tensor) -> Tensor:
    """Return `weight` (n_out, …) on the grid of `scales` (n_out,), each value rounded to the nearest."""
    steps = scales.view(-1, *[1] * (weight.ndim - 1))
    return torch.clamp(torch.round(weight / steps), -LIMIT, LIMIT) * steps


def round_jointly(weight: Tensor, scales: Tensor, moments: InputMoments) -> Tensor:
    """Return `weight` (n_out, …) float32 on the grid of `scales` (n_out,), rounded for inputs with these moments.

    The outputs are split evenly over the groups of the moments, in order; d values per output.
    """
    groups, d, _ = moments.covariance.shape
    left = weight.double().reshape(groups, -1, d).clone()
    steps = scales.double().reshape(groups, -1)
    diagonal = torch.diagonal(moments.covariance, dim1=1, dim2=2)
    order = torch.argsort(diagonal, dim=1, descending=True)  # the most used inputs first: others can still make up
    damping = _DAMPING * diagonal.mean(dim=1).clamp(min=_SMALLEST)
    metric = moments.covariance + damping[:, None, None] * torch.eye(d, dtype=torch.float64)
    metric = torch.gather(metric, 1, order[:, :, None].expand(-1, -1, d))
    metric = torch.gather(metric, 2, order[:, None, :].expand(-1, d, -1))
    left = torch.gather(left, 2, order[:, None, :].expand_as(left))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(metric))
    spread = torch.linalg.cholesky(inverse, upper=True)
    rounded = torch.empty_like(left)
    for column in range(d):
        value = torch.clamp(torch.round(left[:, :, column] / steps), -LIMIT, LIMIT) * steps
        rounded[:, :, column] = value
        error = (left[:, :, column] - value) / spread[:, None, column, column]
        left[:, :, column:] -= error[:, :, None] * spread[:, None, column, column:]
    back = torch.argsort(order, dim=1)
    rounded = torch.gather(rounded, 2, back[:, None, :].expand_as(rounded)).reshape(weight.shape)
    return round_nearest(rounded.float(), scales)
