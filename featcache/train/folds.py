"""Which training rows are held out when there is no val split: stratified folds, an image's views kept together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.errors import InputError


def stratified_folds(
    groups: npt.NDArray[np.int64],
    targets: npt.NDArray[Any],
    *,
    task: str,
    classes: Sequence[str],
    folds: int,
    seed: int,
) -> npt.NDArray[np.int64]:
    """Return the fold (n,) int64 in [0, folds) of each row; rows of one group share it.

    `groups` (n,): the image each row comes from. `targets`: class indices (n,), spread evenly over the folds; targets
    (n, k) of the other tasks are spread at random. `classes`: their names. Raises `InputError` for fewer than two
    images, and for a class with only one, so that none is left to train on.
    """
    images, first = np.unique(groups, return_index=True)
    if len(images) < 2:
        raise InputError(f"folds need at least two training images, got {len(images)}: add images or a val split")
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(images))
    if task == "classification":
        labels = targets[first]
        counts = np.bincount(labels)
        if (counts[counts > 0] < 2).any():
            label = int(np.flatnonzero(counts == 1)[0])
            raise InputError(
                f"choosing by folds needs two training images of every class, got one of {classes[label]!r}: "
                "add images, give the data a val split, or give every penalty a value"
            )
        order = order[np.argsort(labels[order], kind="stable")]
    fold_of_image = np.empty(len(images), dtype=np.int64)
    fold_of_image[order] = np.arange(len(images)) % min(folds, len(images))
    return np.asarray(fold_of_image[np.searchsorted(images, groups)])
