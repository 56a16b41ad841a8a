"""Solve the weights of layers again for the inputs that a smaller network gives them: least squares, no training.

What a layer of the whole network answers is recorded at sampled positions of training images. Then, in one forward
pass of the smaller network, each layer's weights are solved for those answers when its own inputs arrive, written, and
the pass goes on: every layer is solved for what the layers before it, solved already, really give (He et al. 2017,
arXiv 1707.06168; Frantar and Alistarh 2022, arXiv 2208.11580).
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

POSITIONS = 64  # of a feature map, per image
_MOST_ROWS = 40_000  # of a layer, over all images
RIDGE = 1e-4  # pull toward the old weights, as a share of the inputs' mean square
_BATCH = 32

Layer = nn.Conv2d | nn.Linear
Run = Callable[[Tensor], Any]


@dataclass(slots=True)
class Answers:
    """What one layer of the whole network gives for n images, at p sampled positions of each.

    `outputs`: (n·p, o) float32. `shape`: height and width of a feature map, (1, tokens) of a linear layer. `norm`: the
    name of the batch norm that reads the output, or None. `moments`: of inputs and outputs, where they were asked for.
    """

    name: str
    shape: tuple[int, int] = (1, 1)
    norm: str | None = None
    outputs: Tensor = field(default_factory=lambda: torch.empty(0))
    moments: Moments | None = None


def is_product(module: nn.Module) -> bool:
    """Return whether `module` multiplies all its inputs with one matrix: a linear layer, a convolution of one group."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def record_answers(
    network: nn.Module, run: Run, images: Tensor, names: Sequence[str], *, moments: bool = False
) -> dict[str, Answers]:
    """Return what each layer of `names` gives for `images`; with the `moments` of inputs and outputs where asked for.

    `run` calls the network with a batch of the images as they are given here, whatever their form.
    """
    modules: dict[str, Any] = dict(network.named_modules())
    answers = {name: Answers(name) for name in names}
    outputs: dict[str, list[Tensor]] = {name: [] for name in names}
    sums = {name: _MomentsSum() for name in names}
    made: dict[int, tuple[Tensor, str]] = {}  # the tensors are held, or their ids would be given again
    first = 0

    def after(name: str) -> Callable[..., None]:
        def hook(layer: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            answers[name].shape = _map_shape(layer, output)
            picked = _positions(name, answers[name].shape, range(first, first + len(output)), len(images))
            values = _values_at(layer, output, picked)
            outputs[name].append(values)
            if moments:
                sums[name].add(inputs_at(layer, args[0], picked, answers[name].shape), values)
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
        for first in tqdm(range(0, len(images), _BATCH), desc="record", unit="batch", disable=None):
            run(images[first : first + _BATCH])
            made.clear()
    for name, answer in answers.items():
        answer.outputs = torch.cat(outputs[name])
        if moments:
            answer.moments = sums[name].result(centred=modules[name].bias is not None or answer.norm is not None)
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

    A bias takes back the mean error, or the mean of the batch norm that follows, where the layer has none. `solve`
    gives the new weight (o, d) of a layer by its name, old weight and moments; default `solve_all`.
    """
    modules: dict[str, Any] = dict(network.named_modules())
    choose = solve or (lambda name, weight, moments: solve_all(weight, moments, ridge=ridge))
    starts = range(0, len(images), _BATCH)
    gate = _Gate(len(starts))

    def before(answer: Answers) -> Callable[..., None]:
        sums = _MomentsSum()
        rows = _rows_per_image(answer.shape, len(images))

        def take_in(layer: Any, arrived: Sequence[Tensor]) -> None:
            for start, inputs in zip(starts, arrived, strict=True):
                sums.add(inputs, answer.outputs[start * rows : start * rows + len(inputs)])
            moments = sums.result(centred=layer.bias is not None or answer.norm is not None)
            weight = choose(answer.name, layer.weight.detach().flatten(1), moments)
            write_weight(modules, answer, weight, moments)

        def hook(layer: Any, args: tuple[Tensor, ...]) -> None:
            start = starts[gate.number]
            picked = _positions(answer.name, answer.shape, range(start, start + len(args[0])), len(images))
            inputs = inputs_at(layer, args[0], picked, answer.shape)
            gate.arrive(inputs, lambda arrived: take_in(layer, arrived))

        return hook

    with ExitStack() as stack:
        for answer in answers:
            stack.callback(modules[answer.name].register_forward_pre_hook(before(answer)).remove)
        gate.run([partial(run, images[start : start + _BATCH]) for start in starts], steps=len(answers))


def write_weight(modules: Mapping[str, Any], answer: Answers, weight: Tensor, moments: Moments) -> Callable[[], None]:
    """Give the layer of `answer` this `weight` (o, d) and the shift that belongs to it; return what takes both back."""
    layer = modules[answer.name]
    places = [layer.weight]
    values = [weight.view_as(layer.weight)]
    shift = (moments.output_mean - weight.double() @ moments.input_mean).float()
    if layer.bias is not None:
        places.append(layer.bias)
        values.append(shift)
    elif answer.norm is not None:
        places.append(modules[answer.norm].running_mean)
        values.append(places[-1] - shift)
    before = [place.detach().clone() for place in places]

    def restore() -> None:
        with torch.no_grad():
            for place, value in zip(places, before, strict=True):
                place.copy_(value)

    with torch.no_grad():
        for place, value in zip(places, values, strict=True):
            place.copy_(value)
    return restore


class _Gate:
    """Batches that go through one network side by side and wait for each other at every layer that is solved.

    Only what a batch holds while it waits is in memory, and one of them computes at a time.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._condition = threading.Condition()
        self._arrived: dict[int, Tensor] = {}
        self._opened = 0
        self._failed = False
        self._local = threading.local()

    @property
    def number(self) -> int:
        """Which batch the calling thread is."""
        return int(self._local.number)

    def run(self, batches: Sequence[Callable[[], object]], *, steps: int) -> None:
        """Run all batches, with `steps` gates on their way."""
        with (
            tqdm(total=steps, desc="solve", unit="layer", disable=None) as self._bar,
            ThreadPoolExecutor(self._count) as pool,
        ):
            for done in [pool.submit(self._one, number, batch) for number, batch in enumerate(batches)]:
                done.result()

    def _one(self, number: int, batch: Callable[[], object]) -> None:
        self._local.number = number
        with self._condition, torch.no_grad():
            try:
                batch()
            except BaseException:
                self._failed = True  # nobody waits for who does not come
                self._condition.notify_all()
                raise

    def arrive(self, inputs: Tensor, take_in: Callable[[Sequence[Tensor]], None]) -> None:
        """Wait until all batches are here; the last one to come calls `take_in` with what each brought, in order."""
        self._arrived[self.number] = inputs
        if len(self._arrived) == self._count:
            arrived, self._arrived = self._arrived, {}
            take_in([arrived[number] for number in range(self._count)])
            self._opened += 1
            self._bar.update(1)
            self._condition.notify_all()
        else:
            here = self._opened
            self._condition.wait_for(lambda: self._opened > here or self._failed)
            if self._opened == here:
                raise RuntimeError("a batch must come to every layer that is solved, another one failed before")


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
        sums = _MomentsSum()
        sums.add(inputs, outputs)
        return sums.result(centred=centred)

    def error(self, weight: Tensor) -> float:
        """Return the share of the outputs' power that `weight` (o, d) misses."""
        weight = weight.double()
        missed = self.power.sum() - 2 * (weight.T * self.cross).sum() + ((weight @ self.gram) * weight).sum()
        return float(missed.clamp(min=0) / self.power.sum().clamp(min=torch.finfo(torch.float64).tiny))


class _MomentsSum:
    """Adds up `Moments` over batches: products in float32 around the first batch's mean, sums in float64."""

    def __init__(self) -> None:
        self._count = 0
        self._origin: tuple[Tensor, Tensor] | None = None
        self._sums: list[Tensor] = []

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        """Take `inputs` (n, d) and `outputs` (n, o), float32."""
        if self._origin is None:
            self._origin = (inputs.mean(dim=0), outputs.mean(dim=0))
        inputs, outputs = inputs - self._origin[0], outputs - self._origin[1]
        parts = [inputs.T @ inputs, inputs.T @ outputs, outputs.square().sum(dim=0), inputs.sum(0), outputs.sum(0)]
        added = [part.double() for part in parts]
        self._sums = added if not self._sums else [a.add_(b) for a, b in zip(self._sums, added, strict=True)]
        self._count += len(inputs)

    def result(self, *, centred: bool) -> Moments:
        """Return the moments of everything added; `centred`: without the means."""
        assert self._origin is not None
        x, y = (origin.double() for origin in self._origin)
        gram, cross, power, dx, dy = (total / self._count for total in self._sums)
        gram, cross, power = gram - torch.outer(dx, dx), cross - torch.outer(dx, dy), power - dy.square()
        x, y = x + dx, y + dy
        if centred:
            return Moments(gram, cross, power, x, y)
        return Moments(
            gram + torch.outer(x, x), cross + torch.outer(x, y), power + y.square(), x.new_zeros(len(x)),
            y.new_zeros(len(y)),
        )  # fmt: skip


def moments_of(answer: Answers) -> Moments:
    """Return the moments that were recorded with `answer`."""
    assert answer.moments is not None, "record_answers(…, moments=True) records them"
    return answer.moments


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


def _rows_per_image(shape: tuple[int, int], n: int) -> int:
    """Return how many positions of maps of `shape` are taken from each of n images."""
    return min(shape[0] * shape[1], POSITIONS, max(1, _MOST_ROWS // n))


def _positions(name: str, shape: tuple[int, int], images: Sequence[int], n: int) -> Tensor:
    """Return (len(images), p) flat positions of maps of `shape` for these of n images; the same every time."""
    places, count = shape[0] * shape[1], _rows_per_image(shape, n)
    if places == count:
        return torch.arange(places).expand(len(images), places)
    rows = []
    for image in images:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{name}:{image}".encode()))
        rows.append(torch.randperm(places, generator=generator)[:count])
    return torch.stack(rows)


def _values_at(layer: Layer, values: Tensor, picked: Tensor) -> Tensor:
    """Return (n·p, channels) of what `layer` reads or gives, at the positions `picked` (n, p)."""
    linear = isinstance(layer, nn.Linear)
    flat = values.reshape(len(values), -1, values.shape[-1]) if linear else values.flatten(2).transpose(1, 2)
    return flat[torch.arange(len(flat)).unsqueeze(1), picked].flatten(0, 1).float()
