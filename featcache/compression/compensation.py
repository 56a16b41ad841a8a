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
from tqdm import tqdm

from featcache.compression.layers import Run, inputs_at, map_shape, values_at
from featcache.compression.moments import RIDGE, Check, Moments, MomentsSum, solve_all
from featcache.compression.shortcuts import Shortcut, find_shortcuts

POSITIONS = 64  # of a feature map, per image
_MOST_ROWS = 40_000  # of a layer, over all images
# images that a layer is solved for: those that say something about each of its inputs, or positions of few images alone
# would decide; early layers have few inputs and large maps, of which fewer are held at once
_LEAST_IMAGES, _IMAGES_PER_INPUT = 256, 4
_HELD_SHARE = 8  # one batch in so many, for that
_BATCH = 32


@dataclass(slots=True)
class Answers:
    """What one layer of the whole network gives for n images, at p sampled positions of each.

    `outputs`: (n·p, o) float32. `shape`: height and width of a feature map, (1, tokens) of a linear layer. `norm`: the
    name of the batch norm that reads the output, or None. `count`: n, of all images the first. `shortcut`: what the
    output is added to, or None, and `shortcuts` (n·p, o) what that was. `moments`: of inputs and outputs, where they
    were asked for.
    """

    name: str
    shape: tuple[int, int] = (1, 1)
    norm: str | None = None
    count: int = 0
    outputs: Tensor = field(default_factory=lambda: torch.empty(0))
    shortcut: Shortcut | None = None
    shortcuts: Tensor = field(default_factory=lambda: torch.empty(0))
    moments: Moments | None = None


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
    for name, shortcut in find_shortcuts(network, run, images[:2], names).items():
        answers[name].shortcut = shortcut
    outputs: dict[str, list[Tensor]] = {name: [] for name in names}
    shortcuts: dict[str, list[Tensor]] = {name: [] for name in names}
    passed: dict[str, Tensor] = {}
    sums = {name: MomentsSum() for name in names}
    made: dict[int, tuple[Tensor, str]] = {}  # the tensors are held, or their ids would be given again
    first = 0

    def after(name: str) -> Callable[..., None]:
        def hook(layer: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            if first >= answers[name].count:
                return
            answers[name].shape = map_shape(layer, output)
            picked = _positions(answers[name], range(first, first + len(output)))
            values = values_at(layer, output, picked)
            outputs[name].append(values)
            if (shortcut := answers[name].shortcut) is not None:
                shortcuts[name].append(values_at(layer, passed[shortcut.reader], picked))
            if moments:
                sums[name].add(inputs_at(layer, args[0], picked, answers[name].shape), values)
            made[id(output)] = (output, name)

        return hook

    def before_norm(norm: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            if id(args[0]) in made:
                answers[made[id(args[0])][1]].norm = norm

        return hook

    def before_shortcut(reader: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            passed[reader] = args[0]

        return hook

    with ExitStack() as stack, torch.inference_mode():
        for reader in {answer.shortcut.reader for answer in answers.values() if answer.shortcut is not None}:
            stack.callback(modules[reader].register_forward_pre_hook(before_shortcut(reader)).remove)
        for name in names:
            stack.callback(modules[name].register_forward_hook(after(name)).remove)
        for name, module in modules.items():
            if isinstance(module, nn.BatchNorm2d):
                stack.callback(module.register_forward_pre_hook(before_norm(name)).remove)
        for first in tqdm(range(0, most, _BATCH), desc="record", unit="batch", disable=None):
            run(images[first : min(first + _BATCH, most)])
            made.clear()
            passed.clear()
    for name, answer in answers.items():
        answer.outputs = torch.cat(outputs[name])
        if answer.shortcut is not None:
            answer.shortcuts = torch.cat(shortcuts[name])
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
    passed: dict[tuple[int, str], Tensor] = {}
    last = {answer.shortcut.reader: answer.name for answer in answers if answer.shortcut is not None}

    def before_shortcut(reader: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            passed[gate.number, reader] = args[0]

        return hook

    def before(answer: Answers) -> Callable[..., None]:
        rows = _rows_per_image(answer)

        def take_in(layer: Any, arrived: Sequence[tuple[Tensor, Tensor | None]]) -> None:
            centred = layer.bias is not None or answer.norm is not None
            fit, held, means = MomentsSum(), MomentsSum(), MomentsSum()
            for number, (inputs, shortcut) in enumerate(arrived):
                taken = slice(starts[number] * rows, starts[number] * rows + len(inputs))
                outputs = answer.outputs[taken]
                if answer.shortcut is not None and shortcut is not None:
                    outputs = outputs + answer.shortcut.correction(answer.shortcuts[taken], shortcut)
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
            shortcut = None
            if answer.shortcut is not None:
                take = passed.pop if last[answer.shortcut.reader] == answer.name else passed.__getitem__
                shortcut = values_at(layer, take((gate.number, answer.shortcut.reader)), picked)
            gate.arrive((inputs, shortcut), lambda arrived: take_in(layer, arrived))

        return hook

    with ExitStack() as stack:
        for reader in last:
            stack.callback(modules[reader].register_forward_pre_hook(before_shortcut(reader)).remove)
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
        self._arrived: dict[int, Any] = {}
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

    def arrive(self, brought: Any, take_in: Callable[[Sequence[Any]], None]) -> None:
        """Wait until all batches are here; the last one to come calls `take_in` with what each brought, in order."""
        count = self._counts[self._opened]
        self._arrived[self.number] = brought
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


def moments_of(answer: Answers) -> Moments:
    """Return the moments that were recorded with `answer`."""
    assert answer.moments is not None, "record_answers(…, moments=True) records them"
    return answer.moments


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
