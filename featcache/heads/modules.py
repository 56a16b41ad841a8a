"""The few torch modules that heads need besides torch's own; read only by ``to_module``."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """(x − center) · scale, per feature."""

    center: Tensor
    scale: Tensor

    def __init__(self, center: npt.NDArray[np.float32], scale: npt.NDArray[np.float32]) -> None:
        super().__init__()
        self.register_buffer("center", torch.from_numpy(np.array(center, dtype=np.float32)))
        self.register_buffer("scale", torch.from_numpy(np.array(scale, dtype=np.float32)))

    def forward(self, features: Tensor) -> Tensor:
        """Return features (n, d) standardised."""
        return (features - self.center) * self.scale


class UnitLength(nn.Module):
    """Each row divided by its Euclidean length; a zero row stays zero."""

    def forward(self, features: Tensor) -> Tensor:
        """Return features (n, d) with rows of length 1."""
        length = (features * features).sum(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
        return features / length
