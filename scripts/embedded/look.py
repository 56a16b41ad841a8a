"""What a student is worth on photos it never saw, quickly: by this its training is chosen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from embedded.photos import Photos
from embedded.views import cut


@dataclass(frozen=True)
class Look:
    """`distance`: squared error of the teachers' features on val, 1 for a constant. `val`: share of val that the
    student's own classifier knows. `unseen`: share of photos of classes that training never saw that a linear map of
    its features knows."""

    distance: float
    val: float
    unseen: float


def features_of(network: nn.Module, photos: Photos, side: int) -> Tensor:
    """Return (n, width) features of whole photos at `side` pixels."""
    network.eval()
    whole = torch.tensor([[0.5, 0.5, 1.0, 1.0]])
    found = []
    with torch.inference_mode():
        for start in range(0, len(photos), 128):
            pixels = torch.from_numpy(photos.pixels[start : start + 128])
            images = cut(pixels, whole.expand(len(pixels), 4), side)
            found.append(network(images.contiguous(memory_format=torch.channels_last)))
    return torch.cat(found)


def ridge_accuracy(features: Tensor, labels: np.ndarray, *, share: float = 0.75, l2: float = 0.1) -> float:
    """Return the accuracy of a ridge regression onto the classes on the last quarter of each class's photos."""
    names, codes = np.unique(labels, return_inverse=True)
    position = np.concatenate([np.arange((codes == code).sum()) for code in range(len(names))])
    learned = torch.from_numpy(position < share * np.bincount(codes)[codes])
    wanted = functional.one_hot(torch.from_numpy(codes), len(names)).float() - 1 / len(names)
    alike = (features - features[learned].mean(0)) / features[learned].std(0).clamp_min(1e-4)
    x = alike[learned]
    weights = torch.linalg.solve(x.T @ x + l2 * len(x) * torch.eye(x.shape[1]), x.T @ wanted[learned])
    return float(((alike[~learned] @ weights).argmax(1) == torch.from_numpy(codes)[~learned]).float().mean())


def look(student: nn.Module, val: Photos, targets: list[Tensor], unseen: Photos, side: int) -> Look:
    """Return the figures of a student; `targets`: what the teachers give for the whole photos of `val`."""
    features = features_of(student.network, val, side)  # type: ignore[arg-type]
    with torch.inference_mode():
        errors = [
            functional.mse_loss(one(features), wanted) for one, wanted in zip(student.projections, targets, strict=True)
        ]  # type: ignore[arg-type]
        answered = student.classifier(features).argmax(1)  # type: ignore[operator]
    return Look(
        distance=float(torch.stack(errors).mean()),
        val=float((answered == torch.from_numpy(val.labels)).float().mean()),
        unseen=ridge_accuracy(features_of(student.network, unseen, side), unseen.labels),  # type: ignore[arg-type]
    )
