"""Network surgery that keeps a network's function or its layout: fold batch norm, give layers other widths.

Both are recorded in a MODEL as plain values and replayed on the freshly built timm network before its weights are
loaded, so that no code and no pickled module is ever stored.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from featcache.errors import FormatError

FOLD_TOLERANCE = 1e-3  # of the largest output; folding is exact but for fp32 rounding

Widths = Mapping[str, Mapping[str, Any]]


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
    """Fold, in place, each batch norm of `pairs` into its convolution, which gets a bias; the activation stays."""
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


def layer_widths(network: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the widths of every layer by module name, and the shape of every other parameter: what pruning changes."""
    found: dict[str, dict[str, Any]] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            found[name] = {"in": module.in_channels, "out": module.out_channels, "groups": module.groups}
        elif isinstance(module, nn.Linear):
            found[name] = {"in": module.in_features, "out": module.out_features}
        elif isinstance(module, nn.BatchNorm2d):
            found[name] = {"out": module.num_features}
        elif isinstance(module, nn.LayerNorm):
            found[name] = {"out": module.normalized_shape[-1]}
        else:
            for own, parameter in module.named_parameters(recurse=False):
                found[f"{name}.{own}" if name else own] = {"shape": list(parameter.shape)}
    return found


def changed_widths(network: nn.Module, original: Widths) -> dict[str, dict[str, Any]]:
    """Return the widths of the layers of `network` that differ from `original`."""
    return {name: widths for name, widths in layer_widths(network).items() if original.get(name) != widths}


def resize_layers(network: nn.Module, widths: Widths) -> None:
    """Give the layers named in `widths` these widths, in place; their values are left undefined until loaded.

    Raises `FormatError` where the network has no such layer.
    """
    modules, parameters = dict(network.named_modules()), dict(network.named_parameters())
    for name, wanted in widths.items():
        module = modules.get(name)
        if isinstance(module, nn.Conv2d):
            module.in_channels, module.out_channels, module.groups = wanted["in"], wanted["out"], wanted["groups"]
            shape = (wanted["out"], wanted["in"] // wanted["groups"], *module.kernel_size)
            module.weight = _undefined(shape)
            if module.bias is not None:
                module.bias = _undefined((wanted["out"],))
        elif isinstance(module, nn.Linear):
            module.in_features, module.out_features = wanted["in"], wanted["out"]
            module.weight = _undefined((wanted["out"], wanted["in"]))
            if module.bias is not None:
                module.bias = _undefined((wanted["out"],))
        elif isinstance(module, nn.BatchNorm2d):
            module.num_features = wanted["out"]
            if module.affine:
                module.weight, module.bias = _undefined((wanted["out"],)), _undefined((wanted["out"],))
            module.running_mean = torch.zeros(wanted["out"])
            module.running_var = torch.ones(wanted["out"])
        elif isinstance(module, nn.LayerNorm):
            module.normalized_shape = (wanted["out"],)
            if module.elementwise_affine:
                module.weight, module.bias = _undefined((wanted["out"],)), _undefined((wanted["out"],))
        elif "shape" in wanted and name in parameters:
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, _undefined(tuple(wanted["shape"])))
        else:
            raise FormatError(f"a layer {name!r} must exist in this network to take the widths {dict(wanted)!r}")


def _undefined(shape: tuple[int, ...]) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape), requires_grad=False)


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


@dataclass(frozen=True, slots=True)
class Surgery:
    """What was done to the timm network's layout since it was built: values that `load_model` replays.

    `folded`: ``{convolution: batch norm}`` folded, by module name. `widths`: the layers whose widths differ, with them.
    """

    folded: Mapping[str, str] = field(default_factory=dict)
    widths: Widths = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "folded": dict(self.folded),
            "widths": {name: dict(values) for name, values in self.widths.items()},
        }

    def apply(self, network: nn.Module) -> None:
        """Do it to `network`, in place; values are undefined until loaded."""
        resize_layers(network, self.widths)  # first: the widths name batch norms that folding takes away
        fold_batchnorms(network, self.folded)
