"""Peer: Torch-Pruning chooses the channels by its own importance, over the whole network; nothing is solved again.

Groups of channels that depend on each other go as a whole, the least important of all layers first, by the first order
change of the head's loss on training images (its `GroupTaylorImportance`, Molchanov et al. 2019), in multiples of eight
where that comes near enough to the multiplications asked for. The features keep their width, and so does attention.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import torch
import torch_pruning
from torch import Tensor, nn

from featcache.compression.channels import TOLERANCE, Narrowing
from featcache.compression.costs import count_macs
from featcache.compression.groups import ProbedBackbone, example_images, flat_features, layer_shapes
from featcache.compression.refitting import Source
from featcache.errors import InputError
from featcache.images.batches import first_decoded
from featcache.model.merged import MergedModel, wrap_network

IMPORTANCE_IMAGES = 128
_BATCH = 16
_MOST_PER_LAYER = 0.9  # a layer emptied altogether would cut the network
_MULTIPLES = (8, 4, 2, 1)
_SEARCH_STEPS = 14
_NEAR_ENOUGH = 0.003


def remove_channels(source: Source, *, amount: float, target: str, macs: int) -> Narrowing:
    """Return the model's network without the channels that Torch-Pruning finds least important.

    As `featcache.compression.channels.remove_channels`, for the target ``macs``. Raises `InputError` where so many
    multiplications cannot go.
    """
    assert target == "macs"
    model = source.model
    gradients = _loss_gradients(source)
    uncounted = macs - _count(model.backbone.network, model)  # in the graph only, and unchanged
    wanted = 1 - amount
    nearest: tuple[float, nn.Module] | None = None
    for multiple in _MULTIPLES:
        least, most = 0.0, _MOST_PER_LAYER
        for _ in range(_SEARCH_STEPS):
            ratio = (least + most) / 2
            network = _pruned(model, gradients, ratio, multiple)
            left = (_count(network, model) + uncounted) / macs
            if nearest is None or abs(left - wanted) < abs(nearest[0] - wanted):
                nearest = (left, network)
            if abs(left - wanted) < _NEAR_ENOUGH:
                break
            least, most = (ratio, most) if left > wanted else (least, ratio)
        assert nearest is not None
        if abs(nearest[0] - wanted) <= TOLERANCE * wanted:
            return Narrowing(nearest[1].requires_grad_(False).eval(), {}, float("nan"))
    raise InputError(f"Torch-Pruning comes no nearer to {wanted:.2f} of the multiplications than {nearest[0]:.3f}")


def _loss_gradients(source: Source) -> dict[str, Tensor]:
    """Return the gradient of the head's loss on training images, for each parameter of the network by name."""
    model = source.model
    pixels, targets = _training_batch(source)
    network = copy.deepcopy(model.backbone.network)
    backbone = wrap_network(network, model.recipe, outputs=model.backbone.outputs)
    network.requires_grad_(True)  # a Backbone freezes what it wraps
    for start in range(0, len(pixels), _BATCH):
        images = model.normalise(pixels[start : start + _BATCH]).contiguous(memory_format=torch.channels_last)
        logits = model.head(flat_features(backbone, images))
        nn.functional.cross_entropy(logits, targets[start : start + _BATCH].long(), reduction="sum").backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def _training_batch(source: Source) -> tuple[Tensor, Tensor]:
    """Return the pixels (n, height, width, 3) uint8 and labels of training images, every class as often as can be."""
    samples = source.cache.samples(source.dataset)
    selection = source.cache.select(split="train", dataset=source.dataset)
    rank: dict[int, int] = {}
    order = []
    for position in np.argsort([samples.digests[index].tobytes() for index in selection.indices], kind="stable"):
        label = int(samples.labels[selection.indices[position]])
        rank[label] = rank.get(label, -1) + 1
        order.append((rank[label], label, int(position)))
    positions = np.array([position for _, _, position in sorted(order)], dtype=np.int64)
    batch = first_decoded(
        samples.sources(selection.indices[positions]),
        source.model.preprocessing,
        count=IMPORTANCE_IMAGES,
        decoder=source.cache.recipe.decoder,
    )
    return torch.from_numpy(batch.pixels), torch.from_numpy(np.asarray(selection.labels[positions[batch.indices]]))


def _pruned(model: MergedModel, gradients: dict[str, Tensor], ratio: float, multiple: int) -> nn.Module:
    """Return a copy of the network without the share `ratio` of its removable channels, `multiple` by `multiple`."""
    network = copy.deepcopy(model.backbone.network)
    probed = ProbedBackbone(network, model).eval()
    probed.requires_grad_(True)
    for name, parameter in network.named_parameters():
        parameter.grad = gradients[name].clone() if name in gradients else None
    example = example_images(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch_pruning")
        graph = torch_pruning.DependencyGraph().build_dependency(probed, example_inputs=example)
        pruner: Any = torch_pruning.pruner.BasePruner(
            probed,
            example,
            importance=torch_pruning.importance.GroupTaylorImportance(),
            pruning_ratio=ratio,
            global_pruning=True,
            max_pruning_ratio=_MOST_PER_LAYER,
            round_to=multiple,
            ignored_layers=_kept_layers(graph, probed),
        )
        pruner.step()
    for parameter in network.parameters():
        parameter.grad = None
    return network


def _kept_layers(graph: Any, probed: ProbedBackbone) -> list[nn.Module]:
    """Return the layers whose output keeps its width: those that make the features, and attention."""
    group = graph.get_pruning_group(probed.probe, torch_pruning.prune_linear_in_channels, idxs=[0])
    kept = [dependency.target.module for dependency, _ in group if graph.is_out_channel_pruning_fn(dependency.handler)]
    for module in probed.modules():
        if hasattr(module, "num_heads"):  # heads are views of one projection: timm fixes their number and width
            layers = (getattr(module, name, None) for name in ("qkv", "q", "k", "v", "proj"))
            kept += [layer for layer in layers if isinstance(layer, nn.Module)]
    return [probed.probe, *kept]


def _count(network: nn.Module, model: MergedModel) -> int:
    """Return the multiply-accumulates per image of the layers of `network`."""
    whole = ProbedBackbone(copy.deepcopy(network), model).eval()
    return sum(count_macs(whole.network, layer_shapes(whole.network, whole, example_images(model))).values())
