"""The named outputs of a timm network: which there are, and which layer each one is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from featcache.errors import BackboneError, InputError

_OUTPUT = re.compile(r"(stage|cls-|mean-)([1-9][0-9]*)")


def available_outputs(network: nn.Module) -> tuple[str, ...]:
    """Return the names `load_backbone` accepts as outputs of this timm network."""
    names = ["features"]
    config: Any = getattr(network, "pretrained_cfg", None) or {}
    if getattr(network, "num_classes", 0) or config.get("num_classes"):
        names.append("logits")
    if not hasattr(network, "forward_intermediates"):
        return tuple(names)
    if is_transformer(network):
        depth = range(1, len(_feature_info(network)) + 1)
        if getattr(network, "cls_token", None) is not None:
            names += [f"cls-{block}" for block in depth]
        names += [f"mean-{block}" for block in depth]
        names.append("tokens")
    else:
        names += [f"stage{stage}" for stage in range(1, len(_feature_info(network)) + 1)]
    return tuple(names)


def layers_of(network: nn.Module, outputs: tuple[str, ...], model_name: str) -> dict[str, int]:
    """Return ``{output: index for forward_intermediates}``.

    Raises `BackboneError` for what this network does not have, `InputError` where `outputs` are none or not distinct.
    """
    if not outputs or len(set(outputs)) != len(outputs):
        raise InputError(f"outputs must be one or more distinct names, got {outputs!r}")
    layers = {}
    there = available_outputs(network)
    for name in outputs:
        if name not in there and name != "logits":
            raise BackboneError(f"output {name!r} is not one of {model_name!r}; it has {', '.join(_shorten(there))}")
        if name == "tokens":
            layers[name] = len(_feature_info(network)) - 1
        elif match := _OUTPUT.fullmatch(name):
            number = int(match[2])
            layers[name] = number - 1 if match[1] == "stage" else len(_feature_info(network)) - number
    return layers


def is_transformer(network: nn.Module) -> bool:
    """Return whether the intermediates are one token sequence per block (columnar transformers only)."""
    method = getattr(network, "forward_intermediates", None)
    blocks = getattr(network, "blocks", None)
    return (
        method is not None
        and "return_prefix_tokens" in inspect.signature(method).parameters
        and isinstance(blocks, (nn.Sequential, nn.ModuleList))
        and len(_feature_info(network)) == len(blocks)
    )


def _feature_info(network: nn.Module) -> Sequence[Any]:
    info: Any = getattr(network, "feature_info", ())
    return info if isinstance(info, (list, tuple)) else list(info.info)


def _shorten(names: Sequence[str]) -> list[str]:
    """Return the names with runs such as cls-1, cls-2, cls-3 written as one range."""
    runs: dict[str, list[str]] = {}
    for name in names:
        match = _OUTPUT.fullmatch(name)
        runs.setdefault(match[1] if match else name, []).append(name)
    return [run[0] if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs.values()]
