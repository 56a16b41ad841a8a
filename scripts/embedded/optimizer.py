"""AdamW, or Muon for the matrices with AdamW for the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from embedded.processes import processes, rank, summed

_TERMS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Steps of momentum whose singular values are made alike (Jordan et al. 2024), for convolutions of many channels.

    `lr`: the step's size in units in which every entry moves by about 0.2 of AdamW's (Liu et al. 2025, arXiv
    2502.16982).
    """

    def __init__(self, params: Any, lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient; several processes share the work and end up alike."""
        for group in self.param_groups:
            moved = [one for one in group["params"] if one.grad is not None]
            turned = []
            for number, one in enumerate(moved):
                state = self.state[one]
                if not state:
                    state["moving"] = torch.zeros_like(one)
                moving = state["moving"].lerp_(one.grad, 1 - group["momentum"])
                mine = number % processes() == rank()
                wanted = one.grad.lerp(moving, group["momentum"]).flatten(1) if mine else one.new_zeros(one.numel())
                turned.append(orthogonal(wanted) if mine else wanted)
            for one, flat in zip(moved, summed(turned), strict=True):
                one.mul_(1 - group["lr"] * group["weight_decay"])
                one.add_(flat.view_as(one), alpha=-group["lr"] * 0.2 * max(one.flatten(1).shape) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """Return the matrix with its singular values near 1, by five Newton-Schulz steps."""
    a, b, c = _TERMS
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(5):
        square = wide @ wide.T
        wide = a * wide + (b * square + c * square @ square) @ wide
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide


def optimizers(student: nn.Module, name: str, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Return what trains `student`: of ``adamw`` or ``muon``; learning rates are set at each step."""
    network = getattr(student, "network", student)
    mixing = [
        one for one in network.parameters()
        if one.ndim == 4 and one.shape[1] > 8 and one.shape[0] > 8
    ] if name == "muon" else []  # fmt: skip
    theirs = {id(one) for one in mixing}
    rest = [one for one in student.parameters() if id(one) not in theirs]
    groups = [
        {"params": [one for one in rest if one.ndim > 1], "weight_decay": weight_decay},
        {"params": [one for one in rest if one.ndim <= 1], "weight_decay": 0.0},
    ]
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=1.0, fused=True)]
    if mixing:
        made.append(Muon(mixing, lr=1.0, weight_decay=weight_decay))
    return made
