"""Batch norms folded into the convolutions they follow: the same function with fewer layers.

Which norm reads just what a convolution wrote is seen in one forward pass, whatever the network's Python looks like.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from featcache.errors import FormatError

FOLD_TOLERANCE = 1e-3  # of the largest output; folding is exact but for fp32 rounding


def find_batchnorms(network: nn.Module, *, height: int, width: int) -> dict[str, str]:
    """Return ``{convolution: batch norm}`` by module name: pairs where the norm reads just what the convolution wrote.

    One forward pass over noise (2, 3, height, width) shows who reads whom, whatever the network's Python looks like.
    """
    wrote: dict[int, tuple[str, torch.Tensor]] = {}  # the tensor is kept: a freed one's id could come again
    pairs: dict[str, str] = {}
    handles = []

    def note_output(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            wrote[id(output)] = (name, output)

        return hook

    def note_input(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if id(inputs[0]) in wrote:
                pairs[wrote[id(inputs[0])][0]] = name

        return hook

    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(note_output(name)))
        elif isinstance(module, nn.BatchNorm2d):
            handles.append(module.register_forward_pre_hook(note_input(name)))
    try:
        with torch.inference_mode():
            network(torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0)))
    finally:
        for handle in handles:
            handle.remove()
    return pairs


def fold_batchnorms(network: nn.Module, pairs: Mapping[str, str]) -> None:
    """Fold, in place, each batch norm of `pairs` into its convolution, which gets a bias; the activation stays.

    Raises `FormatError` where the network has no such pair, or a norm without running statistics.
    """
    modules = dict(network.named_modules())
    for conv_name, norm_name in pairs.items():
        conv, norm = modules.get(conv_name), modules.get(norm_name)
        if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
            raise FormatError(f"a convolution {conv_name!r} with a batch norm {norm_name!r} must exist in this network")
        if norm.running_mean is None or norm.running_var is None:
            raise FormatError(f"batch norm {norm_name!r} must have running statistics to be folded, it has none")
        with torch.no_grad():
            gain = (norm.running_var.double() + norm.eps).rsqrt()
            offset = -norm.running_mean.double() * gain
            if norm.affine:
                gain, offset = gain * norm.weight.double(), offset * norm.weight.double() + norm.bias.double()
            bias = 0.0 if conv.bias is None else conv.bias.double()
            conv.weight.copy_((conv.weight.double() * gain.view(-1, 1, 1, 1)).float())
            conv.bias = nn.Parameter((bias * gain + offset).float(), requires_grad=False)
        parent, _, leaf = norm_name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, getattr(norm, "act", None) or nn.Identity())


def folded_copy(network: nn.Module, *, height: int, width: int) -> tuple[nn.Module, dict[str, str]]:
    """Return a copy of `network` with every foldable batch norm folded, and the pairs that were; same function.

    A pair whose folding would change the output (a convolution read by somebody else too) would break the promise, so
    the outputs over noise are compared and `FormatError` is raised where they differ.
    """
    pairs = find_batchnorms(network, height=height, width=width)
    folded = copy.deepcopy(network)
    fold_batchnorms(folded, pairs)
    noise = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        before, after = network(noise), folded(noise)
    difference, largest = float((before - after).abs().max()), float(before.abs().max())
    if difference > FOLD_TOLERANCE * max(largest, 1.0):
        raise FormatError(
            f"folding batch norm must keep the output, got a difference of {difference:.3g} of {largest:.3g}: a "
            "convolution of this network is read by more than its batch norm; quantization does not support it"
        )
    return folded, pairs
