"""What a network costs with given widths of its groups: multiplications, parameters, or milliseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from featcache.compression.groups import ChannelGroup


@dataclass(frozen=True, slots=True)
class LayerCost:
    """A layer's cost as it is, and the groups whose width it grows with; `at`: (share of the work, cost) measured."""

    cost: float
    groups: tuple[str, ...]
    at: tuple[tuple[float, ...], tuple[float, ...]] | None = None


class NetworkCost:
    """The cost of a network as a function of its groups' widths; `rest`: what no group changes."""

    def __init__(self, layers: Mapping[str, LayerCost], groups: Sequence[ChannelGroup], *, rest: float) -> None:
        self.layers, self.rest = dict(layers), rest
        self._full = {group.name: group.width for group in groups}

    def share(self, layer: LayerCost, widths: Mapping[str, int]) -> float:
        """Return which share of its work `layer` has left."""
        share = 1.0
        for name in layer.groups:
            share *= widths[name] / self._full[name]
        return share

    def __call__(self, widths: Mapping[str, int]) -> float:
        """Return the cost with these widths, one for each group."""
        total = self.rest
        for layer in self.layers.values():
            share = self.share(layer, widths)
            total += layer.cost * share if layer.at is None else float(np.interp(share, *layer.at))
        return total


def groups_of_layers(groups: Sequence[ChannelGroup]) -> dict[str, tuple[str, ...]]:
    """Return for each layer the groups whose width its multiplications grow with."""
    found: dict[str, list[str]] = {}
    for group in groups:
        for name in (*group.outs, *group.ins):
            found.setdefault(name, []).append(group.name)
        if group.attention is not None:
            found.setdefault(group.attention, []).append(group.name)
    return {name: tuple(names) for name, names in found.items()}


def count_macs(network: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the multiply-accumulates per image of each convolution and linear layer, and of each attention's products.

    `shapes`: of the layers' outputs for one image, by name.
    """
    macs: dict[str, int] = {}
    for name, module in network.named_modules():
        if name in shapes:
            places = int(np.prod(shapes[name]))
            weight: Any = module.weight
            macs[name] = places * int(weight[0].numel())
        elif hasattr(module, "attn_dim") and f"{name}.qkv" in shapes:
            tokens = int(np.prod(shapes[f"{name}.qkv"][1:-1]))
            macs[name] = 2 * tokens * tokens * int(module.attn_dim)
    return macs


def count_parameters(network: nn.Module) -> dict[str, int]:
    """Return how many parameters each module holds itself, by name."""
    return {
        name: sum(parameter.numel() for parameter in module.parameters(recurse=False))
        for name, module in network.named_modules()
    }
