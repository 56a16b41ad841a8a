"""Remove channels from a network and solve the layers that read them again, without training.

    find_groups        which channels can go together, and who reads them
    sensitivity        what the features lose when one group alone is narrowed
    allocate           a width for each group: the least loss for the cost that may be left
    in one forward     at each reader, with what the network narrowed so far gives it: which channels go, and the
      pass             weights for the others that give the whole network's answers best
    narrowed           the channels are taken out of every layer

Torch-Pruning knows what hangs together; which channels go, and how the others take over, is decided here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from featcache.compression.allocation import allocate, convex_errors, widths_of
from featcache.compression.bounds import floor_share
from featcache.compression.compensation import compensate, moments_of, record_answers, write_weight
from featcache.compression.costs import LayerCost, NetworkCost, count_macs, count_parameters, groups_of_layers
from featcache.compression.groups import (
    ChannelGroup,
    ProbedBackbone,
    example_images,
    find_groups,
    flat_features,
    layer_shapes,
)
from featcache.compression.layers import Run
from featcache.compression.moments import Moments, solve_kept
from featcache.compression.narrowing import narrowed
from featcache.compression.probing import FeatureProbe
from featcache.compression.refitting import Source
from featcache.compression.selection import removal_order
from featcache.compression.timing import layer_times, share_of_time
from featcache.errors import InputError, MissingError
from featcache.images.batches import first_decoded
from featcache.model.merged import MergedModel, wrap_network
from featcache.system.memory import keep_freed_memory

Target = Literal["macs", "parameters", "latency"]

COMPENSATION_IMAGES = 1536
_PIXELS = 224 * 224  # of an image; larger ones are fewer, all go through the network at once
# of channels that stay: runtimes compute channels in blocks of sixteen or eight, and others are slower than none
# removed; finer ones only where a network's few wide groups allow nothing near enough to what is asked for
_MULTIPLES = (16, 8, 4, 2, 1)
_PROBED_SHARES = (0.7, 0.4)  # of a group, kept while the others are whole
_PROBE_IMAGES = 48
_HELD_IMAGES, _LEAST_STEP = 64, 8  # one in eight where there are few

TOLERANCE = 0.02  # of what shall be left
_TIME_TOLERANCE = 0.05  # of the whole time: what two measurements of the same network may differ by
_TIMED_TRIES = 4
_LEAST_TIME = 0.01


@dataclass(frozen=True, slots=True)
class Narrowing:
    """`network`: without the channels. `widths`: (before, after) of each group. `feature_error`: on other images.

    The error is the mean square of what the features moved by, as a share of their variance.
    """

    network: nn.Module
    widths: Mapping[str, tuple[int, int]]
    feature_error: float


def remove_channels(source: Source, *, amount: float, target: Target, macs: int) -> Narrowing:
    """Return the model's network without the channels that the others can best take over from.

    `amount`: the share of `target` to remove; the nearest that whole channels allow is taken. `macs`: of the exported
    graph. Raises `InputError` where the network has no channels that can be removed, or not so many.
    """
    model = source.model
    groups = find_groups(model)
    if not groups:
        raise InputError(f"channel pruning needs channels to remove, {model.recipe.model!r} has none that can go")
    keep_freed_memory()
    work = _Work(model, groups, training_images(source, COMPENSATION_IMAGES))
    cost = work.cost(target, macs)
    wanted = 1 - amount
    if target == "latency":
        return work.narrow(_widths_in_time(work, cost, wanted))
    best: tuple[float, dict[str, int]] | None = None
    least = 1.0
    for multiple in _MULTIPLES:
        left, widths = work.allocate(cost, wanted, multiple)
        least = min(least, left)
        if best is None or abs(left - wanted) < abs(best[0] - wanted):
            best = (left, widths)
        if abs(left - wanted) <= TOLERANCE * wanted:
            return work.narrow(widths)
    assert best is not None
    if least > wanted:
        raise InputError(
            f"--amount must be at most {floor_share(1 - least)} for {model.recipe.model!r}, got {amount!r}: its "
            "features and the sums between its blocks keep their widths"
        )
    raise InputError(
        f"--amount must be what whole channels of {model.recipe.model!r} come to, {amount!r} is not: nearest is "
        f"{1 - best[0]:.3f}"
    )


def _widths_in_time(work: _Work, cost: NetworkCost, wanted: float) -> dict[str, int]:
    """Return widths with which the whole network takes the share `wanted` of its time, by trying.

    Layers take longer or shorter beside each other than they were timed, so the network is timed as a whole, and the
    sum to reach is moved by what it is off. Raises `InputError` where all that can go is not enough.
    """
    aim = wanted
    tried: list[tuple[float, dict[str, int]]] = []
    for _ in range(_TIMED_TRIES):
        _, widths = work.allocate(cost, aim, _MULTIPLES[0])
        left = share_of_time(work.model, work.without_solving(widths))
        tried.append((left, widths))
        if abs(left - wanted) <= TOLERANCE * wanted:
            break
        aim = min(max(aim + wanted - left, _LEAST_TIME), (1 + wanted) / 2)
    fast = [one for one in tried if one[0] <= wanted + _TIME_TOLERANCE]
    if not fast:
        raise InputError(
            f"--amount must be at most {floor_share(1 - min(left for left, _ in tried))} of this network's latency "
            f"here, got {1 - wanted:g}: layers that keep their widths take the rest"
        )
    return max(fast, key=lambda one: one[0])[1]


class _Work:
    """A network to be narrowed, what it answers, and what narrowing each group alone costs its features."""

    def __init__(self, model: MergedModel, groups: Sequence[ChannelGroup], images: Tensor) -> None:
        self.model, self.groups = model, groups
        # errors are measured on images that nothing is solved for, spread over all: the last ones are of few classes
        step = max(_LEAST_STEP, len(images) // _HELD_IMAGES)
        chosen = torch.arange(len(images)) % step == step - 1
        self.images, self.held = (images[~chosen], images[chosen]) if chosen.any() else (images, images)
        self.network = copy.deepcopy(model.backbone.network).requires_grad_(False)
        self.shapes = layer_shapes(self.network, ProbedBackbone(self.network, model).eval(), example_images(model))
        self.macs = count_macs(self.network, self.shapes)
        readers = list(dict.fromkeys(name for group in groups for name in group.readers))
        self.answers = record_answers(
            self.network, features_of(self.model, self.network), self.images, readers, moments=True
        )
        modules: dict[str, Any] = dict(self.network.named_modules())
        self.weights = {name: modules[name].weight.detach().flatten(1) for name in readers}
        self.errors, self.orders = self._probe()

    def cost(self, target: Target, macs: int) -> NetworkCost:
        """Return what the network costs by its groups' widths; `macs`: of the exported graph."""
        of_layers = groups_of_layers(self.groups)
        if target == "latency":
            return layer_times(self.model, self.groups, of_layers)
        counts = self.macs if target == "macs" else count_parameters(self.network)
        layers = {name: LayerCost(count, of_layers[name]) for name, count in counts.items() if name in of_layers}
        total = (
            macs if target == "macs" else sum(counts.values()) + sum(p.numel() for p in self.model.head.parameters())
        )
        return NetworkCost(layers, self.groups, rest=total - sum(layer.cost for layer in layers.values()))

    def allocate(self, cost: NetworkCost, wanted: float, multiple: int) -> tuple[float, dict[str, int]]:
        """Return widths that leave at most the share `wanted` of `cost`, and the share that they leave."""
        choices = {group.name: widths_of(group.width, group.unit, multiple) for group in self.groups}
        errors = {name: convex_errors(kept, self.errors[name]) for name, kept in choices.items()}
        whole = cost({group.name: group.width for group in self.groups})
        share = wanted * whole
        widths = allocate(choices, errors, cost, target=share, least=(1 - TOLERANCE) * share)
        return cost(widths) / whole, widths

    def without_solving(self, widths: Mapping[str, int]) -> nn.Module:
        """Return the network with these widths, as fast as it will be and of no other use."""
        gone = {group.name: torch.arange(widths[group.name], group.width) for group in self.groups}
        return narrowed(self.model, self.network, gone, self.groups)

    def _probe(self) -> tuple[dict[str, dict[int, float]], dict[str, Tensor]]:
        """Return the features' error for some widths of each group, the others whole, and its channels' order."""
        run = features_of(self.model, self.network)
        modules: dict[str, Any] = dict(self.network.named_modules())
        readers = [name for group in self.groups for name in group.readers]
        probe = FeatureProbe(self.network, run, self.held[:_PROBE_IMAGES], readers)
        errors: dict[str, dict[int, float]] = {}
        orders: dict[str, Tensor] = {}
        for group in tqdm(self.groups, desc="probe", unit="group", disable=None):
            moments = {name: moments_of(self.answers[name]) for name in group.readers}
            widths = widths_of(group.width, group.unit, 1)
            probed = sorted({min(widths[1:], key=lambda w: abs(w - share * group.width)) for share in _PROBED_SHARES})
            removal = removal_order(
                {name: self.weights[name] for name in group.readers},
                moments, width=group.width, unit=group.unit, kept=[*probed, widths[-1]],
            )  # fmt: skip
            measured = {}
            for width in probed:
                undo = [
                    write_weight(modules, self.answers[name], weight, moments[name])
                    for name, weight in removal.weights[width].items()
                ]
                measured[width] = probe.error(group.readers)
                for restore in undo:
                    restore()
            errors[group.name] = _between(removal.errors, measured)
            orders[group.name] = removal.order
        return errors, orders

    def narrow(self, widths: Mapping[str, int]) -> Narrowing:
        """Return the network with these widths, its readers solved again."""
        network = copy.deepcopy(self.network)
        run = features_of(self.model, network)
        removed: dict[str, Tensor] = {}
        group_of = {name: group for group in self.groups for name in group.readers}

        def solve(name: str, weight: Tensor, moments: Moments) -> Tensor:
            group = group_of[name]
            if group.name not in removed:
                order = self.orders[group.name]
                if len(group.readers) == 1:  # what this layer really gets decides; several readers decided together
                    order = removal_order(
                        {name: weight}, {name: moments}, width=group.width, unit=group.unit, kept=[widths[group.name]]
                    ).order
                removed[group.name] = order[: group.width - widths[group.name]]
            kept = torch.ones(group.width, dtype=torch.bool)
            kept[removed[group.name]] = False
            inputs = kept.repeat_interleave(weight.shape[1] // group.width)
            # pulled toward what the whole network's own inputs make best, as far as held images say
            return solve_kept(solve_kept(weight, moments_of(self.answers[name]), inputs), moments, inputs)

        narrow = {name for name, group in group_of.items() if widths[group.name] < group.width}
        names = list(self.answers)  # in the order in which they run; before the first of `narrow` nothing changed
        answers = [self.answers[name] for name in names[min(map(names.index, narrow), default=len(names)) :]]
        compensate(network, run, self.images, answers, solve=solve)
        small = narrowed(self.model, network, removed, self.groups)
        exact = _features(features_of(self.model, self.network), self.held)
        left = _features(features_of(self.model, small), self.held)
        return Narrowing(small, {g.name: (g.width, widths[g.name]) for g in self.groups}, _relative_error(left, exact))


def _between(own: Mapping[int, float], measured: Mapping[int, float]) -> dict[int, float]:
    """Return the features' error for each width: as `measured`, and in proportion to the readers' `own` between."""
    points = sorted((own[width], error) for width, error in measured.items())
    x, y = [0.0, *(a for a, _ in points)], [0.0, *(b for _, b in points)]
    slope = (y[-1] / x[-1]) if x[-1] else 0.0
    return {
        width: float(np.interp(error, x, y)) if error <= x[-1] else y[-1] + slope * (error - x[-1])
        for width, error in own.items()
    }


def _features(run: Run, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([run(images[start : start + 32]) for start in range(0, len(images), 32)])


def _relative_error(features: Tensor, exact: Tensor) -> float:
    variance = (exact - exact.mean(dim=0)).square().mean()
    return float((features - exact).square().mean() / variance.clamp(min=torch.finfo(torch.float32).tiny))


def training_images(source: Source, count: int) -> Tensor:
    """Return up to `count` training images, (n, height, width, 3) uint8, classes evenly.

    Raises `MissingError` where none can be read any more.
    """
    cache = source.cache
    samples = cache.samples(source.dataset)
    samples.require_images()
    selection = cache.select(split="train", dataset=source.dataset, labelled=False)
    labels = samples.labels[selection.indices]
    rank: dict[int, int] = {}
    order = []
    for position in np.argsort([samples.digests[index].tobytes() for index in selection.indices], kind="stable"):
        label = int(labels[position]) if samples.task == "classification" else 0
        rank[label] = rank.get(label, -1) + 1
        order.append((rank[label], label, int(position)))
    positions = np.array([position for _, _, position in sorted(order)], dtype=np.int64)
    size = source.model.preprocessing
    largest = max(1, count * _PIXELS // max(_PIXELS, size.height * size.width))
    # the refit, which needs every image, says which ones are gone or have changed
    batch = first_decoded(
        samples.sources(selection.indices[positions]), size, count=largest, decoder=cache.recipe.decoder
    )
    if not len(batch.indices):
        raise MissingError(
            f"training images must be read from {samples.root!r} to prune, none is there unchanged any more"
        )
    return torch.from_numpy(batch.pixels)


def features_of(model: MergedModel, network: nn.Module) -> Run:
    """Return the function from images (n, height, width, 3) uint8 to the features that `network` gives in `model`."""
    backbone = wrap_network(network, model.recipe, outputs=model.backbone.outputs)

    def run(images: Tensor) -> Tensor:
        return flat_features(backbone, model.normalise(images).contiguous(memory_format=torch.channels_last))

    return run
