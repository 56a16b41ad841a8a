"""What a build has to do: which files are known by their stat, which by their bytes, and which need the network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featcache.cache import FeatureCache
from featcache.datasets.listing import Listing
from featcache.datasets.samples import Samples
from featcache.errors import SampleError
from featcache.extract.inputs.registry import find_input
from featcache.store import StoreReader, StoreWriter
from featcache.system.sources.interface import FileStat
from featcache.system.sources.reading import input_reader

# A file changed this close to the last scan may have changed after it (git's rule). In a storage, whose clock is
# another, an ETag names the content, and no time is looked at.
RACY_NANOSECONDS = 2_000_000_000


@dataclass(slots=True)
class ChangeSet:
    """Which samples are known from before, and what the others, the sorted indices `todo`, turn out to be."""

    digests: npt.NDArray[np.uint8]
    stats: npt.NDArray[np.int64]
    failures: dict[int, str]
    todo: npt.NDArray[np.int64]

    def settle(self, index: int, digest: bytes, stat: FileStat, reason: str | None) -> None:
        """Note what sample `index` turned out to be: its digest, and why it has no row, if so."""
        self.digests[index] = np.frombuffer(digest, dtype=np.uint8)
        self.stats[index] = stat
        if reason is not None:
            self.failures[index] = reason


def find_changes(cache: FeatureCache, listing: Listing, before: Samples | None, *, alone: bool = False) -> ChangeSet:
    """Return what is known without reading a byte: files whose stat did not change since they were hashed.

    `alone`: no other change set is made of this listing, whose stats then need not be copied.
    """
    n = len(listing)
    digests = np.zeros((n, 32), dtype=np.uint8)
    failures: dict[int, str] = {}
    known = np.zeros(n, dtype=bool)
    if before is not None and len(before):
        # of what an ETag names these columns hold no times, but numbers below every time: it is settled by itself
        settled = before.listing.stats[:, 1:3].max(axis=1) < before.listing.scanned_ns - RACY_NANOSECONDS
        if before.paths == listing.paths:
            known = settled & (before.listing.stats == listing.stats).all(axis=1)
            source = np.arange(n)
        else:
            # size, mtime, ctime and inode together name a file's content whatever it is called now
            place = {row.tobytes(): i for i, row in enumerate(before.listing.stats) if settled[i]}
            source = np.array([place.get(row.tobytes(), -1) for row in listing.stats], dtype=np.int64)
            known = source >= 0
        digests[known] = before.digests[source[known]]
        for index in np.flatnonzero(known).tolist():
            reason = before.failures.get(int(source[index])) if before.failures else None
            if reason is not None:
                failures[index] = reason
    decoded = known.copy()
    decoded[list(failures)] = False
    with cache.reader() as reader:
        decoded_indices = np.flatnonzero(decoded)
        missing = decoded_indices[reader.find(digests[decoded_indices]) < 0]
    known[missing] = False  # the row was dropped by a repair or a prune
    return ChangeSet(digests, listing.stats if alone else listing.stats.copy(), failures, np.flatnonzero(~known))


def same_listing(before: Samples, listing: Listing, *, seed: int) -> bool:
    """Return whether the samples stored `before` say all that `listing` says (but for what is in the files)."""
    old = before.listing
    return (
        before.split_seed == seed
        and old.root == listing.root
        and old.task == listing.task
        and old.classes == listing.classes
        and old.paths == listing.paths
        and old.input == listing.input
        and np.array_equal(old.labels, listing.labels)
        and np.array_equal(old.given_splits, listing.given_splits)
        and (old.targets is None) == (listing.targets is None)
        and (old.targets is None or np.array_equal(old.targets, listing.targets, equal_nan=True))  # type: ignore[arg-type]
        and old.failures == listing.failures
        and old.ignored == listing.ignored
    )


Seen = dict[int, tuple[bytes, FileStat] | str]


def hash_known(
    listing: Listing, changes: ChangeSet, store: StoreWriter | StoreReader, *, before: Samples | None, seen: Seen
) -> None:
    """Read and hash the files of `changes.todo` up to the first that needs the network; those before it are settled.

    So renamed, re-labelled and merely touched folders never load a backbone, and a build that has to extract reads no
    file twice but that one. Bytes that failed before fail again, unread ones get their reason. `seen`: what was read
    already for another cache; it is added to.
    """
    from tqdm import tqdm

    if len(store) == 0:
        return
    failed = {}
    if before is not None:
        failed = {before.digests[index].tobytes(): reason for index, reason in before.failures.items()}
    unread = changes.todo[[int(index) not in seen for index in changes.todo]] if seen else changes.todo
    noun = find_input(listing.input).noun
    with (
        input_reader(listing.absolute_paths(unread)) as read,
        tqdm(total=len(changes.todo), desc="changed files", unit=noun, disable=None, delay=1) as bar,
    ):
        position = 0
        for done, number in enumerate(changes.todo):
            index = int(number)
            if index not in seen:
                seen[index] = _identified(read, position)
                position += 1
            outcome = seen[index]
            if isinstance(outcome, str):
                changes.settle(index, bytes(32), (0, 0, 0, 0), outcome)
                continue
            digest, status = outcome
            reason = None if digest in store else failed.get(digest)
            if reason is None and digest not in store:
                changes.todo = changes.todo[done:]
                return
            changes.settle(index, digest, status, reason)
            bar.update()
    changes.todo = changes.todo[:0]


def _identified(read: Callable[[int], tuple[bytes, FileStat]], position: int) -> tuple[bytes, FileStat] | str:
    """Return a file's digest and stat, or why it cannot be read."""
    try:
        data, stat = read(position)
    except SampleError as error:
        return str(error)
    return hashlib.sha256(data).digest(), stat
