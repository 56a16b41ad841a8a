"""Choose which weights of a layer stay, and solve them for its outputs: least squares with a given number of zeros.

The support is found by alternating directions (Meng et al. 2024, ALPS, arXiv 2406.07831): weights that give the outputs
best and weights that are sparse are moved toward each other, harder at every step, in coordinates in which all inputs
have the same power. Then those that stay are solved exactly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from featcache.compression.moments import RIDGE, Moments

Choose = Callable[[Tensor], Tensor]

_STRENGTH, _GROWTH, _GROWTH_EVERY = 0.1, 1.2, 3  # how hard both are pulled together, of a mean square of 1
_ROUNDS = 60
_MOST_PRODUCTS = 4e11  # multiplications in the rounds of a layer; larger layers take fewer
_LEAST_ROUNDS = 12
_STEPS = 50  # of conjugate gradients
_MOST_EXACT = 1024  # inputs of a layer up to which it is solved in float64
_TINY = torch.finfo(torch.float32).tiny


def solve_sparse(weight: Tensor, moments: Moments, choose: Choose, *, ridge: float = RIDGE) -> Tensor:
    """Return the (o, d) weight with the zeros that `choose` makes which gives the outputs well in the mean square.

    `choose` says of scores (o, d) which weights stay, where larger scores are better to keep. `ridge` pulls toward
    `weight`.
    """
    gram, wanted = _normal_equations(weight, moments, ridge)
    scale = gram.diagonal().sqrt()
    powers, axes = torch.linalg.eigh(gram / scale / scale[:, None])
    turned = (wanted / scale) @ axes
    whole = weight.to(gram.dtype) * scale
    kept = choose(whole.square())
    sparse, gap, strength = whole * kept, torch.zeros_like(whole), _STRENGTH
    for number in range(_rounds(weight)):
        whole = ((turned + (strength * sparse - gap) @ axes) / (powers + strength)) @ axes.T
        toward = whole + gap / strength
        kept = choose(toward.square())
        sparse = toward * kept
        gap += strength * (whole - sparse)
        if number % _GROWTH_EVERY == _GROWTH_EVERY - 1:
            strength *= _GROWTH
    return _conjugate_gradients(gram, wanted, sparse / scale, kept).float()


def solve_support(weight: Tensor, moments: Moments, kept: Tensor, *, ridge: float = RIDGE) -> Tensor:
    """Return the (o, d) weight, zero where not `kept`, that gives the outputs best in the mean square."""
    gram, wanted = _normal_equations(weight, moments, ridge)
    return _conjugate_gradients(gram, wanted, weight.to(gram.dtype) * kept, kept).float()


def keep_largest(scores: Tensor, count: int) -> Tensor:
    """Return which ones the `count` largest `scores` are, in their shape."""
    kept = torch.zeros(scores.numel(), dtype=torch.bool)
    kept[torch.topk(scores.flatten(), count, sorted=False).indices] = True
    return kept.view_as(scores)


def keep_two_of_four(scores: Tensor, shape: torch.Size) -> Tensor:
    """Return the two largest `scores` (o, d) of each four consecutive inputs of a weight of `shape` (o, inputs, …)."""
    four = scores.view(shape[0], shape[1] // 4, 4, -1).unbind(dim=2)
    kept = []
    for place, own in enumerate(four):  # how many of the others come first; of equal ones the earlier does
        ahead = sum(
            ((other >= own) if index < place else (other > own)).to(torch.int8)
            for index, other in enumerate(four)
            if index != place
        )
        kept.append(torch.as_tensor(ahead) < 2)
    return torch.stack(kept, dim=2).view_as(scores)


def _normal_equations(weight: Tensor, moments: Moments, ridge: float) -> tuple[Tensor, Tensor]:
    """Return (d, d) and (o, d): products of the inputs, and of outputs and inputs, with the pull toward `weight`."""
    dtype = torch.float64 if weight.shape[1] <= _MOST_EXACT else torch.float32
    pull = ridge * moments.gram.diagonal().mean().clamp(min=_TINY)
    gram = moments.gram + pull * torch.eye(len(moments.gram), dtype=torch.float64)
    return gram.to(dtype), (moments.cross.T + pull * weight.double()).to(dtype)


def _rounds(weight: Tensor) -> int:
    products = 2 * weight.shape[0] * weight.shape[1] ** 2
    return int(min(_ROUNDS, max(_LEAST_ROUNDS, _MOST_PRODUCTS // products)))


def _conjugate_gradients(gram: Tensor, wanted: Tensor, start: Tensor, kept: Tensor) -> Tensor:
    """Return rows x, zero where not `kept`, whose x · `gram` comes nearest to those of `wanted`; all rows at once."""
    diagonal = gram.diagonal()
    solved = start * kept
    missing = (wanted - solved @ gram) * kept
    direction = missing / diagonal
    power = (missing * direction).sum(dim=1, keepdim=True)
    for _ in range(_STEPS):
        moved = (direction @ gram) * kept
        step = power / (direction * moved).sum(dim=1, keepdim=True).clamp(min=_TINY)
        solved += step * direction
        missing -= step * moved
        scaled = missing / diagonal
        before, power = power, (missing * scaled).sum(dim=1, keepdim=True)
        direction = scaled + power / before.clamp(min=_TINY) * direction
    return solved
