"""What a person should know of a data set before time is spent on it: classes that look alike, labels that lack."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from featcache.datasets.listing import Listing, counted
from featcache.datasets.splits import NO_SPLIT, SPLITS
from featcache.errors import InputError

_FEW = 5  # names in a line


def without_foreign_labels(listing: Listing) -> Listing:
    """Return the listing with a given val or test split unlabelled whose one class is unknown in train.

    So ``test/unknown/``, a folder of images whose classes nobody knows yet, is no class of its own. For folders only:
    what a table says of an image stands.
    """
    train = _used(listing.labels[listing.given_splits == 0])
    labels, notes = listing.labels.copy(), []
    for code in (1, 2):
        mine = (listing.given_splits == code) & (listing.labels >= 0)
        own = _used(listing.labels[mine])
        if len(train) and len(own) == 1 and own[0] not in train:
            labels[mine] = -1
            images, name = counted(int(mine.sum()), "image"), listing.classes[own[0]]
            notes.append(f"{images} of the {SPLITS[code]} split taken as unlabelled: train has no class {name!r}")
    if not notes:
        return listing
    used = _used(labels)
    return dataclasses.replace(
        listing,
        classes=tuple(listing.classes[label] for label in used),
        labels=np.where(labels >= 0, np.searchsorted(used, labels), -1).astype(np.int32),
        notes=(*listing.notes, *notes),
    )


def _used(labels: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Return the labels there are, ascending (np.unique imports masked arrays, which takes as long as a scan)."""
    return np.flatnonzero(np.bincount(labels[labels >= 0]))


def notes_on_classes(listing: Listing) -> list[str]:
    """Return a line for each group of class names that differ only in case, spaces or the form of a number."""
    if listing.task == "regression":
        return []
    groups: dict[str, list[str]] = {}
    for name in listing.classes:
        groups.setdefault(_likeness(name), []).append(name)
    return [
        f"the classes {_names(names)} look alike and are kept apart: give them one name if they are one"
        for names in groups.values()
        if len(names) > 1
    ]


def notes_on_training(listing: Listing) -> list[str]:
    """Return, of what is known before an image is read, what `train` would refuse and what it cannot measure."""
    hindrance = hindrance_to_training(listing, may_train(listing))
    notes = [] if hindrance is None else [_refusal(hindrance)]
    for code in (1, 2):
        mine = listing.given_splits == code
        if mine.any() and not (listing.labels[mine] >= 0).any():
            split, images = SPLITS[code], counted(int(mine.sum()), "image")
            notes.append(f"the {split} split has no label on its {images}: no {split} accuracy is claimed")
    return notes


def may_train(listing: Listing) -> npt.NDArray[np.bool_]:
    """Return which samples (n,) may come into the train split, of what is known before an image is read."""
    return np.isin(listing.given_splits, (NO_SPLIT, SPLITS.index("train")))


def hindrance_to_training(
    listing: Listing, in_train: npt.NDArray[np.bool_], failures: Mapping[int, str] | None = None
) -> str | None:
    """Return why no head can be trained on the samples that are `in_train` (n,) and not in `failures`; None if one can.

    `failures`: index → why the image cannot be read.
    """
    failures = failures or {}
    usable = in_train & (listing.labels >= 0)
    usable[list(failures)] = False
    if not (listing.labels >= 0).any():
        return (
            "training needs labelled images, got none: put them into a folder for each class, or fill the column label"
        )
    if listing.task == "classification" and len(listing.classes) < 2:
        return (
            f"training needs at least two classes, got {list(listing.classes)!r}: add a folder of images of another "
            f"class{_below(listing)}"
        )
    if listing.task == "regression":
        return None if usable.any() else _none_in_train(listing, failures)
    if listing.targets is None:
        counts = np.bincount(listing.labels[usable], minlength=len(listing.classes))
    else:
        counts = (listing.targets[usable] > 0).sum(axis=0)
    if not counts.any():
        return _none_in_train(listing, failures)
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        named = ", ".join(_with_failures(listing, int(label), failures) for label in empty[:_FEW])
        more = f" and {len(empty) - _FEW} more" if len(empty) > _FEW else ""
        return (
            f"every class must have an image in the train split, got none for [{named}]{more}: add images or remove "
            "the class"
        )
    return None


def notes_on_what_was_read(listing: Listing, splits: npt.NDArray[np.uint8], failures: Mapping[int, str]) -> list[str]:
    """Return what `train` would refuse of images that were read: `splits` (n,) as drawn, `failures` as they came."""
    in_train = splits == SPLITS.index("train")
    if (hindrance := hindrance_to_training(listing, in_train, failures)) is not None:
        return [_refusal(hindrance)]
    usable = listing.labels >= 0
    usable[list(failures)] = False
    if listing.task == "classification" and not (usable & (splits == SPLITS.index("val"))).any():
        counts = np.bincount(listing.labels[usable & in_train], minlength=len(listing.classes))
        single = [listing.classes[label] for label in np.flatnonzero(counts == 1)]
        if single:
            return [
                "train will want a penalty, such as --l2 0.001: nothing is in val to choose one by, and of "
                f"{_names(single)} one image is in train"
            ]
    if listing.task == "multilabel" and listing.targets is not None:
        targets = listing.targets[usable & in_train]
        everywhere = [listing.classes[label] for label in np.flatnonzero(targets.min(axis=0) > 0)]
        if everywhere:
            return [f"train will refuse a linear head: every image of the train split has {_names(everywhere)}"]
    return []


def check_trainable(listing: Listing) -> None:
    """Raise `InputError` where it is known before an image is read that no head can be trained."""
    if (hindrance := hindrance_to_training(listing, may_train(listing))) is not None:
        raise InputError(hindrance)


def _refusal(hindrance: str) -> str:
    return f"train will refuse this data set: {hindrance}"


def _none_in_train(listing: Listing, failures: Mapping[int, str]) -> str:
    reason = next(iter(failures.values()), None)
    failed = f"; {len(failures)} of {len(listing)} images failed, first: {reason}" if reason else ""
    return f"training needs labelled images in the train split, got none{failed}"


def _with_failures(listing: Listing, label: int, failures: Mapping[int, str]) -> str:
    """Return the name of a class, with what became of its images where they failed."""
    targets = listing.targets
    of_class = listing.labels == label if targets is None else targets[:, label] > 0
    failed = [index for index in np.flatnonzero(of_class).tolist() if index in failures]
    name = repr(listing.classes[label])
    return f"{name} ({len(failed)} of {int(of_class.sum())} failed: {failures[failed[0]]})" if failed else name


def _below(listing: Listing) -> str:
    """Return what else may have been meant, where the only class has folders of its own."""
    inner = {tuple(path.split("/")[:2]) for path in listing.paths if path.count("/") > 1}
    tops = {top for top, _ in inner}
    return f", or name {next(iter(tops))!r} in it as IMAGES if its folders are the classes" if len(tops) == 1 else ""


def _likeness(name: str) -> str:
    text = re.sub(r"[\s_]+", " ", unicodedata.normalize("NFKC", name).casefold()).strip()
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)", text, re.ASCII):
        return repr(float(text))
    return text


def _names(names: list[str]) -> str:
    return ", ".join(map(repr, names[:_FEW])) + (" …" if len(names) > _FEW else "")
