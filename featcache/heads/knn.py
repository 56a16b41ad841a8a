"""The k-nearest-neighbours head: similar training images vote, weighted by similarity (Wu et al. 2018).

It keeps every training row, so it is for looking at a cache, not for a device: it has no module form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import numpy as np
import numpy.typing as npt

from featcache.errors import InputError
from featcache.heads.base import Floats, Head

BLOCK_ROWS = 1024
_FLOOR = 1e-6  # share of the vote a class without a voter is given, so that logits are finite


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NeighborsHead(Head):
    """The training rows themselves, centred and of length 1.

    `rows` (n, n_features) float16; `labels` (n,) int64; `center` (n_features,) float32. The `n_neighbors` rows with the
    largest cosine to an image vote with exp(sharpness · cosine); the logits are the logarithms of the shares, divided
    by `softness`. Ties go to the earlier row.
    """

    kind: ClassVar[str] = "knn"

    rows: npt.NDArray[np.float16]
    labels: npt.NDArray[np.int64]
    center: Floats
    n_neighbors: int = 20
    sharpness: float = 14.0
    softness: float = 1.0

    def __post_init__(self) -> None:
        self.check_common()
        if self.rows.ndim != 2 or self.labels.shape != (len(self.rows),) or self.center.shape != self.rows.shape[1:]:
            raise InputError(
                f"rows must be (n, d), labels (n,) and center (d,), got {self.rows.shape!r}, {self.labels.shape!r} and "
                f"{self.center.shape!r}"
            )
        if len(self.rows) and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise InputError(f"labels must be 0 to {len(self.classes) - 1}, got others")
        if not 1 <= self.n_neighbors <= len(self.rows):
            raise InputError(f"n_neighbors must be 1 to the {len(self.rows)} training rows, got {self.n_neighbors!r}")

    @property
    def num_features(self) -> int:
        """Length of a feature row."""
        return int(self.rows.shape[1])

    def predict_logits(self, features: npt.NDArray[Any]) -> Floats:
        """Return the logits (n, n_classes) float32 of raw features (n, n_features)."""
        matrix = self.checked(features)
        rows = self.rows.astype(np.float32)
        logits = np.empty((len(matrix), len(self.classes)), dtype=np.float32)
        for start in range(0, len(matrix), BLOCK_ROWS):
            block = unit_rows(matrix[start : start + BLOCK_ROWS], self.center)
            nearest, similarity = nearest_rows(block @ rows.T, self.n_neighbors)
            votes = np.exp(self.sharpness * (similarity - similarity[:, :1]))
            shares = np.zeros((len(block), len(self.classes)))
            at = np.repeat(np.arange(len(block)), self.n_neighbors)
            np.add.at(shares, (at, self.labels[nearest].ravel()), votes.ravel())
            shares /= shares.sum(axis=1, keepdims=True)
            logits[start : start + len(block)] = np.log(shares + _FLOOR) / self.softness
        return logits

    def to_module(self) -> NoReturn:
        """Raise `InputError`: this head cannot be merged or exported."""
        raise InputError(
            "a head to be merged or exported must be of kind 'linear', 'mlp' or 'prototype', got 'knn', which keeps "
            "every training row: train one of the others"
        )

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return ``rows``, ``labels`` and ``center``."""
        return {"rows": self.rows, "labels": self.labels, "center": self.center}

    def options(self) -> dict[str, Any]:
        """Return the number of neighbours, the sharpness and the softness."""
        return {"neighbors": self.n_neighbors, "sharpness": self.sharpness, "softness": self.softness}

    @classmethod
    def from_state(
        cls, arrays: Mapping[str, npt.NDArray[Any]], options: Mapping[str, Any], common: Mapping[str, Any]
    ) -> NeighborsHead:
        """Return the head with this state."""
        others = {name: value for name, value in options.items() if name != "neighbors"}
        return cls(
            rows=arrays["rows"],
            labels=arrays["labels"],
            center=arrays["center"],
            n_neighbors=options["neighbors"],
            **others,
            **common,
        )

    def with_temperature(self, temperature: float) -> NeighborsHead:
        """Return the head whose logits are these divided by `temperature`."""
        return dataclasses.replace(self, softness=self.softness * temperature)


def unit_rows(features: npt.NDArray[Any], center: Floats) -> Floats:
    """Return features (n, d) centred and divided by their length, float32."""
    z = features.astype(np.float32, copy=False) - center
    z /= np.maximum(np.sqrt((z * z).sum(axis=1, keepdims=True)), np.float32(1e-12))
    return np.asarray(z, dtype=np.float32)


def nearest_rows(similarity: Floats, n_neighbors: int) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return the columns (n, n_neighbors) of the largest similarities (n, m), largest first, and the similarities."""
    part = np.argpartition(-similarity, n_neighbors - 1, axis=1)[:, :n_neighbors]
    part.sort(axis=1)  # by row number, so that the stable sort below breaks ties the same way everywhere
    values = np.take_along_axis(similarity, part, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(part, order, axis=1), np.take_along_axis(values, order, axis=1)
