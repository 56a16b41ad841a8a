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
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from featcache.compression.factor import cholesky

POSITIONS = 64  # of a feature map, per image
_MOST_ROWS = 40_000  # of a layer, over all images
# images that a layer is solved for: those that say something about each of its inputs, or positions of few images alone
# would decide; early layers have few inputs and large maps, of which fewer are held at once
_LEAST_IMAGES, _IMAGES_PER_INPUT = 256, 4
RIDGE = 1e-4  # pull toward the old weights, as a share of the inputs' mean square
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # tried where there are images to try them on
_HELD_SHARE = 8  # one batch in so many, for that
_BATCH = 32

Layer = nn.Conv2d | nn.Linear
Run = Callable[[Tensor], Any]


@dataclass(slots=True)
class Answers:
    """What one layer of the whole network gives for n images, at p sampled positions of each.

    `outputs`: (n·p, o) float32. `shape`: height and width of a feature map, (1, tokens) of a linear layer. `norm`: the
    name of the batch norm that reads the output, or None. `count`: n, of all images the first. `moments`: of inputs and
    outputs, where they were asked for.
    """

    name: str
    shape: tuple[int, int] = (1, 1)
    norm: str | None = None
    count: int = 0
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
    answers = {name: Answers(name) for name in _in_order(modules, run, images[:1], names)}
    most = 0
    for name, answer in answers.items():
        wanted = max(_LEAST_IMAGES, _IMAGES_PER_INPUT * modules[name].weight[0].numel())
        most = answer.count = min(len(images), max(most, -(-wanted // _BATCH) * _BATCH))
    outputs: dict[str, list[Tensor]] = {name: [] for name in names}
    sums = {name: _MomentsSum() for name in names}
    made: dict[int, tuple[Tensor, str]] = {}  # the tensors are held, or their ids would be given again
    first = 0

    def after(name: str) -> Callable[..., None]:
        def hook(layer: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            if first >= answers[name].count:
                return
            answers[name].shape = _map_shape(layer, output)
            picked = _positions(answers[name], range(first, first + len(output)))
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
        for first in tqdm(range(0, most, _BATCH), desc="record", unit="batch", disable=None):
            run(images[first : min(first + _BATCH, most)])
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
    starts = range(0, max(answer.count for answer in answers), _BATCH)
    gate = _Gate([-(-answer.count // _BATCH) for answer in answers])

    def before(answer: Answers) -> Callable[..., None]:
        rows = _rows_per_image(answer)

        def take_in(layer: Any, arrived: Sequence[Tensor]) -> None:
            centred = layer.bias is not None or answer.norm is not None
            fit, held, means = _MomentsSum(), _MomentsSum(), _MomentsSum()
            for number, inputs in enumerate(arrived):
                outputs = answer.outputs[starts[number] * rows : starts[number] * rows + len(inputs)]
                if number % _HELD_SHARE == _HELD_SHARE - 1:
                    held.add(inputs, outputs)
                    means.add(_image_means(inputs, rows), _image_means(outputs, rows))
                else:
                    fit.add(inputs, outputs)
            moments = fit.result(centred=centred)
            if held.count:
                check = Check(moments, (held.result(centred=centred), means.result(centred=centred)))
                moments = replace(fit.merged(held).result(centred=centred), check=check)
            weight = choose(answer.name, layer.weight.detach().flatten(1), moments)
            write_weight(modules, answer, weight, moments)

        def hook(layer: Any, args: tuple[Tensor, ...]) -> None:
            start = starts[gate.number]
            if start >= answer.count:
                return
            picked = _positions(answer, range(start, start + len(args[0])))
            inputs = inputs_at(layer, args[0], picked, answer.shape)
            gate.arrive(inputs, lambda arrived: take_in(layer, arrived))

        return hook

    with ExitStack() as stack:
        for answer in answers:
            stack.callback(modules[answer.name].register_forward_pre_hook(before(answer)).remove)
        gate.run([partial(run, images[start : start + _BATCH]) for start in starts])


def _in_order(modules: Mapping[str, Any], run: Run, image: Tensor, names: Sequence[str]) -> list[str]:
    """Return `names` in the order in which the layers run."""
    order: list[str] = []
    with ExitStack() as stack, torch.inference_mode():
        for name in names:
            stack.callback(modules[name].register_forward_pre_hook(lambda *_, name=name: order.append(name)).remove)
        run(image)
    return list(dict.fromkeys(order))


def _image_means(rows: Tensor, each: int) -> Tensor:
    """Return (n, d), the means over an image's `each` positions, of (n · each, d)."""
    return rows.view(-1, each, rows.shape[1]).mean(dim=1)


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

    def __init__(self, counts: Sequence[int]) -> None:
        """`counts`: for each gate, how many batches come to it, the first ones; never fewer than to the gate before."""
        self._counts = counts
        self._condition = threading.Condition()
        self._arrived: dict[int, Tensor] = {}
        self._opened = 0
        self._failed = False
        self._local = threading.local()

    @property
    def number(self) -> int:
        """Which batch the calling thread is."""
        return int(self._local.number)

    def run(self, batches: Sequence[Callable[[], object]]) -> None:
        """Run all batches through the gates."""
        with (
            tqdm(total=len(self._counts), desc="solve", unit="layer", disable=None) as self._bar,
            ThreadPoolExecutor(len(batches)) as pool,
        ):
            for done in [pool.submit(self._one, number, batch) for number, batch in enumerate(batches)]:
                done.result()

    def _one(self, number: int, batch: Callable[[], object]) -> None:
        self._local.number = number
        first = next(index for index, count in enumerate(self._counts) if number < count)
        with self._condition, torch.no_grad():
            try:
                self._wait(first)  # until the layers that are solved without it are
                batch()
            except BaseException:
                self._failed = True  # nobody waits for who does not come
                self._condition.notify_all()
                raise

    def arrive(self, inputs: Tensor, take_in: Callable[[Sequence[Tensor]], None]) -> None:
        """Wait until all batches are here; the last one to come calls `take_in` with what each brought, in order."""
        count = self._counts[self._opened]
        self._arrived[self.number] = inputs
        if len(self._arrived) < count:
            self._wait(self._opened + 1)
            return
        arrived, self._arrived = self._arrived, {}
        take_in([arrived[number] for number in range(count)])
        self._opened += 1
        self._bar.update(1)
        self._condition.notify_all()

    def _wait(self, opened: int) -> None:
        """Wait until so many gates have opened."""
        self._condition.wait_for(lambda: self._opened >= opened or self._failed)
        if self._opened < opened:
            raise RuntimeError("a batch must come to every layer that is solved, another one failed before")


@dataclass(frozen=True, slots=True)
class Check:
    """What a pull toward the old weights is chosen by: `fit`, moments of some images, and those `held` back.

    `held`: of each position, and of the means over an image's positions: what differs from image to image alone is seen
    in as many samples as there are images, and is what pooled features are made of.
    """

    fit: Moments
    held: tuple[Moments, ...]


@dataclass(frozen=True, slots=True)
class Moments:
    """Moments of a layer's inputs (d values at each position) and outputs (o values), all float64.

    `gram` (d, d), `cross` (d, o), `power` (o,): means of products of inputs, of inputs and outputs, of squared outputs;
    without the means `input_mean` (d,) and `output_mean` (o,), which are zero where a layer cannot shift its output.
    `check`: what there is to choose a pull by.
    """

    gram: Tensor
    cross: Tensor
    power: Tensor
    input_mean: Tensor
    output_mean: Tensor
    check: Check | None = None

    @staticmethod
    def of(inputs: Tensor, outputs: Tensor, *, centred: bool) -> Moments:
        """Return the moments of `inputs` (n, d) and `outputs` (n, o)."""
        sums = _MomentsSum()
        sums.add(inputs, outputs)
        return sums.result(centred=centred)

    def of_inputs(self, kept: Tensor) -> Moments:
        """Return the moments of the inputs `kept` (d,) bool alone."""
        check = self.check
        if check is not None:
            check = Check(check.fit.of_inputs(kept), tuple(one.of_inputs(kept) for one in check.held))
        gram, cross = self.gram[kept][:, kept], self.cross[kept]
        return Moments(gram, cross, self.power, self.input_mean[kept], self.output_mean, check)

    def error(self, weight: Tensor) -> float:
        """Return the share of the outputs' power that `weight` (o, d) misses."""
        weight = weight.double()
        missed = self.power.sum() - 2 * (weight.T * self.cross).sum() + ((weight @ self.gram) * weight).sum()
        return float(missed.clamp(min=0) / self.power.sum().clamp(min=torch.finfo(torch.float64).tiny))


class _MomentsSum:
    """Adds up `Moments` over batches: products in float32 around the first batch's mean, sums in float64."""

    def __init__(self) -> None:
        self.count = 0
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
        self.count += len(inputs)

    def merged(self, other: _MomentsSum) -> _MomentsSum:
        """Return the sums of both."""
        assert self._origin is not None
        assert other._origin is not None
        both = _MomentsSum()
        both.count, both._origin = self.count + other.count, self._origin
        n = other.count
        gram, cross, power, dx, dy = other._sums
        x, y = ((theirs - ours).double() for theirs, ours in zip(other._origin, self._origin, strict=True))
        moved = [
            gram + torch.outer(dx, x) + torch.outer(x, dx) + n * torch.outer(x, x),
            cross + torch.outer(dx, y) + torch.outer(x, dy) + n * torch.outer(x, y),
            power + 2 * y * dy + n * y.square(),
            dx + n * x,
            dy + n * y,
        ]
        both._sums = [a + b for a, b in zip(self._sums, moved, strict=True)]
        return both

    def result(self, *, centred: bool) -> Moments:
        """Return the moments of everything added; `centred`: without the means."""
        assert self._origin is not None
        x, y = (origin.double() for origin in self._origin)
        gram, cross, power, dx, dy = (total / self.count for total in self._sums)
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
    """Return the (o, d) weight that gives the outputs best in the mean square, pulled toward `weight`.

    By `ridge`, or, where the moments have something to choose by, by the one of `RIDGES` that errs least there.
    """
    if moments.check is not None:
        fit, held = moments.check.fit, moments.check.held
        tried = {one: _solved(weight, fit, one) for one in RIDGES}
        ridge = min(tried, key=lambda one: sum(part.error(tried[one]) for part in held))
    return _solved(weight, moments, ridge)


def _solved(weight: Tensor, moments: Moments, ridge: float) -> Tensor:
    pull = ridge * moments.gram.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    left = moments.gram + pull * torch.eye(len(moments.gram), dtype=torch.float64)
    right = moments.cross + pull * weight.double().T
    return torch.cholesky_solve(right, cholesky(left)).T.float()


def solve_kept(weight: Tensor, moments: Moments, kept: Tensor, *, ridge: float = RIDGE) -> Tensor:
    """Return the (o, d) weight that is zero but for the inputs `kept` (d,) bool, solved for those as by `solve_all`."""
    solved = torch.zeros_like(weight)
    solved[:, kept] = solve_all(weight[:, kept], moments.of_inputs(kept), ridge=ridge)
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


def _rows_per_image(answer: Answers) -> int:
    """Return how many positions of a layer's maps are taken from each image."""
    return min(answer.shape[0] * answer.shape[1], POSITIONS, max(1, _MOST_ROWS // answer.count))


def _positions(answer: Answers, images: Sequence[int]) -> Tensor:
    """Return (len(images), p) flat positions of a layer's maps for these images; the same every time."""
    places, count = answer.shape[0] * answer.shape[1], _rows_per_image(answer)
    if places == count:
        return torch.arange(places).expand(len(images), places)
    rows = []
    for image in images:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{answer.name}:{image}".encode()))
        rows.append(torch.randperm(places, generator=generator)[:count])
    return torch.stack(rows)


def _values_at(layer: Layer, values: Tensor, picked: Tensor) -> Tensor:
    """Return (n·p, channels) of what `layer` reads or gives, at the positions `picked` (n, p)."""
    linear = isinstance(layer, nn.Linear)
    flat = values.reshape(len(values), -1, values.shape[-1]) if linear else values.flatten(2).transpose(1, 2)
    return flat[torch.arange(len(flat)).unsqueeze(1), picked].flatten(0, 1).float()
