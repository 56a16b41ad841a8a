"""What is solved and what comes back: `Problem`, `Solution`, and the checks at the border."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from featcache.errors import InputError

LossName = Literal["softmax", "sigmoid", "squared"]
LOSSES: tuple[LossName, ...] = ("softmax", "sigmoid", "squared")


@runtime_checkable
class BlockSource(Protocol):
    """Rows too many for memory: an object that can be iterated again and again, always in the same order.

    `shape` is ``(n_rows, n_features)``; each item is ``(first_row, block)`` with ``block`` a ``(m, n_features)``
    float16, float32 or float64 array that need only be valid until the next item. Blocks are consecutive and cover all
    rows.
    """

    @property
    def shape(self) -> tuple[int, int]: ...

    def __iter__(self) -> Iterator[tuple[int, NDArray[Any]]]: ...


class RemoteFeatures(ABC):
    """Rows that are held elsewhere, such as in parts (`PartitionedFeatures`): only sums over them can be had."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """``(n_rows, n_features)``."""


@dataclass(frozen=True, slots=True)
class Distillation:
    """The second term of a distilled head (Hinton et al. 2015): ``alpha * T**2 * KL(teacher_T || student_T)``.

    `teacher` is ``(n_rows, n_classes)`` float32, the teacher's probabilities at the temperature `temperature`; the
    first term, the cross-entropy of the labels, is multiplied by ``1 - alpha``. Rows labelled -1 take part only in the
    second.
    """

    teacher: NDArray[Any]
    alpha: float
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0.0 < self.alpha <= 1.0:
            raise InputError(f"alpha must be in (0, 1], got {self.alpha!r}")
        if not (self.temperature > 0.0 and np.isfinite(self.temperature)):
            raise InputError(f"the temperature must be a positive number, got {self.temperature!r}")


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """One linear head to be trained: rows, targets and the loss between them.

    Parameters
    ----------
    features : ndarray of shape (n_rows, n_features), BlockSource or RemoteFeatures
        float16, float32 or float64 as cached: standardisation happens inside.
    targets : ndarray of shape (n_rows,) or (n_rows, n_classes)
        Class numbers, int64; or float32: probabilities that sum to one for ``softmax``, values in [0, 1] for
        ``sigmoid``, any finite number for ``squared``.
    loss : {"softmax", "sigmoid", "squared"}
        Of a row: the cross-entropy, its sum over the outputs, or half the squared error summed over them.
    n_classes : int, optional
        The number of outputs; without it, as many as the targets show.
    sample_weight : ndarray of shape (n_rows,), optional
        Not negative; a row of weight w counts as w equal rows, in the standardisation too.
    distillation : Distillation, optional
        A teacher's probabilities, for ``softmax`` with class numbers.

    Raises
    ------
    InputError
        For anything that does not fit together.

    Examples
    --------
    >>> import numpy as np
    >>> from featcache.heads.solvers import Problem
    >>> labels = np.arange(60) % 3
    >>> features = np.eye(3)[labels] + np.random.default_rng(0).normal(size=(60, 3))
    >>> problem = Problem(features=features, targets=labels)
    >>> problem.n_rows, problem.n_features, problem.n_outputs
    (60, 3, 3)
    """

    features: NDArray[Any] | BlockSource | RemoteFeatures
    targets: NDArray[Any]
    loss: LossName = "softmax"
    n_classes: int | None = None
    sample_weight: NDArray[Any] | None = None
    distillation: Distillation | None = None

    def __post_init__(self) -> None:
        """Check that shapes, ranges and finiteness hold; features are checked when they are first read."""
        if self.loss not in LOSSES:
            raise InputError(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        shape = tuple(self.features.shape)
        if len(shape) != 2 or shape[0] < 1 or shape[1] < 1:
            raise InputError(f"features must be a (rows, features) array with at least one of each, got shape {shape}")
        n_rows = int(shape[0])
        targets = np.asarray(self.targets)
        if targets.ndim not in (1, 2) or targets.shape[0] != n_rows:
            raise InputError(f"targets must have one entry per row ({n_rows}), got shape {targets.shape}")
        if targets.ndim == 1:
            self._check_labels(targets)
        else:
            self._check_soft_targets(targets)
        self._check_distillation(n_rows)
        if self.sample_weight is not None:
            weight = np.asarray(self.sample_weight)
            if weight.shape != (n_rows,):
                raise InputError(f"sample weights must have shape ({n_rows},), got {weight.shape}")
            if not np.isfinite(weight).all() or weight.min() < 0 or not weight.max() > 0:
                raise InputError("sample weights must be finite, not negative and not all zero; correct or drop them")

    def _check_labels(self, labels: NDArray[Any]) -> None:
        if self.loss == "squared":
            raise InputError("squared loss needs targets of shape (rows, outputs); reshape them with targets[:, None]")
        if labels.dtype.kind not in "iu":
            raise InputError(f"class numbers must be integers, got dtype {labels.dtype}")
        if self.loss == "sigmoid":
            raise InputError("sigmoid loss needs targets of shape (rows, outputs) in [0, 1], got class numbers")
        if self.n_classes is None:
            object.__setattr__(self, "n_classes", int(labels.max()) + 1)
        lowest = -1 if self.distillation is not None else 0
        assert self.n_classes is not None
        if labels.min() < lowest or labels.max() >= self.n_classes:
            raise InputError(
                f"class numbers must be in [{lowest}, {self.n_classes}), got {int(labels.min())} to {int(labels.max())}"
            )
        if self.n_outputs < 2:
            raise InputError(f"at least two classes are needed, got {self.n_classes}")

    def _check_soft_targets(self, targets: NDArray[Any]) -> None:
        if self.n_classes is None:
            object.__setattr__(self, "n_classes", int(targets.shape[1]))
        if targets.shape[1] != self.n_classes:
            raise InputError(f"targets must have {self.n_classes} columns, got {targets.shape[1]}")
        if targets.dtype.kind not in "fiub" or not np.isfinite(targets).all():
            raise InputError("targets must be finite numbers; drop the rows with NaN or Inf")
        if self.loss != "squared" and (targets.min() < 0 or targets.max() > 1):
            raise InputError(f"targets of {self.loss} must be in [0, 1], got {targets.min()!r} to {targets.max()!r}")
        if self.loss == "softmax":
            if self.n_outputs < 2:
                raise InputError(f"at least two classes are needed, got {self.n_classes}")
            error = float(np.abs(targets.sum(axis=1, dtype=np.float64) - 1.0).max())
            if error > 1e-3:
                raise InputError(f"each row of soft targets must sum to 1, got a row that is off by {error:.3g}")

    def _check_distillation(self, n_rows: int) -> None:
        if self.distillation is None:
            return
        if self.loss != "softmax" or np.ndim(self.targets) != 1:
            raise InputError("distillation needs softmax loss and class numbers as targets (-1 where unlabelled)")
        teacher = np.asarray(self.distillation.teacher)
        if teacher.shape != (n_rows, self.n_classes):
            raise InputError(f"the teacher must give shape {(n_rows, self.n_classes)}, got {teacher.shape}")
        sums = teacher.sum(axis=1, dtype=np.float64)
        if not np.isfinite(sums).all() or teacher.min() < 0 or np.abs(sums - 1.0).max() > 1e-3:
            raise InputError("the teacher's rows must be probabilities that sum to 1; apply softmax to its logits")

    @property
    def n_rows(self) -> int:
        """Return the number of rows."""
        return int(self.features.shape[0])

    @property
    def n_features(self) -> int:
        """Return the number of features."""
        return int(self.features.shape[1])

    @property
    def n_outputs(self) -> int:
        """Return the number of outputs k (classes, labels or regression targets)."""
        assert self.n_classes is not None
        return self.n_classes


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """A trained linear head on standardised features, with the certificate of how good it is.

    `weight` is ``(n_outputs, n_features)`` float32 and `bias` ``(n_outputs,)`` float32, acting on
    ``z = (x - mean) / std``. `objective` is the value of the penalised mean loss, `gap` a bound on
    ``(objective - optimum) / objective``; `gap_kind` says what kind: ``duality`` (a dual feasible point was evaluated:
    a proof up to rounding) or ``gradient`` (no penalty bounds the dual: the infinity norm of the gradient instead).
    `passes` counts sweeps over all rows, a forward and a backward product being one. `converged` is False where the
    iterations ran out before `tolerance` was reached.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    l1: float
    l2: float
    group_l1: float
    objective: float
    gap: float
    gap_kind: Literal["duality", "gradient"]
    passes: float
    converged: bool

    @property
    def nonzero_fraction(self) -> float:
        """Return the share of exactly non-zero weights."""
        return float(np.count_nonzero(self.weight) / self.weight.size)

    @property
    def features_used(self) -> int:
        """Return the number of features with any non-zero weight."""
        return int(np.count_nonzero(np.any(self.weight != 0, axis=0)))

    def raw_weight(self) -> NDArray[np.float32]:
        """Return ``(n_outputs, n_features)`` float32 acting on the features as cached."""
        folded: NDArray[np.float32] = (self.weight / self.std).astype(np.float32)
        return folded

    def raw_bias(self) -> NDArray[np.float32]:
        """Return ``(n_outputs,)`` float32 to go with `raw_weight`, folded in float64."""
        folded: NDArray[np.float32] = (self.bias - self.raw_weight().astype(np.float64) @ self.mean).astype(np.float32)
        return folded
