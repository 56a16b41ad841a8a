"""Which layers of a network depend on each other's channels, up to the features: Torch-Pruning's graph of a model."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from featcache.model.merged import MergedModel


class Probed(nn.Module):
    """The backbone with one linear layer behind it, which shows Torch-Pruning where the features end."""

    def __init__(self, backbone: nn.Module, num_features: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.probe = nn.Linear(num_features, 1)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.probe(flat_features(self.backbone, images))
        return result


def flat_features(backbone: nn.Module, images: Tensor) -> Tensor:
    """Return what the head reads, (N, num_features), of normalised `images` (N, 3, height, width)."""
    return torch.cat([output.flatten(1) for output in backbone(images)], dim=1)


def dependency_graph(probed: Probed, model: MergedModel) -> Any:
    """Return Torch-Pruning's graph of which layers of `probed` depend on each other's channels."""
    import torch_pruning

    probed.requires_grad_(True).eval()  # it follows autograd
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch_pruning")
        return torch_pruning.DependencyGraph().build_dependency(probed, example_inputs=example_images(model))


def example_images(model: MergedModel) -> Tensor:
    """Return one normalised image (1, 3, height, width) of noise for the network of `model`."""
    size = model.preprocessing
    return torch.randn(1, 3, size.height, size.width, generator=torch.Generator().manual_seed(0))
