"""Which channels a layer can spare: those whose loss costs least after its weights are solved again.

The optimal brain surgeon (Hassibi and Stork 1993) for whole channels: with W the weights solved for the inputs' second
moments G, channel j costs tr(Wⱼ [G⁻¹]ⱼⱼ⁻¹ Wⱼᵀ); without it the other weights move by −Wⱼ [G⁻¹]ⱼⱼ⁻¹ [G⁻¹]ⱼ, and G⁻¹ is
downdated (Frantar and Alistarh 2022, arXiv 2208.11580; Kurtic et al. 2023, arXiv 2302.04089).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from featcache.compression.factor import cholesky
from featcache.compression.moments import RIDGE, Moments

# of the channels left, removed between two looks at the costs: one by one would be exact, and slow where a layer has
# thousands of inputs
_AT_ONCE, _AT_ONCE_OF_MANY = 1 / 48, 1 / 16
_MANY = 1024  # inputs of a layer


@dataclass(slots=True)
class _Reader:
    """A layer's weight (o, width, b), solved for the channels that are left, and its inverse moments."""

    weight: Tensor
    inverse: Tensor
    power: float

    def costs(self, live: Tensor) -> Tensor:
        """Return what each of the channels `live` costs, as a share of the output's power."""
        weight = self.weight[:, live]
        if weight.shape[2] == 1:
            return weight[:, :, 0].square().sum(dim=0) / self.inverse.diagonal()[live] / self.power
        blocks = self._blocks(live)
        moved = torch.linalg.solve(blocks, weight.permute(1, 2, 0))  # (channels, b, o)
        cost: Tensor = (weight.permute(1, 2, 0) * moved).sum(dim=(1, 2)) / self.power
        return cost

    def _blocks(self, live: Tensor) -> Tensor:
        b = self.weight.shape[2]
        square = self.inverse.view(self.weight.shape[1], b, self.weight.shape[1], b)
        return square[live, :, live, :]

    def remove(self, gone: Tensor) -> None:
        """Take the channels `gone` out and let the others take over."""
        o, width, b = self.weight.shape
        columns = (gone[:, None] * b + torch.arange(b)).flatten()
        weight = self.weight.view(o, width * b)
        rows = torch.linalg.solve(self.inverse[columns][:, columns], self.inverse[columns])
        weight -= weight[:, columns] @ rows
        self.inverse -= self.inverse[:, columns] @ rows
        weight[:, columns] = 0
        self.inverse[columns] = 0
        self.inverse[:, columns] = 0


@dataclass(frozen=True, slots=True)
class Removal:
    """`order`: channels, the first to go first. `errors`: for how many are kept, what the readers' outputs lose.

    `weights`: for the widths asked for, each reader's weight (o, d).
    """

    order: Tensor
    errors: Mapping[int, float]
    weights: Mapping[int, Mapping[str, Tensor]]


def removal_order(
    weights: Mapping[str, Tensor],
    moments: Mapping[str, Moments],
    *,
    width: int,
    unit: int,
    kept: Sequence[int],
    ridge: float = RIDGE,
) -> Removal:
    """Return in which order the `width` channels that all of `weights` read can go, `unit` neighbours at a time.

    `weights`: (o, d) of each reader by name, d a multiple of `width`. `kept`: the widths at which the solved weights
    are wanted; removal ends at the least of them.
    """
    readers = {name: _reader(weight, moments[name], width // unit, ridge) for name, weight in weights.items()}
    units = width // unit
    live = torch.arange(units)
    share = _AT_ONCE if max(weight.shape[1] for weight in weights.values()) <= _MANY else _AT_ONCE_OF_MANY
    order: list[Tensor] = []
    snapshots: dict[int, dict[str, Tensor]] = {}
    errors, lost = {width: 0.0}, 0.0
    for wanted in sorted((count // unit for count in kept), reverse=True):
        while len(live) > wanted:
            cost = sum(reader.costs(live) for reader in readers.values())
            assert isinstance(cost, Tensor)
            at_once = min(max(1, int(share * len(live))), len(live) - wanted)
            cheapest = cost.argsort(stable=True)[:at_once]
            gone = live[cheapest]
            for step, price in enumerate(cost[cheapest].tolist(), start=1):
                lost += max(price, 0.0)
                errors[(len(live) - step) * unit] = lost
            for reader in readers.values():
                reader.remove(gone)
            order.append(gone)
            live = live[~torch.isin(live, gone)]
        snapshots[wanted * unit] = {name: reader.weight.flatten(1).float() for name, reader in readers.items()}
    gone_units = torch.cat(order) if order else torch.empty(0, dtype=torch.int64)
    channels = (gone_units[:, None] * unit + torch.arange(unit)).flatten()
    return Removal(channels, errors, snapshots)


def _reader(weight: Tensor, moments: Moments, units: int, ridge: float) -> _Reader:
    """Return the state before anything is gone: the weights solved for all channels."""
    pull = ridge * moments.gram.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    left = cholesky(moments.gram + pull * torch.eye(len(moments.gram), dtype=torch.float64))
    solved = torch.cholesky_solve(moments.cross + pull * weight.double().T, left).T
    power = float(moments.power.sum().clamp(min=torch.finfo(torch.float64).tiny))
    return _Reader(solved.reshape(len(weight), units, -1).contiguous(), torch.cholesky_inverse(left), power)
