"""Which data set of a cache a folder of images is: a new one, one that it holds, or one that was moved."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePath

from featcache.cache import FeatureCache
from featcache.datasets.listing import Listing, printable
from featcache.datasets.place import data_set_name
from featcache.datasets.samples import Samples
from featcache.errors import InputError
from featcache.system.objects import is_url


@dataclass(frozen=True, slots=True)
class WantedName:
    """What a data set is to be called: `name`, and whether the user said so (`chosen`) or it is the folder's.

    `shortened`: as versions before called it, up to the last dot of the folder's name.
    """

    name: str
    chosen: bool
    shortened: str | None = None


def wanted_name(images: str | Path, dataset: str | None) -> WantedName:
    """Return the name for the data set at `images`: `dataset`, else the folder's name or the table's without ending."""
    if dataset is not None:
        return WantedName(dataset, True)
    return WantedName(data_set_name(images), False, PurePath(os.path.abspath(images)).stem)


def settle_name(cache: FeatureCache, listing: Listing, wanted: WantedName) -> tuple[str, str | None]:
    """Return the name under which `listing` belongs into `cache`, and a note where that is not plain.

    A data set whose folder is gone and whose files are here is the same one, moved. Raises `InputError` where another
    data set has the name, and nobody said that it is to be replaced.
    """
    if wanted.chosen:
        before = cache.samples(wanted.name) if wanted.name in cache.datasets else None
        if before is None or _same_root(before, listing) or _is_moved(before, listing):
            return wanted.name, None
        return wanted.name, (
            f"the data set {wanted.name!r} was {printable(before.root)!r} and is now {printable(listing.root)!r}: name "
            "another --dataset to keep both"
        )
    for name in (wanted.name, wanted.shortened):
        if name in cache.datasets and _same_root(cache.samples(name), listing):
            return str(name), None
    for name in cache.datasets:
        if cache.samples(name).called == wanted.name and _same_root(cache.samples(name), listing):
            return name, None
    moved = [name for name in cache.datasets if _is_moved(cache.samples(name), listing)]
    if wanted.name in moved:
        moved = [wanted.name]
    if len(moved) == 1:
        root = printable(cache.samples(moved[0]).root)
        return moved[0], f"the data set {moved[0]!r} was moved from {root!r} to {printable(listing.root)!r}"
    if wanted.name in cache.datasets:
        root = printable(cache.samples(wanted.name).root)
        raise InputError(
            f"a data set must have a name of its own; {wanted.name!r} in {str(cache.path)!r} is {root!r}, got "
            f"{printable(listing.root)!r}: name another with --dataset, or --dataset {wanted.name} to replace it"
        )
    return wanted.name, None


def _same_root(before: Samples, listing: Listing) -> bool:
    if is_url(before.root) or is_url(listing.root):
        return before.root == listing.root
    return os.path.realpath(before.root) == os.path.realpath(listing.root)


def _is_moved(before: Samples, listing: Listing) -> bool:
    """Return whether the folder of `before` is gone and half its files, by path and size, are in `listing`."""
    if not len(before) or (not is_url(before.root) and os.path.exists(before.root)):
        return False
    here = set(zip(listing.paths, listing.stats[:, 0].tolist(), strict=True))
    kept = sum(file in here for file in zip(before.paths, before.listing.stats[:, 0].tolist(), strict=True))
    return 2 * kept >= len(before) and not (is_url(before.root) and before.lie_there())
