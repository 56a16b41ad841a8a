"""A teacher's opinion of every training image: another cache of the same images, joined by digest, and its head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featcache.errors import InputError
from featcache.heads.base import Floats, Head, softmax
from featcache.train.data import Rows, TrainingData
from featcache.train.options import DistillationOptions

if TYPE_CHECKING:
    from featcache.cache import FeatureCache
    from featcache.datasets.samples import Samples

LOGITS = "logits"
BLOCK_ROWS = 8192  # whose features are in memory at once


@dataclass(frozen=True, slots=True, eq=False)
class SoftTargets:
    """A teacher's probabilities at `temperature`: `train` (n, k), `unlabelled` (m, k) or None; `alpha`: their share."""

    train: Floats
    unlabelled: Floats | None
    alpha: float
    temperature: float


def has_matching_logits(cache: FeatureCache, n_classes: int) -> bool:
    """Return whether `cache` stores the backbone's own logits, one per class."""
    return any(column.name == LOGITS and column.shape == (n_classes,) for column in cache.columns)


def teacher_probabilities(
    teacher: FeatureCache, *, head: Head | None, data: TrainingData, distillation: DistillationOptions
) -> SoftTargets:
    """Return the teacher's probabilities at the temperature of `distillation` for the train and the unlabelled rows.

    `head`: acts on the teacher's features; None takes the teacher's stored ``logits`` as they are. Raises `InputError`
    where the classes differ or an image has no row in `teacher`.
    """
    order = _class_order(head, data, teacher)

    def logits_of(rows: npt.NDArray[np.int64]) -> Floats:
        if head is None:
            return teacher.gather(rows, output=LOGITS)
        return head.predict_logits(teacher.gather(rows, output=list(head.columns)))[:, order]

    def probabilities_of(rows: Rows, samples: Samples) -> Floats:
        with teacher.reader() as reader:
            positions = reader.find(samples.digests[rows.indices])
        missing = int((positions < 0).sum())
        if missing:
            raise InputError(
                f"the teacher {str(teacher.path)!r} must hold a row of every training image, {missing} of "
                f"{len(positions)} are missing (images are joined by the sha256 of their bytes): build it from the "
                "same images"
            )
        unique, inverse = np.unique(positions, return_inverse=True)
        logits = np.concatenate([logits_of(unique[a : a + BLOCK_ROWS]) for a in range(0, len(unique), BLOCK_ROWS)])
        return np.asarray(softmax(logits / np.float32(distillation.temperature))[inverse], dtype=np.float32)

    unlabelled = None
    if data.unlabelled is not None and data.unlabelled_samples is not None:
        unlabelled = probabilities_of(data.unlabelled, data.unlabelled_samples)
    train = probabilities_of(data.train, data.samples)
    return SoftTargets(train, unlabelled, distillation.alpha, distillation.temperature)


def _class_order(head: Head | None, data: TrainingData, teacher: FeatureCache) -> npt.NDArray[np.int64]:
    """Return which of the teacher's logits belongs to each class of the student."""
    if head is None:
        if not has_matching_logits(teacher, len(data.classes)):
            have = {column.name: column.shape for column in teacher.columns}
            raise InputError(
                f"the teacher {str(teacher.path)!r} must store 'logits' of {len(data.classes)} classes, got {have!r}: "
                "name a head trained on it"
            )
        return np.arange(len(data.classes))
    if head.task != data.task:
        raise InputError(f"the teacher's head must be for task {data.task!r}, got {head.task!r}")
    if set(head.classes) != set(data.classes):
        raise InputError(
            f"the teacher must know exactly the classes of data set {data.dataset!r}; "
            f"{_differences(head.classes, data.classes)}: train its head on the same classes"
        )
    index = {name: i for i, name in enumerate(head.classes)}
    return np.array([index[name] for name in data.classes], dtype=np.int64)


def _differences(theirs: Sequence[str], ours: Sequence[str]) -> str:
    def listed(names: Any) -> str:
        ordered = sorted(names)
        return f"{ordered[:5]!r}{' …' if len(ordered) > 5 else ''}"

    parts = []
    if set(ours) - set(theirs):
        parts.append(f"it lacks {listed(set(ours) - set(theirs))}")
    if set(theirs) - set(ours):
        parts.append(f"it has besides {listed(set(theirs) - set(ours))}")
    return " and ".join(parts)
