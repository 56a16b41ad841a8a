"""Where soft labels come from: a head trained on a teacher's cache, or the logits that the cache stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from featcache.errors import InputError
from featcache.heads.base import Head

if TYPE_CHECKING:
    from featcache.cache import FeatureCache

LOGITS = "logits"


@dataclass(frozen=True, slots=True)
class SoftSource:
    """Where soft labels come from: teacher number `teacher`, through `head` or (None) as its stored logits.

    `classes`: their names. `order` (n,): which logit each is. `shared`: whether they are the images' own classes.
    """

    teacher: int
    head: Head | None
    classes: tuple[str, ...]
    order: npt.NDArray[np.int64]
    shared: bool

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)


def find_soft_source(
    teachers: Sequence[FeatureCache], head: Head | None, *, classes: tuple[str, ...]
) -> SoftSource | None:
    """Return where soft labels come from: `head` on the teacher it was trained on, or a teacher's stored logits.

    None where there is neither. `classes`: the images' own; logits over just these are put into their order. Stored
    logits carry no names: as many as there are classes are taken to be these, in order.
    Raises `InputError` where the head is not for classification, not of these teachers, or of too many classes.
    """
    if head is not None:
        if head.task != "classification":
            raise InputError(f"the teacher's head must be for classification, got one for {head.task!r}")
        sources = [i for i, teacher in enumerate(teachers) if teacher.fingerprint == head.fingerprint]
        if not sources:
            raise InputError(
                f"the teacher's head must have been trained on the teacher's cache, its fingerprint is "
                f"{str(head.fingerprint)[:12]!r}, got {[teacher.fingerprint[:12] for teacher in teachers]!r}: train it "
                "on this cache"
            )
        index = {name: i for i, name in enumerate(head.classes)}
        same = set(index) == set(classes)
        names = classes if same else head.classes
        _check_count(len(names))
        return SoftSource(sources[0], head, names, np.array([index[name] for name in names]), shared=same)
    for number, teacher in enumerate(teachers):
        for column in teacher.columns:
            if column.name == LOGITS:
                n = column.shape[0]
                _check_count(n)
                same = n == len(classes)
                names = classes if same else tuple(str(i) for i in range(n))
                return SoftSource(number, None, names, np.arange(n), shared=same)
    return None


def _check_count(n_classes: int) -> None:
    if n_classes > 1 << 16:
        raise InputError(f"soft labels must be over at most {1 << 16} classes, got {n_classes}")
