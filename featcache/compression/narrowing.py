"""Take channels out of a network: every layer that makes, carries or reads them becomes narrower."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from featcache.compression.groups import ChannelGroup, ProbedBackbone, dependency_graph, example_images
from featcache.model.merged import MergedModel


def narrowed(
    model: MergedModel, network: nn.Module, removed: Mapping[str, Tensor], groups: Sequence[ChannelGroup]
) -> nn.Module:
    """Return a copy of `network`, one of `model`'s layout, without the channels `removed` from each group by name."""
    network = copy.deepcopy(network)
    probed = ProbedBackbone(network, model).eval()
    graph = dependency_graph(probed, example_images(model))
    modules = dict(network.named_modules())
    for group in groups:
        gone = sorted(removed[group.name].tolist()) if group.name in removed else []
        if not gone:
            continue
        if group.attention is not None:
            _remove_heads(modules[group.attention], gone)
            continue
        maker = modules[group.name]
        prune = graph.get_pruner_of_module(maker).prune_out_channels
        graph.get_pruning_group(maker, prune, idxs=gone).prune()
    return network.requires_grad_(False).eval()


def _remove_heads(attention: Any, gone: Sequence[int]) -> None:
    """Take the channels `gone`, whole heads, out of timm's attention: rows of q, k and v, columns of the projection."""
    width = attention.attn_dim
    kept = torch.tensor([channel for channel in range(width) if channel not in set(gone)])
    rows = torch.cat([kept, kept + width, kept + 2 * width])
    _take_rows(attention.qkv, rows)
    projection = attention.proj
    projection.weight = nn.Parameter(projection.weight[:, kept].clone(), requires_grad=False)
    projection.in_features = len(kept)
    attention.num_heads, attention.attn_dim = len(kept) // attention.head_dim, len(kept)


def _take_rows(layer: nn.Linear, rows: Tensor) -> None:
    layer.weight = nn.Parameter(layer.weight[rows].clone(), requires_grad=False)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias[rows].clone(), requires_grad=False)
    layer.out_features = len(rows)
