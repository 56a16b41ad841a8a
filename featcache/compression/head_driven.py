"""Take out of a network the features that its head ignores, with the channels, norms and biases that make them.

A head with exact zeros (L1, group L1, ``keep_features``) says which features nobody needs. Their channels go where
nothing but the head reads them: then the logits stay what they were, no refit is needed, and the last convolution,
which is a fifth to a third of a MobileNet's parameters, shrinks with the features. Torch-Pruning's dependency graph
says which layers make a feature and who else reads it.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from featcache.compression.groups import ProbedBackbone, dependency_graph, example_images, flat_features
from featcache.errors import InputError, VerificationError
from featcache.heads import Head, LinearHead
from featcache.heads.agreement import SAME_ARITHMETIC, logit_tolerance
from featcache.model.merged import MergedModel, wrap_network

_CHECKED_IMAGES = 2


@dataclass(frozen=True, slots=True, eq=False)
class HeadDriven:
    """A network without the features its head ignores.

    `network`: the narrower one. `head`: the old one without their columns, not yet told of its new Recipe. `kept`: the
    old positions (n,) int64 of the features that stay. `staying`: how many the head ignores and stay all the same,
    `reason` why, None where all went. `difference`: the largest one between the logits of both. `seconds`: what the
    surgery took.
    """

    network: nn.Module
    head: LinearHead
    kept: npt.NDArray[np.int64]
    staying: int
    reason: str | None
    difference: float
    seconds: float


def remove_ignored_features(model: MergedModel) -> HeadDriven:
    """Return the network of `model` without the features that its head ignores, and the head of the others.

    Raises `InputError` where the head is not linear or reads every feature, and where none of those it ignores can go:
    they come out of a layer that mixes all channels, or other layers read them.
    """
    import torch_pruning

    started = time.perf_counter()
    head = model.fitted_head
    ignored = ignored_features(head)
    network = copy.deepcopy(model.backbone.network)
    probed = ProbedBackbone(network, model).eval()
    graph = dependency_graph(probed, example_images(model))
    going, reason = _removable(graph, probed, ignored.tolist())
    if not going:
        raise InputError(
            f"head-driven pruning needs features that nothing but the head depends on, {model.recipe.model!r} has none "
            f"among the {len(ignored)} ignored ones: {reason}; prune it with --method channel"
        )
    graph.get_pruning_group(probed.probe, torch_pruning.prune_linear_in_channels, idxs=going).prune()
    network.requires_grad_(False).eval()
    kept = np.setdiff1d(np.arange(head.num_features), going)
    assert isinstance(head, LinearHead)
    narrow = _narrow_head(head, kept)
    seconds = time.perf_counter() - started
    return HeadDriven(
        network, narrow, kept, len(ignored) - len(going), reason, _difference(model, network, narrow), seconds
    )


def ignored_features(head: Head) -> npt.NDArray[np.int64]:
    """Return the positions (n,) of the features that have no weight in any class of `head`.

    Raises `InputError` for a head that is not linear, and where there are none, or no others.
    """
    if not isinstance(head, LinearHead):
        raise InputError(
            f"head-driven pruning needs a linear head, which says what it ignores, this one is of kind {head.kind!r}"
        )
    ignored = np.flatnonzero(~np.any(head.weight != 0, axis=0))
    if not len(ignored):
        raise InputError(
            f"head-driven pruning needs a head that ignores features, this one reads all {head.num_features}: train it "
            "with --keep-features or --group-l1"
        )
    if len(ignored) == head.num_features:
        raise InputError("head-driven pruning needs a head that reads a feature, this one reads none: train it again")
    return ignored


def _removable(graph: Any, probed: ProbedBackbone, ignored: Sequence[int]) -> tuple[list[int], str | None]:
    """Return which of the features `ignored` can go, and why the others cannot."""
    import torch_pruning

    going = list(ignored)
    reason: str | None = None
    while going:
        group = graph.get_pruning_group(probed.probe, torch_pruning.prune_linear_in_channels, idxs=going)
        leaving, staying, last = frozenset(going), set[int](), set[int]()
        for item in group:
            target = item.dep.target.module
            made_with = list(zip(item.idxs, item.root_idxs, strict=True))
            if target is probed.probe:
                # a channel that makes several features goes only where the head ignores each of them
                found = {root for index, root in made_with if index not in leaving}
                obstacle: str | None = "they share channels with features that the head reads"
            else:
                obstacle = _obstacle(graph, item.dep)
                found = {root for _, root in made_with} if obstacle else set()
            if found:
                staying |= found
                reason = reason or obstacle
            elif target is not probed.probe and _width(target) == len(item.idxs):
                last.add(item.root_idxs[0])
        if not staying and last:  # not before: a layer may keep others anyway
            staying, reason = last, reason or "a layer keeps one channel at least"
        if not staying:
            return going, reason
        going = [index for index in going if index not in staying]
    return going, reason


def _obstacle(graph: Any, dependency: Any) -> str | None:
    """Return why the target of `dependency` cannot lose channels with the logits unchanged, None where it can."""
    target = dependency.target.module
    if isinstance(target, nn.Parameter):
        return None  # a gain or an offset for each channel
    if target not in graph._module2name:
        return None  # an operation without weights; those that mix channels are found by the logits
    name = graph._module2name[target].removeprefix("network.")
    if isinstance(target, nn.LayerNorm | nn.GroupNorm | nn.InstanceNorm2d):
        return f"they come out of {name!r}, a {type(target).__name__} that computes each one from all channels"
    reads = graph.is_in_channel_pruning_fn(dependency.handler)
    if reads and not graph.is_out_channel_pruning_fn(dependency.handler):
        return f"{name!r} reads them, too"
    if isinstance(target, nn.Conv2d):
        alone = target.groups == 1 or target.groups == target.in_channels == target.out_channels
        return None if alone else f"they come out of {name!r}, a convolution in groups"
    if isinstance(target, nn.Linear | nn.BatchNorm2d):
        return None
    return f"they come out of {name!r}, a {type(target).__name__}"


def _width(target: Any) -> int | None:
    """Return how many channels the layer `target` gives, None for anything else."""
    if isinstance(target, nn.Conv2d):
        return target.out_channels
    return target.out_features if isinstance(target, nn.Linear) else None


def _narrow_head(head: LinearHead, kept: npt.NDArray[np.int64]) -> LinearHead:
    """Return `head` without the columns that are not in `kept`, with the settings that train it again."""
    settings = dict(head.settings)
    if settings.pop("keep_features", None) is not None:
        used = int(np.any(head.weight != 0, axis=0).sum())
        if used < len(kept):
            settings["keep_features"] = (used + 0.5) / len(kept)  # a share that is rounded down to `used` features
    return dataclasses.replace(head, weight=np.ascontiguousarray(head.weight[:, kept]), settings=settings)


def _difference(model: MergedModel, network: nn.Module, head: LinearHead) -> float:
    """Return the largest difference of logits over noise; `VerificationError` where it is above the tolerance."""
    size = model.preprocessing
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (_CHECKED_IMAGES, size.height, size.width, 3), generator=generator)
    backbone = wrap_network(network, model.recipe, outputs=model.backbone.outputs)
    with torch.inference_mode():
        images = model.normalise(noise.to(torch.uint8))
        before = model.head(flat_features(model.backbone, images))
        after = head.to_module()(flat_features(backbone, images))
    difference = float((before - after).abs().max())
    limit = logit_tolerance(before.numpy(), SAME_ARITHMETIC)
    if not difference <= limit:
        raise VerificationError(
            f"head-driven pruning must keep the logits within {limit:.2g}, got a difference of {difference:.2g}: "
            f"features of {model.recipe.model!r} depend on each other in a way its layers do not show; prune it with "
            "--method channel"
        )
    return difference
