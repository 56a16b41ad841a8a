"""Remove channels from a network with Torch-Pruning (Fang et al. 2023), down to a given number of multiplications.

A group of channels that depend on each other goes as a whole. Groups are ranked over the whole network by the first
order change of the head's loss on training images (Molchanov et al. 2019). Measured on MobileNetV2 with a tenth of the
multiplications removed, after the head's refit: 2 points lost; 8 by the size of the weights, 13 by their size layer
by layer. Statistics of batch norm estimated anew made all of them worse.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from featcache.compress.dependencies import Probed, dependency_graph, example_images, flat_features
from featcache.compress.refitting import Source
from featcache.errors import InputError, MissingError
from featcache.images.batches import first_decoded
from featcache.model.merged import MergedModel, wrap_network

IMPORTANCE_IMAGES = 128
_BATCH = 16
_MOST_PER_LAYER = 0.9  # a layer emptied altogether would cut the network
# of channels that stay: runtimes compute channels in blocks of eight, and others are slower than none removed; finer
# ones only where a network's few wide groups allow no multiplications near enough to those asked for
_MULTIPLES = (8, 4, 2, 1)
_SEARCH_STEPS = 14
_NEAR_ENOUGH = 0.003
_UNCHANGED = 4  # tries in a row with the same result: whole channels allow no other

MACS_TOLERANCE = 0.02  # of the multiplications that shall be left


def remove_channels(source: Source, *, amount: float, macs: int) -> nn.Module:
    """Return a copy of the model's network without the channels that matter least.

    `amount`: the share of the exported graph's `macs` (multiply-accumulates per image) to remove; the nearest that
    whole channels allow is taken. Raises `InputError` where the network has no channels that can be removed, or not so
    many.
    """
    gradients = loss_gradients(source)
    model = source.model
    counted = _count(model.backbone.network, model)
    wanted = 1 - amount
    left, network = 1.0, model.backbone.network
    for multiple in _MULTIPLES:
        nearest = _search(model, gradients, multiple=multiple, wanted=wanted, macs=macs, counted=counted)
        if abs(nearest[0] - wanted) < abs(left - wanted) or left == 1:
            left, network = nearest
        if abs(left - wanted) <= MACS_TOLERANCE * wanted:
            return network.requires_grad_(False).eval()
    if left >= 1:
        raise InputError(f"channel pruning needs channels to remove, {model.recipe.model!r} has none that can go")
    if left > wanted:
        raise InputError(
            f"--amount must be at most {1 - left:.2f} for {model.recipe.model!r}, got {amount!r}: its features and "
            "its attention keep their widths"
        )
    raise InputError(
        f"--amount must be what whole channels of {model.recipe.model!r} come to, {amount!r} is not: nearest is "
        f"{1 - left:.3f}"
    )


def _search(
    model: MergedModel, gradients: dict[str, Tensor], *, multiple: int, wanted: float, macs: int, counted: int
) -> tuple[float, nn.Module]:
    """Return the share of multiplications left that is nearest to `wanted`, and the network that has it."""
    least, most = 0.0, _MOST_PER_LAYER
    best: tuple[float, nn.Module] | None = None
    before: float | None = None
    unchanged = 0
    for _ in tqdm(range(_SEARCH_STEPS), desc="prune", unit="try", disable=None):
        ratio = (least + most) / 2
        network = _pruned(model, gradients, ratio, multiple)
        # what no layer can be blamed for (attention's own products) is in the graph only, and does not change
        left = (_count(network, model) + macs - counted) / macs
        if best is None or abs(left - wanted) < abs(best[0] - wanted):
            best = (left, network)
        unchanged = unchanged + 1 if left == before else 0
        if abs(left - wanted) < _NEAR_ENOUGH or unchanged == _UNCHANGED:
            break
        before = left
        least, most = (ratio, most) if left > wanted else (least, ratio)
    assert best is not None
    return best


def loss_gradients(source: Source) -> dict[str, Tensor]:
    """Return the gradient of the head's loss on training images, for each parameter of the network by name.

    Raises `InputError` for a head without a gradient.
    """
    model = source.model
    pixels, targets = _training_batch(source)
    network = copy.deepcopy(model.backbone.network).requires_grad_(True)
    backbone = wrap_network(network, model.recipe, outputs=model.backbone.outputs)
    network.requires_grad_(True)  # a Backbone freezes what it wraps
    for start in range(0, len(pixels), _BATCH):
        images = model.normalise(pixels[start : start + _BATCH]).contiguous(memory_format=torch.channels_last)
        logits = model.head(flat_features(backbone, images))
        _loss(logits, targets[start : start + _BATCH], model.fitted_head.task).backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    if not any(bool(gradient.any()) for gradient in gradients.values()):
        raise InputError(
            f"channel pruning needs a head with a gradient, one of kind {model.fitted_head.kind!r} has none"
        )
    return gradients


def _training_batch(source: Source) -> tuple[Tensor, Tensor]:
    """Return the pixels (n, height, width, 3) uint8 and targets of training images, every class as often as can be."""
    cache = source.cache
    samples = cache.samples(source.dataset)
    selection = cache.select(split="train", dataset=source.dataset)
    rank: dict[int, int] = {}
    order = []
    for position in np.argsort([samples.digests[index].tobytes() for index in selection.indices], kind="stable"):
        label = int(samples.labels[selection.indices[position]])
        rank[label] = rank.get(label, -1) + 1
        order.append((rank[label], label, int(position)))
    positions = np.array([position for _, _, position in sorted(order)], dtype=np.int64)
    # the refit, which needs every image, says which ones are gone or have changed
    batch = first_decoded(
        samples.sources(selection.indices[positions]),
        source.model.preprocessing,
        count=IMPORTANCE_IMAGES,
        decoder=cache.recipe.decoder,
    )
    if not len(batch.indices):
        raise MissingError(
            f"training images must be read from {samples.root!r} to prune, none is there unchanged any more"
        )
    return torch.from_numpy(batch.pixels), torch.from_numpy(np.asarray(selection.labels[positions[batch.indices]]))


def _loss(logits: Tensor, targets: Tensor, task: str) -> Tensor:
    if task == "classification":
        return nn.functional.cross_entropy(logits, targets.long(), reduction="sum")
    if task == "multilabel":
        return nn.functional.binary_cross_entropy_with_logits(logits, targets.float(), reduction="sum")
    return nn.functional.mse_loss(logits, targets.float(), reduction="sum")


def _pruned(model: MergedModel, gradients: dict[str, Tensor], ratio: float, multiple: int) -> nn.Module:
    """Return a copy of the network without the share `ratio` of its removable channels, `multiple` by `multiple`."""
    import torch_pruning

    network = copy.deepcopy(model.backbone.network)
    probed = Probed(wrap_network(network, model.recipe, outputs=model.backbone.outputs), model.fitted_head.num_features)
    probed.requires_grad_(True).eval()
    for name, parameter in network.named_parameters():
        parameter.grad = gradients[name].clone() if name in gradients else None
    example = example_images(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch_pruning")
        graph = dependency_graph(probed, model)
        pruner: Any = torch_pruning.pruner.BasePruner(
            probed,
            example,
            importance=torch_pruning.importance.GroupTaylorImportance(),
            pruning_ratio=ratio,
            global_pruning=True,
            max_pruning_ratio=_MOST_PER_LAYER,
            round_to=multiple,
            ignored_layers=_kept_layers(torch_pruning, graph, probed),
        )
        pruner.step()
    for parameter in network.parameters():
        parameter.grad = None
    return network


def _kept_layers(torch_pruning: Any, graph: Any, probed: Probed) -> list[nn.Module]:
    """Return the layers whose output keeps its width: those that make the features, and attention."""
    group = graph.get_pruning_group(probed.probe, torch_pruning.prune_linear_in_channels, idxs=[0])
    kept = [dependency.target.module for dependency, _ in group if graph.is_out_channel_pruning_fn(dependency.handler)]
    for module in probed.modules():
        # heads are views of one projection: timm fixes their number and width when the block is made
        kept += [layer for name in ("qkv", "q", "k", "v", "proj") if (layer := _attention_layer(module, name))]
    return [probed.probe, *kept]


def _attention_layer(module: nn.Module, name: str) -> nn.Module | None:
    layer = getattr(module, name, None) if hasattr(module, "num_heads") else None
    return layer if isinstance(layer, nn.Module) else None


def _count(network: nn.Module, model: MergedModel) -> int:
    """Return the multiply-accumulates per image of the convolutions and linear layers of `network`."""
    total = 0

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += output[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            total += output[0].numel() * module.in_features

    handles = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    backbone = wrap_network(network, model.recipe, outputs=model.backbone.outputs)
    try:
        with torch.no_grad():
            backbone(example_images(model))
    finally:
        for handle in handles:
            handle.remove()
    return total
