"""The linear head: logits = weight · features + bias, standardisation already folded in."""

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
class LinearHead(Head):
    """One weight row and one bias per class, acting on raw cached features.

    Parameters
    ----------
    weight : ndarray of shape (n_classes, n_features), float32
        A zero of a sparse fit is a zero here.
    bias : ndarray of shape (n_classes,), float32
    **common
        The fields of `Head`: `classes` and others.

    Raises
    ------
    InputError
        For shapes that do not fit the classes, NaN and infinity.

    Examples
    --------
    >>> import numpy as np
    >>> from featcache.heads import LinearHead
    >>> weight = np.array([[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]], dtype=np.float32)
    >>> head = LinearHead(classes=("cat", "dog"), weight=weight, bias=np.zeros(2, dtype=np.float32))
    >>> head.predict_logits(np.array([[3.0, 1.0, 1.0]]))
    array([[2., 2.]], dtype=float32)
    """

    kind: ClassVar[str] = "linear"

    weight: Floats
    bias: Floats

    def __post_init__(self) -> None:
        self.check_common()
        shape = (len(self.classes), self.weight.shape[-1])
        if self.weight.shape != shape or self.bias.shape != shape[:1]:
            raise InputError(
                f"a linear head of {shape[0]} classes must have weight ({shape[0]}, n_features) and bias "
                f"({shape[0]},), got {self.weight.shape!r} and {self.bias.shape!r}"
            )
        if not (np.isfinite(self.weight).all() and np.isfinite(self.bias).all()):
            raise InputError("weight and bias must be finite, got NaN or infinity")

    @property
    def num_features(self) -> int:
        """Length of a feature row."""
        return int(self.weight.shape[1])

    def predict_logits(self, features: npt.NDArray[Any]) -> Floats:
        """Return the logits (n, n_classes) float32 of raw features (n, n_features)."""
        return np.asarray(self.checked(features) @ self.weight.T + self.bias, dtype=np.float32)

    def to_module(self) -> torch.nn.Module:
        """Return an ``nn.Linear`` with these weights, in eval mode."""
        import torch

        module = torch.nn.Linear(self.num_features, len(self.classes))
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(np.ascontiguousarray(self.weight)))
            module.bias.copy_(torch.from_numpy(np.ascontiguousarray(self.bias)))
        return module.eval()

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return ``weight`` and ``bias``."""
        return {"weight": self.weight, "bias": self.bias}

    def options(self) -> dict[str, Any]:
        """Return nothing: the arrays are the whole state."""
        return {}

    @classmethod
    def from_state(
        cls, arrays: Mapping[str, npt.NDArray[Any]], options: Mapping[str, Any], common: Mapping[str, Any]
    ) -> LinearHead:
        """Return the head with this state."""
        return cls(weight=arrays["weight"], bias=arrays["bias"], **options, **common)

    def with_temperature(self, temperature: float) -> LinearHead:
        """Return the head whose logits are these divided by `temperature`; the class order does not change."""
        scale = np.float32(1.0 / temperature)
        return dataclasses.replace(self, weight=self.weight * scale, bias=self.bias * scale)
