"""Set single weights to zero, and solve those that are left again for the inputs that their layer really gets.

How many go in which layer is decided by their size; which ones, by what each costs the layer's output after the others
have made up for it as well as they can (the optimal brain surgeon's score, w² over the diagonal of the inverse Gram
matrix: Hassibi and Stork 1993; Kurtic et al. 2022, arXiv 2203.07259). Measured on MobileNetV2 with clothing10 before
any refit, where float has 87.4 %: with half of the weights zero 36.0 % as they were, 82.0 % solved again, 83.9 % chosen
by that score too; with 70 % of them 47.3 % by size and 57.8 % by score.

Depthwise and grouped convolutions stay whole: they hold few weights, and each of these matters.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from featcache.compress.compensation import RIDGE, Layer, Moments, compensate, is_product, record_answers
from featcache.compress.quantization import calibration_pixels
from featcache.compress.refitting import Source
from featcache.errors import InputError
from featcache.model.merged import wrap_network

Pattern = Literal["global", "layer", "2:4"]
PATTERNS: tuple[Pattern, ...] = ("global", "layer", "2:4")

IMAGES = 192  # training images that the weights are solved for
_GROUP, _KEPT_OF_GROUP = 4, 2
_DAMPING = 0.01  # of the Gram matrix before it is inverted for the scores, as a share of its mean diagonal
_STEPS = 50  # of conjugate gradients
_MOST_EXACT = 1024  # inputs of a layer up to which it is solved in float64
_TINY = torch.finfo(torch.float32).tiny

Choose = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """A `network` with zeros among its weights, and what there is to say about where they could not be."""

    network: nn.Module
    notes: tuple[str, ...]


def zero_weights(source: Source, *, amount: float, pattern: Pattern) -> Sparse:
    """Return a copy of the model's network with the share `amount` of its weights zero and the others solved again.

    `pattern`: ``global`` spreads the zeros over the layers by the size of their weights, ``layer`` evenly, ``2:4`` puts
    two into each four consecutive inputs of an output, wherever a layer's inputs are a multiple of four (`amount` is
    0.5 of those layers). Raises `InputError` where so many cannot go, `MissingError` where no training image is left.
    """
    model = source.model
    network = copy.deepcopy(model.backbone.network)
    backbone = wrap_network(network, model.recipe, outputs=model.backbone.outputs)
    images = model.normalise(torch.from_numpy(calibration_pixels(source, IMAGES)))
    layers = solvable_layers(network, backbone, images[:1])
    notes: tuple[str, ...] = ()
    if pattern == "2:4":
        choose, layers, notes = _two_of_four(layers)
    else:
        every = sum(m.weight.numel() for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear))
        counts = _zeros_of_layers(layers, round(amount * every), every, evenly=pattern == "layer")

        def choose(name: str, scores: Tensor) -> Tensor:
            return keep_largest(scores, scores.numel() - counts[name])

    if not layers:
        raise InputError(f"--pattern {pattern} needs a layer it applies to, {model.recipe.model!r} has none")

    def solve(name: str, weight: Tensor, moments: Moments) -> Tensor:
        return solve_kept(weight, moments, choose(name, surgeon_scores(weight, moments)))

    answers = record_answers(network, backbone, images, list(layers))
    compensate(network, backbone, images, list(answers.values()), solve=solve)
    return Sparse(network, notes)


def solvable_layers(network: nn.Module, run: Callable[[Tensor], object], images: Tensor) -> dict[str, Layer]:
    """Return the layers by name that multiply all their inputs with one matrix, once for each of the `images`."""
    layers = {name: module for name, module in network.named_modules() if _is_layer(module)}
    calls: Counter[str] = Counter()
    with ExitStack() as stack, torch.inference_mode():
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(lambda *_, name=name: calls.update([name])).remove)
        run(images)
    return {name: layer for name, layer in layers.items() if calls[name] == 1}


def surgeon_scores(weight: Tensor, moments: Moments) -> Tensor:
    """Return what taking away each weight of (o, d) costs the outputs, the others of its row solved again."""
    damping = _DAMPING * moments.gram.diagonal().mean().clamp(min=_TINY)
    damped = moments.gram + damping * torch.eye(len(moments.gram), dtype=moments.gram.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return weight.double().square() / inverse.diagonal()


def keep_largest(scores: Tensor, count: int) -> Tensor:
    """Return which ones the `count` largest `scores` are, in their shape."""
    kept = torch.zeros(scores.numel(), dtype=torch.bool)
    kept[torch.topk(scores.flatten(), count).indices] = True
    return kept.view_as(scores)


def keep_two_of_four(scores: Tensor, shape: torch.Size) -> Tensor:
    """Return the two largest `scores` (o, d) of each four consecutive inputs of a weight of `shape` (o, inputs, …)."""
    groups = scores.view(shape[0], shape[1] // _GROUP, _GROUP, -1)
    kept = torch.zeros_like(groups, dtype=torch.bool)
    return kept.scatter_(2, groups.topk(_KEPT_OF_GROUP, dim=2).indices, value=True).view_as(scores)


def zeros_by_size(weights: Mapping[str, Tensor], total: int) -> dict[str, int]:
    """Return how many weights of each layer go so that it is `total`, by the layer-adaptive magnitude score.

    That is a weight's square over the sum of all squares of its layer that are not smaller (Lee et al. 2021, LAMP);
    a layer's largest weight stays.
    """
    scores, owners = [], []
    for number, weight in enumerate(weights.values()):
        squares = weight.detach().double().square().flatten().sort(descending=True).values
        scores.append(squares / squares.cumsum(dim=0).clamp(min=torch.finfo(torch.float64).tiny))
        owners.append(torch.full((len(squares),), number))
    gone = torch.cat(owners)[torch.topk(torch.cat(scores), total, largest=False).indices]
    return dict(zip(weights, torch.bincount(gone, minlength=len(weights)).tolist(), strict=True))


def solve_kept(weight: Tensor, moments: Moments, kept: Tensor, *, ridge: float = RIDGE) -> Tensor:
    """Return the (o, d) weight, zero where not `kept`, that gives the outputs best in the mean square.

    `ridge` pulls it toward `weight`. All rows are solved at once by conjugate gradients, each on its own support.
    """
    dtype = torch.float64 if weight.shape[1] <= _MOST_EXACT else torch.float32
    pull = ridge * moments.gram.diagonal().mean().clamp(min=_TINY)
    gram = (moments.gram + pull * torch.eye(len(moments.gram), dtype=torch.float64)).to(dtype)
    wanted = (moments.cross.T + pull * weight.double()).to(dtype) * kept
    diagonal = gram.diagonal()
    solved = weight.to(dtype) * kept
    missing = wanted - (solved @ gram) * kept
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
    return solved.float()


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Linear) and is_product(module)


def _zeros_of_layers(layers: Mapping[str, Layer], total: int, every: int, *, evenly: bool) -> dict[str, int]:
    """Return how many weights of each layer become zero, `total` of the network's `every` one in all."""
    weights = {name: layer.weight for name, layer in layers.items()}
    most = sum(weight.numel() - 1 for weight in weights.values())
    if total > most:
        raise InputError(
            f"--amount must be at most {most / every:.2f} for this network, got {total / every:.2f}: convolutions in "
            "groups stay whole"
        )
    if not evenly:
        return zeros_by_size(weights, total)
    share = total / sum(weight.numel() for weight in weights.values())
    return {name: min(round(share * weight.numel()), weight.numel() - 1) for name, weight in weights.items()}


def _two_of_four(layers: Mapping[str, Layer]) -> tuple[Choose, dict[str, Layer], tuple[str, ...]]:
    """Return how a layer chooses its weights, the layers that have groups of four, and a note on the others."""
    fitting = {name: layer for name, layer in layers.items() if layer.weight.shape[1] % _GROUP == 0}

    def choose(name: str, scores: Tensor) -> Tensor:
        return keep_two_of_four(scores, fitting[name].weight.shape)

    left = len(layers) - len(fitting)
    notes = (f"{left} layers stay whole: their inputs are no multiple of four",) if left else ()
    return choose, fitting, notes
