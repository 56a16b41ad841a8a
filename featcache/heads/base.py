"""The `Head` interface: from a feature row to logits, with arrays and JSON values as its whole state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from featcache.errors import InputError
from featcache.heads.calibration import Calibration
from featcache.heads.unknown import UnknownRule

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]

TASKS = ("classification", "multilabel", "regression")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Head(ABC):
    """What every kind of head is: a frozen value that turns raw cached features into logits.

    A kind of one's own derives from this and is registered by `featcache.heads.register_head`;
    `featcache.testing.heads.HeadContract` says whether it keeps every promise.

    Parameters
    ----------
    classes : tuple of str
        Class names in the order of the logits; for regression, the names of the targets.
    task : {"classification", "multilabel", "regression"}
        Softmax, a sigmoid per class, or logits that are the values themselves.
    columns : tuple of str
        The cache columns whose rows, side by side, are the features.
    fingerprint : str, optional
        That of the Recipe of the cache the head was trained on.
    settings : mapping
        With which ``train_head`` makes this head again from other features.
    calibration : Calibration, optional
        The temperature already divided into the logits, with the error before and after; None where none was fitted.
    unknown : UnknownRule, optional
        When to answer "none of these"; None where no such rule was fitted.

    Examples
    --------
    >>> import numpy as np
    >>> from featcache.heads import Head, LinearHead
    >>> head = LinearHead(classes=("cat", "dog"), weight=np.eye(2, dtype=np.float32), bias=np.zeros(2, np.float32))
    >>> isinstance(head, Head), head.kind, head.num_features
    (True, 'linear', 2)
    >>> features = np.array([[2.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    >>> [head.classes[i] for i in head.predict(features)]
    ['cat', 'dog']
    >>> head.predict_proba(features).round(2)
    array([[0.88, 0.12],
           [0.27, 0.73]], dtype=float32)
    """

    kind: ClassVar[str]

    classes: tuple[str, ...]
    task: str = "classification"
    columns: tuple[str, ...] = ("features",)
    fingerprint: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None
    unknown: UnknownRule | None = None

    def check_common(self) -> None:
        """Raise `InputError` where a field that every kind has is not what it must be."""
        if self.task not in TASKS:
            raise InputError(f"task must be one of {TASKS!r}, got {self.task!r}")
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise InputError(f"classes must be one or more distinct names, got {self.classes!r:.200}")
        if not all(isinstance(name, str) for name in self.classes):
            raise InputError(f"classes must be texts, got {self.classes!r:.200}")

    @property
    @abstractmethod
    def num_features(self) -> int:
        """Length of a feature row."""

    @abstractmethod
    def predict_logits(self, features: npt.NDArray[Any]) -> Floats:
        """Return the logits (n, n_classes) float32 of raw features (n, num_features).

        Raises `InputError` for features of another shape.
        """

    @abstractmethod
    def to_module(self) -> torch.nn.Module:
        """Return a module in eval mode, features (n, num_features) float32 → logits (n, n_classes); imports torch."""

    @abstractmethod
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays that `from_state` needs, by name."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Return the JSON values that `from_state` needs besides the arrays and the common fields."""

    @classmethod
    @abstractmethod
    def from_state(
        cls, arrays: Mapping[str, npt.NDArray[Any]], options: Mapping[str, Any], common: Mapping[str, Any]
    ) -> Head:
        """Return the head of which `arrays` and `options` are the state, with the fields in `common`."""

    @abstractmethod
    def with_temperature(self, temperature: float) -> Head:
        """Return the head whose logits are these divided by `temperature` (> 0)."""

    def predict_proba(self, features: npt.NDArray[Any]) -> Floats:
        """Return probabilities (n, n_classes) float32: softmax of the logits, or a sigmoid of each for multi-label.

        Raises `InputError` for a regression head, which has values (`predict`) and no probabilities.
        """
        if self.task == "regression":
            raise InputError("probabilities need a classification head, got a regression head: use predict()")
        logits = self.predict_logits(features)
        return sigmoid(logits) if self.task == "multilabel" else softmax(logits)

    def predict(self, features: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the class index (n,) int64; for multi-label (n, n_classes) bool; for regression the values."""
        logits = self.predict_logits(features)
        if self.task == "classification":
            return np.asarray(logits.argmax(axis=1))
        return np.asarray(logits > 0) if self.task == "multilabel" else logits

    def checked(self, features: npt.NDArray[Any]) -> npt.NDArray[np.floating[Any]]:
        """Return `features` as a float32 matrix of this head's width, or raise `InputError`."""
        matrix = np.asarray(features)
        if matrix.ndim != 2 or matrix.shape[1] != self.num_features:
            raise InputError(
                f"features must have shape (n, {self.num_features}), got {matrix.shape!r}: use the cache columns "
                f"{list(self.columns)!r} the head was trained on"
            )
        return matrix.astype(np.float32, copy=False)


def softmax(logits: npt.NDArray[Any]) -> Floats:
    """Return the softmax over the last axis (n, k) float32."""
    shifted: Floats = np.array(logits, dtype=np.float32)
    shifted -= shifted.max(axis=-1, keepdims=True)
    np.exp(shifted, out=shifted)
    shifted /= shifted.sum(axis=-1, keepdims=True)
    return shifted


def sigmoid(logits: npt.NDArray[Any]) -> Floats:
    """Return the logistic function of each logit, float32, without overflow."""
    half = np.tanh(np.asarray(logits, dtype=np.float32) * np.float32(0.5))
    return np.asarray((half + 1) * np.float32(0.5), dtype=np.float32)
