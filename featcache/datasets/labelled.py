"""Labelled images to measure a model on: which of a data set's samples, with labels in the model's own order."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from featcache.datasets.listing import Listing, Task, printable
from featcache.datasets.samples import Samples
from featcache.datasets.scan import scan
from featcache.datasets.splits import NO_SPLIT, SPLITS, assign_splits, split_code
from featcache.errors import InputError
from featcache.images.read import ImageFile, hash_files


class Scan(Protocol):
    """What lists the inputs of a kind: `featcache.datasets.scan.scan`, or another kind's."""

    def __call__(
        self, source: str | os.PathLike[str], /, *, task: Task | None = None, known_classes: Collection[str] = ()
    ) -> Listing:
        """Return the listing of what is at `source`."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelledImages:
    """Images and what a model should say of them.

    `paths`: files to open, `digests`: of their bytes, where these are known from a cache, `names`: how to call them
    (relative). `labels` (n,) int64: index into the model's classes, of several labels the first that it knows;
    -1 for images without a label or of a class the model does not know. `targets`: None, or (n, n_classes) float32 for
    multi-label and regression models, to be used where `labels` says that there is a label. `split`: which part of the
    data set this is, None for all of it, and `labelled_splits` those parts that have labels of the model.
    `unknown_classes`: names in the data set that the model does not have. `notes`: those of its `Listing`.
    """

    paths: tuple[str, ...]
    digests: tuple[bytes, ...] | None
    names: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    targets: npt.NDArray[np.float32] | None
    split: str | None
    unknown_classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    labelled_splits: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def has_labels(self) -> bool:
        """Whether any image has a label of the model."""
        return bool((self.labels >= 0).any())

    def sources(self) -> list[ImageFile]:
        """Return a reader of each file's bytes, which fails where a file has others than those known by its digest."""
        digests = self.digests or (None,) * len(self.paths)
        return [ImageFile(path, digest) for path, digest in zip(self.paths, digests, strict=True)]


def labelled_images(
    images: str | os.PathLike[str],
    *,
    classes: tuple[str, ...],
    task: str,
    split: str | None = None,
    carve: bool = False,
    scan: Scan = scan,
) -> LabelledImages:
    """Return the images of a folder or CSV to evaluate on, labels matched to `classes` by name.

    `split`: the part to take; None takes ``test`` where the data set says what is test, else everything. `carve`: where
    it does not say, take the ``test`` part that the rule of a cache would draw (split seed 0), never training images.
    `scan`: that of another input kind.
    Raises `InputError` where nothing is left, or no class name is the model's.
    """
    wanted_task = None if task == "classification" else task
    listing = scan(images, task=wanted_task, known_classes=classes)  # type: ignore[arg-type]
    splits = listing.given_splits
    has_splits = bool((splits != NO_SPLIT).any())
    wanted = split or ("test" if has_splits or carve else None)
    if wanted is None:
        chosen = np.arange(len(listing))
    else:
        if not has_splits and carve:
            digests = hash_files(listing.absolute_paths(np.arange(len(listing)))).digests
            splits = assign_splits(listing, digests, seed=0)
        chosen = np.flatnonzero(splits == split_code(wanted))
        if not len(chosen):
            others = [name for name in SPLITS if (splits == split_code(name)).any()]
            raise InputError(
                f"{os.fspath(images)!r} must have images of the split {wanted!r}, it has none: name the folder of the "
                f"images to measure on{''.join(f', or --split {name}' for name in others)}"
            )
    found = _matched(listing, chosen, digests=None, classes=classes, task=task, split=wanted)
    of_model = np.array([*(name in classes for name in listing.classes), False])[listing.labels]
    labelled = tuple(name for name in SPLITS if (of_model & (splits == split_code(name))).any())
    return dataclasses.replace(found, labelled_splits=labelled)


def cached_images(
    samples: Samples, *, classes: tuple[str, ...], task: str, split: str = "test"
) -> LabelledImages | None:
    """Return the images of one split of a cache, read from where the build found them; None without any.

    Raises `MissingError` where they are gone.
    """
    chosen = np.flatnonzero(samples.decoded & (samples.splits == split_code(split)))
    if not len(chosen):
        return None
    samples.require_images()
    digests = tuple(samples.digests[index].tobytes() for index in chosen.tolist())
    return _matched(samples.listing, chosen, digests=digests, classes=classes, task=task, split=split)


def _matched(
    listing: Listing,
    chosen: npt.NDArray[np.int64],
    *,
    digests: tuple[bytes, ...] | None,
    classes: tuple[str, ...],
    task: str,
    split: str | None,
) -> LabelledImages:
    order = {name: index for index, name in enumerate(classes)}
    unknown = tuple(name for name in listing.classes if name not in order)
    if listing.classes and len(unknown) == len(listing.classes):
        raise InputError(
            f"the images must have classes of the model ({', '.join(classes[:6])}, …), got only "
            f"{', '.join(unknown[:6])}: evaluate the model on the data set it was trained on"
        )
    mapping = np.array([*(order.get(name, -1) for name in listing.classes), -1], dtype=np.int64)
    labels, targets = mapping[listing.labels[chosen]], None
    if listing.targets is not None and task != "classification":
        targets = np.zeros((len(chosen), len(classes)), dtype=np.float32)
        known = [index for index, name in enumerate(listing.classes) if name in order]
        targets[:, mapping[known]] = listing.targets[chosen][:, known]
        if task == "regression":  # as caches of earlier versions may hold
            labels = np.where(np.isfinite(targets).all(axis=1), labels, -1)
        else:
            labels = np.where(targets.any(axis=1), targets.argmax(axis=1), -1)
    return LabelledImages(
        paths=tuple(listing.absolute(index) for index in chosen.tolist()),
        digests=digests,
        names=tuple(printable(listing.paths[index]) for index in chosen.tolist()),
        labels=labels,
        targets=targets,
        split=split,
        unknown_classes=unknown,
        notes=listing.notes,
    )
