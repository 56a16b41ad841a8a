"""The multi-layer perceptron head: linear layers with ReLU between them. Only fitting it needs torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from featcache.errors import InputError
from featcache.heads.base import Floats, Head

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MlpHead(Head):
    """Layers applied one after another, max(0, ·) after each but the last.

    `weights`: one (out, in) float32 matrix per layer; `biases`: one (out,) float32 per layer. The first layer acts on
    raw cached features: their standardisation is folded into it.
    """

    kind: ClassVar[str] = "mlp"

    weights: tuple[Floats, ...]
    biases: tuple[Floats, ...]

    def __post_init__(self) -> None:
        self.check_common()
        widths = [weight.shape[0] for weight in self.weights]
        fits = (
            len(self.weights) == len(self.biases) >= 1
            and all(weight.ndim == 2 for weight in self.weights)
            and all(a == weight.shape[1] for a, weight in zip(widths, self.weights[1:], strict=False))
            and all(bias.shape == (width,) for bias, width in zip(self.biases, widths, strict=True))
            and widths[-1] == len(self.classes)
        )
        if not fits:
            shapes = [weight.shape for weight in self.weights]
            raise InputError(f"layers must fit together and end in {len(self.classes)} classes, got {shapes!r}")

    @property
    def num_features(self) -> int:
        """Length of a feature row."""
        return int(self.weights[0].shape[1])

    def predict_logits(self, features: npt.NDArray[Any]) -> Floats:
        """Return the logits (n, n_classes) float32 of raw features (n, n_features)."""
        hidden: npt.NDArray[Any] = self.checked(features)
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = hidden @ weight.T + bias
            if i < last:
                np.maximum(hidden, 0, out=hidden)
        return np.asarray(hidden, dtype=np.float32)

    def to_module(self) -> torch.nn.Module:
        """Return an ``nn.Sequential`` of ``nn.Linear`` and ``nn.ReLU`` with these weights, in eval mode."""
        import torch

        layers: list[torch.nn.Module] = []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
            with torch.no_grad():
                linear.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight)))
                linear.bias.copy_(torch.from_numpy(np.ascontiguousarray(bias)))
            layers += [linear, torch.nn.ReLU()]
        return torch.nn.Sequential(*layers[:-1]).eval()

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return ``weight0``, ``bias0``, ``weight1``, …"""
        named: dict[str, npt.NDArray[Any]] = {}
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            named[f"weight{i}"], named[f"bias{i}"] = weight, bias
        return named

    def options(self) -> dict[str, Any]:
        """Return the number of layers."""
        return {"layers": len(self.weights)}

    @classmethod
    def from_state(
        cls, arrays: Mapping[str, npt.NDArray[Any]], options: Mapping[str, Any], common: Mapping[str, Any]
    ) -> MlpHead:
        """Return the head with this state."""
        layers = range(options["layers"])
        weights = tuple(arrays[f"weight{i}"] for i in layers)
        return cls(weights=weights, biases=tuple(arrays[f"bias{i}"] for i in layers), **common)

    def with_temperature(self, temperature: float) -> MlpHead:
        """Return the head whose logits are these divided by `temperature`."""
        scale = np.float32(1.0 / temperature)
        return dataclasses.replace(
            self,
            weights=(*self.weights[:-1], self.weights[-1] * scale),
            biases=(*self.biases[:-1], self.biases[-1] * scale),
        )
