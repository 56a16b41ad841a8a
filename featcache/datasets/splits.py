"""Which split a sample is in: the data set says so, or it is drawn from the digest of the sample's bytes and a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from featcache.datasets.listing import Listing
from featcache.errors import InputError

SPLITS = ("train", "val", "test")
NO_SPLIT = 255
TEST_SHARE, VAL_SHARE = 0.15, 0.15


def split_code(split: str) -> int:
    """Return the index of `split` in `SPLITS`; `InputError` for another name."""
    if split not in SPLITS:
        raise InputError(f"split must be one of {SPLITS!r}, got {split!r}")
    return SPLITS.index(split)


def split_draws(digests: npt.NDArray[np.uint8], *, seed: int) -> npt.NDArray[np.float64]:
    """Return u in [0, 1) for each digest (n, 32): the first 8 bytes of sha256(seed as 8 bytes ‖ digest) over 2⁶⁴."""
    prefix = hashlib.sha256(int(seed).to_bytes(8, "big", signed=True))
    raw = np.ascontiguousarray(digests).tobytes()
    words = bytearray()
    for start in range(0, len(raw), 32):
        state = prefix.copy()
        state.update(raw[start : start + 32])
        words += state.digest()[:8]
    return np.frombuffer(bytes(words), dtype=">u8").astype(np.float64) / 2.0**64


def assign_splits(
    listing: Listing, digests: npt.NDArray[np.uint8], *, seed: int, failed: Collection[int] = ()
) -> npt.NDArray[np.uint8]:
    """Return the split of each sample (n,) uint8: as given, else drawn from the digest alone.

    Without any given split: test where u < 0.15, val where u < 0.30, else train. With train and test but no val: val is
    carved from train where 0.15 ≤ u < 0.30 of the same draw. A class left without a train sample gets its lowest-u
    image that is not among `failed` into train. Since u depends on the bytes only, adding images never moves others
    (but for that last rule).
    """
    in_listing = listing.given_splits
    splits = in_listing.copy()
    free = in_listing == NO_SPLIT
    carve = not free.any() and not (in_listing == 1).any() and (in_listing == 2).any()
    if not free.any() and not carve:
        return splits
    u = split_draws(digests, seed=seed)
    is_val = (u >= TEST_SHARE) & (u < TEST_SHARE + VAL_SHARE)
    if carve:
        movable = in_listing == 0
        splits[movable & is_val] = 1
    else:
        movable = free
        splits[movable] = 0
        splits[movable & is_val] = 1
        splits[movable & (u < TEST_SHARE)] = 2
    usable = np.ones(len(listing), dtype=bool)
    usable[list(failed)] = False
    for label in range(len(listing.classes)):
        if listing.task == "regression":
            break
        of_class = listing.labels == label
        if listing.targets is not None:
            of_class = listing.targets[:, label] > 0
        of_class &= usable
        members = np.flatnonzero(of_class & movable)
        if len(members) and not (splits[of_class] == 0).any():
            lowest = members[np.argmin(u[members])]
            splits[movable & (digests == digests[lowest]).all(axis=1)] = 0
    return splits
