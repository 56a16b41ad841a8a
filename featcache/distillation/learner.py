"""What the loop trains: a network, and how its features are compared to the targets.

`Student` (`featcache.distillation.student`) begins at random and is joined to its targets by layers that are dropped
at the end; `FeatureLearner` is trained already and is to give the teacher's features themselves.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn


class Learner(nn.Module, abc.ABC):
    """A network and what joins it to its targets."""

    network: nn.Module

    @abc.abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Return the features (b, width) of normalised images (b, 3, height, width)."""

    @abc.abstractmethod
    def predict_targets(self, features: Tensor) -> list[Tensor]:
        """Return what each teacher's standardised features should be; empty where features are not learned."""

    @abc.abstractmethod
    def soft_logits(self, features: Tensor) -> Tensor | None:
        """Return the logits that soft labels are compared to; None where there are none."""

    @abc.abstractmethod
    def label_logits(self, features: Tensor) -> Tensor | None:
        """Return the logits over the images' own classes; None where labels are not learned."""


class FeatureLearner(Learner):
    """A trained network that is to give the teacher's features, and through the teacher's head its logits.

    The network stays in eval mode: norms keep their statistics and nothing is dropped, so that a step moves it from
    where it is and from nowhere else.

    Parameters
    ----------
    network
        Normalised images (b, 3, height, width) → features (b, width), or a tuple of outputs that are laid side by side.
    mean, scale
        (width,): the teacher's features are standardised as (features − mean) · scale.
    head
        The teacher's, features → logits; it is not trained. None: features alone are learned.
    soft, labels
        Whether its logits are compared to soft labels, to labels.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: npt.NDArray[np.float32],
        scale: npt.NDArray[np.float32],
        head: nn.Module | None = None,
        soft: bool = False,
        labels: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.from_numpy(mean.copy()), persistent=False)
        self.register_buffer("scale", torch.from_numpy(scale.copy()), persistent=False)
        self._head: Sequence[nn.Module] = () if head is None else (head,)  # no module of this one: it is not trained
        self._soft, self._labels = soft, labels

    def train(self, mode: bool = True) -> FeatureLearner:
        """Leave the network in eval mode."""
        return super().train(False)

    def embed(self, images: Tensor) -> Tensor:
        """Return the features (b, width) of normalised images (b, 3, height, width)."""
        outputs = self.network(images)
        if isinstance(outputs, Tensor):
            return outputs
        return torch.cat([output.flatten(1) for output in outputs], dim=1)

    def predict_targets(self, features: Tensor) -> list[Tensor]:
        """Return the features, standardised."""
        return [(features - self.mean) * self.scale]

    def soft_logits(self, features: Tensor) -> Tensor | None:
        """Return what the teacher's head says of the features."""
        return self._logits(features) if self._soft else None

    def label_logits(self, features: Tensor) -> Tensor | None:
        """Return what the teacher's head says of the features."""
        return self._logits(features) if self._labels else None

    def _logits(self, features: Tensor) -> Tensor:
        (head,) = self._head
        logits: Tensor = head.to(features.device)(features)
        return logits
