"""What a student is to give for a view: the teachers' features, made alike in scale, and soft labels from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Scale:
    """A linear map of a teacher's features to targets: (features - mean) @ matrix, of unit variance on average."""

    mean: Tensor
    matrix: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) @ self.matrix


def standardised(features: Tensor) -> Scale:
    """Return the map to zero mean and unit variance of each feature of `features`, (n, d) float32."""
    return Scale(features.mean(0), torch.diag(1 / features.std(0).clamp_min(1e-4)))


def whitened(features: Tensor, width: int, *, power: float = 0.5) -> Scale:
    """Return the map to the `width` leading principal components, each divided by its deviation to the `power`.

    1 whitens, 0 leaves the components' own scale; the result has unit variance on average.
    """
    mean = features.mean(0)
    deviation = features.std(0).clamp_min(1e-4)
    alike = (features - mean) / deviation
    values, vectors = torch.linalg.eigh(alike.T @ alike / len(alike))
    values, vectors = values.flip(0)[:width].clamp_min(1e-6), vectors.flip(1)[:, :width]
    scales = values.sqrt() ** (1 - power)
    scales = scales / scales.square().mean().sqrt()
    return Scale(mean, (vectors / deviation[:, None]) * (scales / values.sqrt()))


def soft_head(
    features: Sequence[Tensor], labels: Tensor, classes: int, *, steps: int = 1500, seed: int = 0
) -> nn.Linear:
    """Return a linear classifier on the teachers' targets side by side, by AdamW on shuffled batches of 512.

    `features`: one (n, d) float32 for each teacher. Its answers are the soft labels; it is no part of the student.
    """
    draw = torch.Generator().manual_seed(seed)
    head = nn.Linear(sum(one.shape[1] for one in features), classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    for _ in range(steps):
        chosen = torch.randint(len(labels), (512,), generator=draw)
        loss = functional.cross_entropy(
            head(torch.cat([one[chosen] for one in features], 1)), labels[chosen], label_smoothing=0.1
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return head.requires_grad_(False)


def relations(features: Tensor) -> Tensor:
    """Return (b, b - 1) distances between the rows of a batch in units of their mean (Park et al. 2019, 1904.05068)."""
    distances = torch.cdist(features, features)
    apart = distances[~torch.eye(len(features), dtype=torch.bool, device=features.device)].view(len(features), -1)
    return apart / apart.mean()


def as_tensor(table: np.ndarray) -> Tensor:
    """Return a table of kept answers as float32."""
    return torch.from_numpy(np.array(table, dtype=np.float32))
