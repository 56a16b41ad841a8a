"""Depthwise convolutions whose kernel is larger than their map: a gradient that has fast code on processors.

oneDNN falls back to a reference loop there, which the last stage of a small network at a small input always is: 5x5
kernels on 3x3 maps, 576 channels, 128 images take 58 ms on one thread. Such a convolution is a small matrix for each
channel, from the map's pixels to the result's: as batched products its gradient takes 6 ms.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class _SmallMap(torch.autograd.Function):
    """``conv2d(x, weight, groups=channels)`` with the gradient of the equal matrix product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        """Return the convolution of x (b, c, h, w) with weight (c, 1, k, k)."""
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(x, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Return the gradients of x and weight."""
        x, weight = ctx.saved_tensors
        (b, c, h, w), (out_h, out_w) = x.shape, gradient.shape[2:]
        out, into, tap = _pairs((h, w), (out_h, out_w), weight.shape[2:], ctx.stride, ctx.padding)
        place = out * (h * w) + into
        by_channel = gradient.permute(1, 2, 3, 0).reshape(c, out_h * out_w, b)
        pixels = x.permute(1, 2, 3, 0).reshape(c, h * w, b)
        matrix_gradient = torch.bmm(by_channel, pixels.transpose(1, 2)).flatten(1)
        weight_gradient = torch.zeros_like(weight).flatten(1).index_add_(1, tap, matrix_gradient[:, place])
        matrix = weight.new_zeros(c, out_h * out_w * h * w)
        matrix[:, place] = weight.flatten(1)[:, tap]
        x_gradient = torch.bmm(matrix.view(c, out_h * out_w, h * w).transpose(1, 2), by_channel)
        x_gradient = x_gradient.view(c, h, w, b).permute(3, 0, 1, 2)
        return x_gradient.contiguous(memory_format=torch.channels_last), weight_gradient.view_as(weight), None, None


def _pairs(
    size: tuple[int, ...],
    out_size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return which result pixel takes which map pixel through which weight, three tensors (m,) of positions."""
    steps = []
    for axis in range(2):
        result, tap = torch.meshgrid(torch.arange(out_size[axis]), torch.arange(kernel[axis]), indexing="ij")
        pixel = result * stride[axis] + tap - padding[axis]
        steps.append(torch.stack([result, pixel, tap])[:, (pixel >= 0) & (pixel < size[axis])])
    (y_out, y, y_tap), (x_out, x, x_tap) = steps[0][:, :, None], steps[1][:, None, :]
    return (
        (y_out * out_size[1] + x_out).flatten(),
        (y * size[1] + x).flatten(),
        (y_tap * kernel[1] + x_tap).flatten(),
    )


def use_fast_gradients(network: nn.Module) -> None:
    """Let the depthwise convolutions of `network` take this way on a processor wherever their map is small enough."""
    for module in network.modules():
        plain = (
            isinstance(module, nn.Conv2d)
            and module.groups == module.in_channels == module.out_channels
            and module.bias is None
            and module.dilation == (1, 1)
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
            and type(module).forward is nn.Conv2d.forward
        )
        if plain:
            _patch(module)


def _patch(module: Any) -> None:
    usual = module.forward

    def forward(x: Tensor) -> Tensor:
        if not is_small_map(x, module.kernel_size):
            return usual(x)  # type: ignore[no-any-return]
        # a norm folded in while training lends the layer a bias
        return convolve_small_map(x, module.weight, module.bias, stride=module.stride, padding=module.padding)

    module.forward = forward


def is_small_map(x: Tensor, kernel: tuple[int, ...]) -> bool:
    """Return whether x (b, c, h, w) is to be convolved with this `kernel` by `convolve_small_map` for its gradient."""
    small = x.shape[2] < kernel[0] and x.shape[3] < kernel[1]
    return small and x.dtype == torch.float32 and x.device.type == "cpu"


def convolve_small_map(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: tuple[int, ...], padding: tuple[int, ...]
) -> Tensor:
    """Return the convolution of x (b, c, h, w) with weight (c, 1, k, k), each channel with its own."""
    result: Tensor = _SmallMap.apply(x, weight, stride, padding)  # type: ignore[no-untyped-call]
    return result if bias is None else result + bias.view(1, -1, 1, 1)
