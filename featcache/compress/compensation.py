"""Solve the weights of layers again for the inputs that a smaller network gives them: least squares, no training.

What a layer of the whole network answers is recorded at sampled positions of training images. Then, in one forward
pass of the smaller network, each layer's weights are solved for those answers when its own inputs arrive, written, and
the pass goes on: every layer is solved for what the layers before it, solved already, really give (He et al. 2017,
arXiv 1707.06168; Frantar and Alistarh 2022, arXiv 2208.11580).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

POSITIONS = 64  # of a feature map, per image
RIDGE = 1e-4  # pull toward the old weights, as a share of the inputs' mean square
_BATCH = 32

Layer = nn.Conv2d | nn.Linear
Run = Callable[[Tensor], object]


@dataclass(slots=True)
class Answers:
    """What one layer of the whole network gives for n images, at p sampled positions of each.

    `outputs`: (n·p, o) float32; `inputs`: (n·p, d), where they were recorded. `shape`: height and width of a feature
    map, (1, tokens) of a linear layer. `norm`: the name of the batch norm that reads the output, or None.
    """

    name: str
    shape: tuple[int, int] = (1, 1)
    norm: str | None = None
    outputs: Tensor = field(default_factory=lambda: torch.empty(0))
    inputs: Tensor = field(default_factory=lambda: torch.empty(0))


def is_product(module: nn.Module) -> bool:
    """Return whether `module` multiplies all its inputs with one matrix: a linear layer, a convolution of one group."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def record_answers(
    network: nn.Module, run: Run, images: Tensor, names: Sequence[str], *, inputs: bool = False
) -> dict[str, Answers]:
    """Return what each layer of `names` gives for `images`; with its `inputs` where asked for.

    `run` calls the network with images (n, 3, height, width) as they are given here.
    """
    modules = dict(network.named_modules())
    answers = {name: Answers(name) for name in names}
    outputs: dict[str, list[Tensor]] = {name: [] for name in names}
    arrived: dict[str, list[Tensor]] = {name: [] for name in names}
    made: dict[int, tuple[Tensor, str]] = {}  # the tensors are held, or their ids would be given again
    first = 0

    def after(name: str) -> Callable[..., None]:
        def hook(layer: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            answers[name].shape = _map_shape(layer, output)
            picked = _positions(name, answers[name].shape, first, len(output))
            outputs[name].append(_values_at(layer, output, picked))
            if inputs:
                arrived[name].append(inputs_at(layer, args[0], picked, answers[name].shape))
            made[id(output)] = (output, name)

        return hook

    def before_norm(norm: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            if id(args[0]) in made:
                answers[made[id(args[0])][1]].norm = norm

        return hook

    with ExitStack() as stack, torch.inference_mode():
        for name in names:
            stack.callback(modules[name].register_forward_hook(after(name)).remove)
        for name, module in modules.items():
            if isinstance(module, nn.BatchNorm2d):
                stack.callback(module.register_forward_pre_hook(before_norm(name)).remove)
        for first in range(0, len(images), _BATCH):
            run(images[first : first + _BATCH])
            made.clear()
    for name, answer in answers.items():
        answer.outputs = torch.cat(outputs[name])
        if inputs:
            answer.inputs = torch.cat(arrived[name])
    return answers


def compensate(
    network: nn.Module,
    run: Run,
    images: Tensor,
    answers: Sequence[Answers],
    *,
    ridge: float = RIDGE,
    solve: Callable[[str, Tensor, Moments], Tensor] | None = None,
) -> None:
    """Solve the layers of the smaller `network`, in place, for the `answers` of the whole one to the same `images`.

    All images go through at once, so that each layer is solved before its outputs are computed. A bias takes back the
    mean error, or the mean of the batch norm that follows, where the layer has none. `solve` gives the new weight
    (o, d) of a layer by its name, old weight and moments; default `solve_all`.
    """
    modules = dict(network.named_modules())
    choose = solve or (lambda name, weight, moments: solve_all(weight, moments, ridge=ridge))

    def before(answer: Answers) -> Callable[..., None]:
        def hook(layer: Any, args: tuple[Tensor, ...]) -> None:
            picked = _positions(answer.name, answer.shape, 0, len(args[0]))
            moments = Moments.of(
                inputs_at(layer, args[0], picked, answer.shape),
                answer.outputs,
                centred=layer.bias is not None or answer.norm is not None,
            )
            weight = choose(answer.name, layer.weight.detach().flatten(1), moments)
            shift = (moments.output_mean - weight.double() @ moments.input_mean).float()
            layer.weight.copy_(weight.view_as(layer.weight))
            if layer.bias is not None:
                layer.bias.copy_(shift)
            elif answer.norm is not None:
                statistics: Any = modules[answer.norm]
                statistics.running_mean.sub_(shift)

        return hook

    with ExitStack() as stack, torch.no_grad():
        for answer in answers:
            stack.callback(modules[answer.name].register_forward_pre_hook(before(answer)).remove)
        run(images)


@dataclass(frozen=True, slots=True)
class Moments:
    """Moments of a layer's inputs (d values at each position) and outputs (o values), all float64.

    `gram` (d, d), `cross` (d, o), `power` (o,): means of products of inputs, of inputs and outputs, of squared outputs;
    without the means `input_mean` (d,) and `output_mean` (o,), which are zero where a layer cannot shift its output.
    """

    gram: Tensor
    cross: Tensor
    power: Tensor
    input_mean: Tensor
    output_mean: Tensor

    @staticmethod
    def of(inputs: Tensor, outputs: Tensor, *, centred: bool) -> Moments:
        """Return the moments of `inputs` (n, d) and `outputs` (n, o)."""
        input_mean, output_mean = inputs.mean(dim=0), outputs.mean(dim=0)
        if not centred:
            input_mean, output_mean = torch.zeros_like(input_mean), torch.zeros_like(output_mean)
        inputs, outputs = inputs - input_mean, outputs - output_mean
        return Moments(
            (inputs.T @ inputs / len(inputs)).double(),
            (inputs.T @ outputs / len(inputs)).double(),
            outputs.square().mean(dim=0).double(),
            input_mean.double(),
            output_mean.double(),
        )

    def error(self, weight: Tensor) -> float:
        """Return the share of the outputs' power that `weight` (o, d) misses."""
        weight = weight.double()
        missed = self.power.sum() - 2 * (weight.T * self.cross).sum() + ((weight @ self.gram) * weight).sum()
        return float(missed.clamp(min=0) / self.power.sum().clamp(min=torch.finfo(torch.float64).tiny))


def solve_all(weight: Tensor, moments: Moments, *, ridge: float = RIDGE) -> Tensor:
    """Return the (o, d) weight that gives the outputs best in the mean square, `ridge` pulling it toward `weight`."""
    pull = ridge * moments.gram.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    left = moments.gram + pull * torch.eye(len(moments.gram), dtype=torch.float64)
    right = moments.cross + pull * weight.double().T
    return torch.cholesky_solve(right, torch.linalg.cholesky(left)).T.float()


def solve_kept(weight: Tensor, moments: Moments, kept: Tensor, *, ridge: float = RIDGE) -> Tensor:
    """Return the (o, d) weight that is zero but for the inputs `kept` (d,) bool, and solved for those."""
    solved = torch.zeros_like(weight)
    some = Moments(
        moments.gram[kept][:, kept], moments.cross[kept], moments.power, moments.input_mean[kept], moments.output_mean
    )
    solved[:, kept] = solve_all(weight[:, kept], some, ridge=ridge)
    return solved


def inputs_at(layer: Layer, arriving: Tensor, picked: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return (n·p, d): what `layer` multiplies for the positions `picked` (n, p) of its output of `shape`.

    For a convolution d runs over channels, rows and columns of the kernel, in the order of its weight.
    """
    if isinstance(layer, nn.Linear):
        return _values_at(layer, arriving, picked)
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


def _map_shape(layer: Layer, output: Tensor) -> tuple[int, int]:
    """Return height and width of a convolution's maps, or 1 and how many tokens a linear layer answers for an image."""
    if isinstance(layer, nn.Linear):
        return (1, output[0].numel() // output.shape[-1])
    return (output.shape[2], output.shape[3])


def _positions(name: str, shape: tuple[int, int], first: int, n: int) -> Tensor:
    """Return (n, p) flat positions of maps of `shape` for the images `first`, `first` + 1, …; the same every time."""
    places = shape[0] * shape[1]
    if places <= POSITIONS:
        return torch.arange(places).expand(n, places)
    rows = []
    for image in range(first, first + n):
        generator = torch.Generator().manual_seed(zlib.crc32(f"{name}:{image}".encode()))
        rows.append(torch.randperm(places, generator=generator)[:POSITIONS])
    return torch.stack(rows)


def _values_at(layer: Layer, values: Tensor, picked: Tensor) -> Tensor:
    """Return (n·p, channels) of what `layer` reads or gives, at the positions `picked` (n, p)."""
    linear = isinstance(layer, nn.Linear)
    flat = values.reshape(len(values), -1, values.shape[-1]) if linear else values.flatten(2).transpose(1, 2)
    return flat[torch.arange(len(flat)).unsqueeze(1), picked].flatten(0, 1).float()
