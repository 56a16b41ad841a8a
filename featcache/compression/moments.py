"""What least squares needs to know of a layer's inputs and outputs, and the weights that it gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from featcache.compression.factor import cholesky

RIDGE = 1e-4  # pull toward the old weights, as a share of the inputs' mean square
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # tried where there are images to try them on


@dataclass(frozen=True, slots=True)
class Check:
    """What a pull toward the old weights is chosen by: `fit`, moments of some images, and those `held` back.

    `held`: of each position, and of the means over an image's positions: what differs from image to image alone is seen
    in as many samples as there are images, and is what pooled features are made of.
    """

    fit: Moments
    held: tuple[Moments, ...]


@dataclass(frozen=True, slots=True)
class Moments:
    """Moments of a layer's inputs (d values at each position) and outputs (o values), all float64.

    `gram` (d, d), `cross` (d, o), `power` (o,): means of products of inputs, of inputs and outputs, of squared outputs;
    without the means `input_mean` (d,) and `output_mean` (o,), which are zero where a layer cannot shift its output.
    `check`: what there is to choose a pull by.
    """

    gram: Tensor
    cross: Tensor
    power: Tensor
    input_mean: Tensor
    output_mean: Tensor
    check: Check | None = None

    @staticmethod
    def of(inputs: Tensor, outputs: Tensor, *, centred: bool) -> Moments:
        """Return the moments of `inputs` (n, d) and `outputs` (n, o)."""
        sums = MomentsSum()
        sums.add(inputs, outputs)
        return sums.result(centred=centred)

    def of_inputs(self, kept: Tensor) -> Moments:
        """Return the moments of the inputs `kept` (d,) bool alone."""
        check = self.check
        if check is not None:
            check = Check(check.fit.of_inputs(kept), tuple(one.of_inputs(kept) for one in check.held))
        gram, cross = self.gram[kept][:, kept], self.cross[kept]
        return Moments(gram, cross, self.power, self.input_mean[kept], self.output_mean, check)

    def error(self, weight: Tensor) -> float:
        """Return the share of the outputs' power that `weight` (o, d) misses."""
        weight = weight.double()
        missed = self.power.sum() - 2 * (weight.T * self.cross).sum() + ((weight @ self.gram) * weight).sum()
        return float(missed.clamp(min=0) / self.power.sum().clamp(min=torch.finfo(torch.float64).tiny))


class MomentsSum:
    """Adds up `Moments` over batches: products in float32 around the first batch's mean, sums in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._origin: tuple[Tensor, Tensor] | None = None
        self._sums: list[Tensor] = []

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        """Take `inputs` (n, d) and `outputs` (n, o), float32."""
        if self._origin is None:
            self._origin = (inputs.mean(dim=0), outputs.mean(dim=0))
        inputs, outputs = inputs - self._origin[0], outputs - self._origin[1]
        parts = [inputs.T @ inputs, inputs.T @ outputs, outputs.square().sum(dim=0), inputs.sum(0), outputs.sum(0)]
        added = [part.double() for part in parts]
        self._sums = added if not self._sums else [a.add_(b) for a, b in zip(self._sums, added, strict=True)]
        self.count += len(inputs)

    def merged(self, other: MomentsSum) -> MomentsSum:
        """Return the sums of both."""
        assert self._origin is not None
        assert other._origin is not None
        both = MomentsSum()
        both.count, both._origin = self.count + other.count, self._origin
        n = other.count
        gram, cross, power, dx, dy = other._sums
        x, y = ((theirs - ours).double() for theirs, ours in zip(other._origin, self._origin, strict=True))
        moved = [
            gram + torch.outer(dx, x) + torch.outer(x, dx) + n * torch.outer(x, x),
            cross + torch.outer(dx, y) + torch.outer(x, dy) + n * torch.outer(x, y),
            power + 2 * y * dy + n * y.square(),
            dx + n * x,
            dy + n * y,
        ]
        both._sums = [a + b for a, b in zip(self._sums, moved, strict=True)]
        return both

    def result(self, *, centred: bool) -> Moments:
        """Return the moments of everything added; `centred`: without the means."""
        assert self._origin is not None
        x, y = (origin.double() for origin in self._origin)
        gram, cross, power, dx, dy = (total / self.count for total in self._sums)
        gram, cross, power = gram - torch.outer(dx, dx), cross - torch.outer(dx, dy), power - dy.square()
        x, y = x + dx, y + dy
        if centred:
            return Moments(gram, cross, power, x, y)
        return Moments(
            gram + torch.outer(x, x), cross + torch.outer(x, y), power + y.square(), x.new_zeros(len(x)),
            y.new_zeros(len(y)),
        )  # fmt: skip


def solve_all(weight: Tensor, moments: Moments, *, ridge: float = RIDGE) -> Tensor:
    """Return the (o, d) weight that gives the outputs best in the mean square, pulled toward `weight`.

    By `ridge`, or, where the moments have something to choose by, by the one of `RIDGES` that errs least there.
    """
    if moments.check is not None:
        fit, held = moments.check.fit, moments.check.held
        tried = {one: _solved(weight, fit, one) for one in RIDGES}
        ridge = min(tried, key=lambda one: sum(part.error(tried[one]) for part in held))
    return _solved(weight, moments, ridge)


def _solved(weight: Tensor, moments: Moments, ridge: float) -> Tensor:
    pull = ridge * moments.gram.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    left = moments.gram + pull * torch.eye(len(moments.gram), dtype=torch.float64)
    right = moments.cross + pull * weight.double().T
    return torch.cholesky_solve(right, cholesky(left)).T.float()


def solve_kept(weight: Tensor, moments: Moments, kept: Tensor, *, ridge: float = RIDGE) -> Tensor:
    """Return the (o, d) weight that is zero but for the inputs `kept` (d,) bool, solved for those as by `solve_all`."""
    solved = torch.zeros_like(weight)
    solved[:, kept] = solve_all(weight[:, kept], moments.of_inputs(kept), ridge=ridge)
    return solved
