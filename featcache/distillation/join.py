"""Which images a student learns from: the train split and unlabelled ones, joined to the teachers by digest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featcache.cache import FeatureCache
from featcache.datasets.listing import Listing, printable
from featcache.datasets.scan import scan
from featcache.datasets.splits import NO_SPLIT, SPLITS, assign_splits
from featcache.errors import InputError
from featcache.images.read import hash_files

_NOT_READ = bytes(32)


@dataclass(frozen=True, slots=True)
class Images:
    """n images to learn from or to check on: `paths`, `digests` (n, 32) uint8, `labels` (n,) int64, -1 for none."""

    paths: tuple[str, ...]
    digests: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def identity(self) -> str:
        """sha256 over digests and labels, in order: equal for the same images in the same order."""
        state = hashlib.sha256(np.ascontiguousarray(self.digests).tobytes())
        state.update(np.ascontiguousarray(self.labels).tobytes())
        return state.hexdigest()


@dataclass(frozen=True, slots=True)
class Joined:
    """`train`: labelled images of the train split and unlabelled ones. `val`: labelled images of the val split.

    `classes`: names of the labels; empty where nothing is labelled. `failures`: (path, reason) of images left out.
    `notes`: those of the `Listing`.
    """

    train: Images
    val: Images
    classes: tuple[str, ...]
    failures: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def join_images(images: str | Path, teachers: Sequence[FeatureCache]) -> Joined:
    """Return the images at `images` that every teacher answered for.

    An image that failed in a teacher's build, or cannot be read, is left out and named in `failures`. Raises
    `InputError` where a teacher never saw an image, or fewer than two are left.
    """
    listing = scan(images)
    hashed = hash_files(listing.absolute_paths(np.arange(len(listing))))
    digests, failures = hashed.digests, [(listing.paths[i], reason) for i, reason in hashed.failures.items()]
    splits = assign_splits(listing, digests, seed=0)
    labels = listing.labels.astype(np.int64)
    if listing.task != "classification":
        labels = np.full(len(listing), -1, dtype=np.int64)  # only class labels have a loss here
    read = digests.any(axis=1)
    train = read & ((splits == SPLITS.index("train")) | ((labels < 0) & (listing.given_splits == NO_SPLIT)))
    val = read & (splits == SPLITS.index("val")) & (labels >= 0)
    for teacher in teachers:
        with teacher.reader() as reader:
            absent = reader.find(digests) < 0
        val &= ~absent
        missing = np.flatnonzero(train & absent)
        known = _failed_in(teacher)
        failed = [int(i) for i in missing if digests[i].tobytes() in known]
        if len(failed) < len(missing):
            strangers = sorted(set(missing.tolist()) - set(failed))
            raise InputError(
                f"the teacher {str(teacher.path)!r} must hold a row of every training image, {len(strangers)} of "
                f"{int(train.sum())} are missing, first {printable(listing.paths[strangers[0]])!r} (images are joined "
                "by the sha256 of their bytes): build it from the same images"
            )
        train[failed] = False
        failures += [(listing.paths[i], known[digests[i].tobytes()]) for i in failed]
    if train.sum() < 2:
        raise InputError(
            f"a student needs two images or more of the train split, or unlabelled, got {int(train.sum())} in "
            f"{str(images)!r}"
        )
    return Joined(
        _take(listing, digests, labels, train),
        _take(listing, digests, labels, val),
        listing.classes if (labels >= 0).any() else (),
        tuple((printable(path), reason) for path, reason in [*failures, *listing.failures]),
        listing.notes,
    )


def _take(
    listing: Listing, digests: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], chosen: npt.NDArray[np.bool_]
) -> Images:
    indices = np.flatnonzero(chosen)
    return Images(tuple(listing.absolute(int(i)) for i in indices), digests[indices], labels[indices])


def _failed_in(teacher: FeatureCache) -> dict[bytes, str]:
    """Return digest → reason of the images that failed when the teacher's cache was built."""
    failed: dict[bytes, str] = {}
    for name in teacher.datasets:
        samples = teacher.samples(name)
        failed |= {samples.digests[index].tobytes(): reason for index, reason in samples.failures.items()}
    failed.pop(_NOT_READ, None)
    return failed
