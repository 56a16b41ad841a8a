"""Widths of a network's layers: read, compared, and given to a network that was built with others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from featcache.errors import FormatError

Widths = Mapping[str, Mapping[str, Any]]


def layer_widths(network: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the widths of every layer by module name, and the shape of every other parameter: what pruning changes."""
    layers: dict[str, dict[str, Any]] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            layers[name] = {"in": module.in_channels, "out": module.out_channels, "groups": module.groups}
        elif isinstance(module, nn.Linear):
            layers[name] = {"in": module.in_features, "out": module.out_features}
        elif isinstance(module, nn.BatchNorm2d):
            layers[name] = {"out": module.num_features}
        elif isinstance(module, nn.LayerNorm):
            layers[name] = {"out": module.normalized_shape[-1]}
        elif hasattr(module, "attn_dim") and hasattr(module, "num_heads"):  # timm's attention
            layers[name] = {"heads": module.num_heads}
        else:
            for leaf, parameter in module.named_parameters(recurse=False):
                layers[f"{name}.{leaf}" if name else leaf] = {"shape": list(parameter.shape)}
    return layers


def changed_widths(network: nn.Module, original: Widths) -> dict[str, dict[str, Any]]:
    """Return the widths of the layers of `network` that differ from `original`."""
    return {name: widths for name, widths in layer_widths(network).items() if original.get(name) != widths}


def resize_layers(network: nn.Module, widths: Widths) -> None:
    """Give the layers named in `widths` these widths, in place; their values are left undefined until loaded.

    Raises `FormatError` where the network has no such layer.
    """
    modules, parameters = dict(network.named_modules()), dict(network.named_parameters())
    for name, sizes in widths.items():
        module = modules.get(name)
        if isinstance(module, nn.Conv2d):
            module.in_channels, module.out_channels, module.groups = sizes["in"], sizes["out"], sizes["groups"]
            shape = (sizes["out"], sizes["in"] // sizes["groups"], *module.kernel_size)
            module.weight = _undefined(shape)
            if module.bias is not None:
                module.bias = _undefined((sizes["out"],))
        elif isinstance(module, nn.Linear):
            module.in_features, module.out_features = sizes["in"], sizes["out"]
            module.weight = _undefined((sizes["out"], sizes["in"]))
            if module.bias is not None:
                module.bias = _undefined((sizes["out"],))
        elif isinstance(module, nn.BatchNorm2d):
            module.num_features = sizes["out"]
            if module.affine:
                module.weight, module.bias = _undefined((sizes["out"],)), _undefined((sizes["out"],))
            module.running_mean = torch.zeros(sizes["out"])
            module.running_var = torch.ones(sizes["out"])
        elif isinstance(module, nn.LayerNorm):
            module.normalized_shape = (sizes["out"],)
            if module.elementwise_affine:
                module.weight, module.bias = _undefined((sizes["out"],)), _undefined((sizes["out"],))
        elif "heads" in sizes and hasattr(module, "attn_dim"):
            attention: Any = module
            attention.num_heads, attention.attn_dim = sizes["heads"], sizes["heads"] * attention.head_dim
        elif "shape" in sizes and name in parameters:
            parent, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(parent), leaf, _undefined(tuple(sizes["shape"])))
        else:
            raise FormatError(f"a layer {name!r} must exist in this network to take the widths {dict(sizes)!r}")


def _undefined(shape: tuple[int, ...]) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape), requires_grad=False)
