"""Layers that multiply all their inputs with one matrix; what they read and give at some positions of their maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Layer = nn.Conv2d | nn.Linear
Run = Callable[[Tensor], Any]


def is_product(module: nn.Module) -> bool:
    """Return whether `module` multiplies all its inputs with one matrix: a linear layer, a convolution of one group."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def solvable_layers(network: nn.Module, run: Callable[[Tensor], object], images: Tensor) -> dict[str, Layer]:
    """Return the layers by name that multiply all their inputs with one matrix, once for each of the `images`."""
    layers = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and is_product(module)
    }
    calls: Counter[str] = Counter()
    with ExitStack() as stack, torch.inference_mode():
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(lambda *_, name=name: calls.update([name])).remove)
        run(images)
    return {name: layer for name, layer in layers.items() if calls[name] == 1}


def inputs_at(layer: Layer, arriving: Tensor, picked: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return (n·p, d): what `layer` multiplies for the positions `picked` (n, p) of its output of `shape`.

    For a convolution d runs over channels, rows and columns of the kernel, in the order of its weight.
    """
    if isinstance(layer, nn.Linear):
        return values_at(layer, arriving, picked)
    reach = [step * (size - 1) + 1 for step, size in zip(layer.dilation, layer.kernel_size, strict=True)]
    if isinstance(layer.padding, str) or layer.padding == (0, 0):  # timm pads "same" inside its layer
        missing = [
            max(0, (outs - 1) * step + span - size)
            for outs, step, span, size in zip(shape, layer.stride, reach, arriving.shape[2:], strict=True)
        ]
        around = [part for total in reversed(missing) for part in (total // 2, total - total // 2)]
    else:
        around = [layer.padding[1], layer.padding[1], layer.padding[0], layer.padding[0]]
    padded = functional.pad(arriving, around) if any(around) else arriving
    ys = (picked // shape[1] * layer.stride[0])[..., None] + torch.arange(0, reach[0], layer.dilation[0])
    xs = (picked % shape[1] * layer.stride[1])[..., None] + torch.arange(0, reach[1], layer.dilation[1])
    images = torch.arange(len(arriving)).view(-1, 1, 1, 1)
    # (n, p, rows, columns, channels)
    patches = padded.permute(0, 2, 3, 1)[images, ys[:, :, :, None], xs[:, :, None, :]]
    return patches.permute(0, 1, 4, 2, 3).flatten(2).flatten(0, 1).float()


def map_shape(layer: Layer, output: Tensor) -> tuple[int, int]:
    """Return height and width of a convolution's maps, or 1 and how many tokens a linear layer answers for an image."""
    if isinstance(layer, nn.Linear):
        return (1, output[0].numel() // output.shape[-1])
    return (output.shape[2], output.shape[3])


def values_at(layer: Layer, values: Tensor, picked: Tensor) -> Tensor:
    """Return (n·p, channels) of what `layer` reads or gives, at the positions `picked` (n, p)."""
    linear = isinstance(layer, nn.Linear)
    flat = values.reshape(len(values), -1, values.shape[-1]) if linear else values.flatten(2).transpose(1, 2)
    return flat[torch.arange(len(flat)).unsqueeze(1), picked].flatten(0, 1).float()
