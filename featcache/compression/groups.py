"""Which channels of a network can go together, who makes, carries and reads them, and what they cost.

Torch-Pruning's dependency graph (Fang et al. 2023) says what hangs together. A group is taken where one layer makes the
channels and only products read them, so that what is lost can be solved for in the readers: the inner channels of
residual blocks, of a transformer's MLP, and its attention heads. The residual stream itself and the features stay.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featcache.compression.layers import is_product
from featcache.model.merged import MergedModel, wrap_network

_NORMS = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Channels that go together.

    `name`: of the layer that makes them. `width`: how many there are. `unit`: how many go at a time (the size of an
    attention head, else 1). `readers`: the layers that multiply them. `outs`, `ins`: all layers whose output, whose
    input they are. `attention`: the module whose heads they are, or None.
    """

    name: str
    width: int
    unit: int
    readers: tuple[str, ...]
    outs: tuple[str, ...]
    ins: tuple[str, ...]
    attention: str | None = None


class ProbedBackbone(nn.Module):
    """A network as the model's backbone, with one linear layer behind it that shows where the features end."""

    def __init__(self, network: nn.Module, model: MergedModel) -> None:
        super().__init__()
        self.network = network
        self.backbone = wrap_network(network, model.recipe, outputs=model.backbone.outputs)
        self.probe = nn.Linear(model.fitted_head.num_features, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return one number per image of normalised `images` (n, 3, height, width)."""
        result: Tensor = self.probe(flat_features(self.backbone, images))
        return result


def flat_features(backbone: nn.Module, images: Tensor) -> Tensor:
    """Return the outputs of `backbone` side by side, (n, num_features)."""
    return torch.cat([output.flatten(1) for output in backbone(images)], dim=1)


def example_images(model: MergedModel) -> Tensor:
    """Return seeded noise (1, 3, height, width) of the model's size."""
    size = model.preprocessing
    return torch.randn(1, 3, size.height, size.width, generator=torch.Generator().manual_seed(0))


def dependency_graph(probed: ProbedBackbone, example: Tensor) -> Any:
    """Return Torch-Pruning's graph of what hangs together in `probed`."""
    import torch_pruning

    probed.requires_grad_(True)  # it follows gradients: a frozen layer would be missing
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch_pruning")
        graph = torch_pruning.DependencyGraph().build_dependency(probed, example_inputs=example)
    probed.requires_grad_(False)
    return graph


def find_groups(model: MergedModel) -> tuple[ChannelGroup, ...]:
    """Return the groups of the model's network, in the order of its modules; empty where nothing can go."""
    network = copy.deepcopy(model.backbone.network)
    probed = ProbedBackbone(network, model).eval()
    example = example_images(model)
    graph = dependency_graph(probed, example)
    names = {id(module): name for name, module in network.named_modules()}
    shapes = _map_sizes(network, probed, example)
    groups = []
    for name, module in network.named_modules():
        if _is_attention(module):
            groups.append(_heads(name, module))
        elif is_product(module):
            group = _group(graph, name, module, names, shapes)
            if group is not None:
                groups.append(group)
    return tuple(groups)


def _is_attention(module: nn.Module) -> bool:
    """Return whether `module` is timm's plain attention, which runs with any number of heads."""
    return (
        all(hasattr(module, name) for name in ("num_heads", "head_dim", "attn_dim"))
        and isinstance(getattr(module, "qkv", None), nn.Linear)
        and isinstance(getattr(module, "proj", None), nn.Linear)
        and getattr(module, "gate", None) is None
        and isinstance(getattr(module, "norm", None), nn.Identity)
    )


def _heads(name: str, module: Any) -> ChannelGroup:
    qkv, proj = f"{name}.qkv", f"{name}.proj"
    return ChannelGroup(qkv, module.attn_dim, module.head_dim, (proj,), (qkv,), (proj,), attention=name)


def _group(
    graph: Any, name: str, maker: nn.Module, names: Mapping[int, str], shapes: Mapping[str, int]
) -> ChannelGroup | None:
    """Return the group that `maker` makes, or None where others make it too, or something else than products reads."""
    layer: Any = maker
    width = int(layer.out_features if isinstance(maker, nn.Linear) else layer.out_channels)
    prune = graph.get_pruner_of_module(maker).prune_out_channels
    readers: list[str] = []
    outs: list[str] = []
    seen: set[tuple[int, bool]] = set()
    for dependency, indices in graph.get_pruning_group(maker, prune, idxs=list(range(width))):
        module = dependency.target.module
        out = bool(graph.is_out_channel_pruning_fn(dependency.handler))
        if (id(module), out) in seen:
            return None  # read twice, at two places: a concatenation
        if type(module).__name__.startswith("_") or isinstance(module, nn.Parameter):
            if isinstance(module, nn.Parameter):
                return None
            continue  # an operation without weights
        seen.add((id(module), out))
        other = names.get(id(module))
        if other is None or sorted(indices) != list(range(width)):
            return None
        if isinstance(module, _NORMS):
            outs.append(other)
        elif is_product(module) and not out:
            readers.append(other)
        elif is_product(module):
            # a gate, one number per channel for the whole map, is carried along; another map that is added is not
            if other != name and not (shapes[other] == 1 < shapes[name]):
                return None
            outs.append(other)
        elif isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels == width:
            outs.append(other)
        else:
            return None
    return ChannelGroup(name, width, 1, tuple(readers), tuple(outs), tuple(readers)) if readers else None


def _map_sizes(network: nn.Module, probed: nn.Module, example: Tensor) -> dict[str, int]:
    """Return how many places the output of each convolution and linear layer has."""
    return {
        name: math.prod(shape[2:]) if len(shape) == 4 else math.prod(shape[1:-1])
        for name, shape in layer_shapes(network, probed, example).items()
    }


def layer_shapes(network: nn.Module, whole: nn.Module, example: Tensor) -> dict[str, tuple[int, ...]]:
    """Return the output's shape of each convolution and linear layer of `network` that `whole` runs for `example`."""
    shapes: dict[str, tuple[int, ...]] = {}

    def hook(name: str) -> Any:
        def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
            shapes[name] = tuple(output.shape)

        return note

    layers = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [module.register_forward_hook(hook(name)) for name, module in layers]
    try:
        with torch.inference_mode():
            whole(example)
    finally:
        for handle in handles:
            handle.remove()
    return shapes
