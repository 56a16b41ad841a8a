"""The prototype head: one mean per class; an image belongs to the nearest, by distance or by angle.

``euclidean`` is the nearest class mean of standardised features, ``cosine`` the angle to the class means of centred
features (SimpleShot's CL2N, Wang et al. 2019). Nothing is solved, so it is the head of choice for a few images a class.
"""

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

METRICS = ("cosine", "euclidean")
_EPSILON = np.float32(1e-12)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrototypeHead(Head):
    """One prototype per class in the space of z = (x − center) · scale.

    `prototypes` (n_classes, n_features), `center` (n_features,), `scale` (n_features,), all float32. With ``cosine``
    the prototypes have length 1 and the logits are sharpness · cos(z, prototype); with ``euclidean`` they are
    sharpness · (z·prototype − |prototype|²/2), which orders the classes as −|z − prototype|² does.
    """

    kind: ClassVar[str] = "prototype"

    prototypes: Floats
    center: Floats
    scale: Floats
    metric: str = "cosine"
    sharpness: float = 1.0

    def __post_init__(self) -> None:
        self.check_common()
        width = self.prototypes.shape[-1]
        if self.prototypes.shape != (len(self.classes), width) or self.center.shape != (width,):
            raise InputError(
                f"prototypes must have shape ({len(self.classes)}, n_features) and center (n_features,), got "
                f"{self.prototypes.shape!r} and {self.center.shape!r}"
            )
        if self.metric not in METRICS:
            raise InputError(f"metric must be one of {METRICS!r}, got {self.metric!r}")
        if self.scale.shape != (width,) or not self.sharpness > 0:
            raise InputError(f"scale must have shape ({width},) and sharpness be above 0, got {self.sharpness!r}")

    @property
    def num_features(self) -> int:
        """Length of a feature row."""
        return int(self.prototypes.shape[1])

    def predict_logits(self, features: npt.NDArray[Any]) -> Floats:
        """Return the logits (n, n_classes) float32 of raw features (n, n_features)."""
        z = (self.checked(features) - self.center) * self.scale
        if self.metric == "cosine":
            z = z / np.maximum(np.sqrt((z * z).sum(axis=1, keepdims=True)), _EPSILON)
        weight, bias = self._linear()
        return np.asarray(z @ weight.T + bias, dtype=np.float32)

    def _linear(self) -> tuple[Floats, Floats]:
        """Return weight (k, d) and bias (k,) acting on z (of length 1 with ``cosine``)."""
        sharpness = np.float32(self.sharpness)
        weight = self.prototypes * sharpness
        if self.metric == "cosine":
            return weight, np.zeros(len(self.classes), dtype=np.float32)
        return weight, np.asarray(-0.5 * sharpness * (self.prototypes**2).sum(axis=1), dtype=np.float32)

    def to_module(self) -> torch.nn.Module:
        """Return a module: one linear layer for ``euclidean``, with a normalisation before it for ``cosine``."""
        import torch

        weight, bias = self._linear()
        folded = weight * self.scale
        linear = torch.nn.Linear(self.num_features, len(self.classes))
        if self.metric == "cosine":
            folded, shift = weight, bias
        else:
            shift = np.asarray(bias - folded @ self.center, dtype=np.float32)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(np.ascontiguousarray(folded)))
            linear.bias.copy_(torch.from_numpy(np.ascontiguousarray(shift)))
        if self.metric == "euclidean":
            return linear.eval()
        from featcache.heads.modules import Standardise, UnitLength

        return torch.nn.Sequential(Standardise(self.center, self.scale), UnitLength(), linear).eval()

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return ``prototypes``, ``center`` and ``scale``."""
        return {"prototypes": self.prototypes, "center": self.center, "scale": self.scale}

    def options(self) -> dict[str, Any]:
        """Return the metric and the sharpness."""
        return {"metric": self.metric, "sharpness": self.sharpness}

    @classmethod
    def from_state(
        cls, arrays: Mapping[str, npt.NDArray[Any]], options: Mapping[str, Any], common: Mapping[str, Any]
    ) -> PrototypeHead:
        """Return the head with this state."""
        return cls(prototypes=arrays["prototypes"], center=arrays["center"], scale=arrays["scale"], **options, **common)

    def with_temperature(self, temperature: float) -> PrototypeHead:
        """Return the head whose logits are these divided by `temperature`."""
        return dataclasses.replace(self, sharpness=self.sharpness / temperature)


def fit_prototypes(
    features: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    *,
    n_classes: int,
    metric: str,
    weights: npt.NDArray[Any] | None = None,
) -> dict[str, Any]:
    """Return prototypes, center, scale and metric for features (n, d) and labels (n,), each class having a row.

    `weights` (n,): a row of weight w counts as w equal rows. Raises `InputError` for an unknown metric.
    """
    if metric not in METRICS:
        raise InputError(f"metric must be one of {METRICS!r}, got {metric!r}")
    shares = np.ones(len(features)) if weights is None else np.asarray(weights, dtype=np.float64)
    shares = shares / shares.sum()
    center = (shares @ features).astype(np.float32)
    scale = np.ones_like(center)
    if metric == "euclidean":
        std = np.sqrt(shares @ (features.astype(np.float64) - center) ** 2)
        scale = np.where(std > 0, 1.0 / np.where(std > 0, std, 1.0), 0.0).astype(np.float32)
    z = (features.astype(np.float32, copy=False) - center) * scale
    if metric == "cosine":
        z /= np.maximum(np.sqrt((z * z).sum(axis=1, keepdims=True)), _EPSILON)
    membership = np.zeros((n_classes, len(z)), dtype=np.float32)
    membership[labels, np.arange(len(z))] = shares
    membership /= membership.sum(axis=1, keepdims=True)
    prototypes = membership @ z
    if metric == "cosine":
        prototypes /= np.maximum(np.sqrt((prototypes**2).sum(axis=1, keepdims=True)), _EPSILON)
    return {"prototypes": prototypes, "center": center, "scale": scale, "metric": metric}
