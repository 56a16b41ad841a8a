"""Samples of a data set: paths with labels and a split each, and what was last seen of them on disk.

The bytes behind a sample are known by their sha256 digest, and everything heavy is keyed by that digest. So nothing
here looks inside an image, and a rename, a new label or a new split costs nothing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.datasets.listing import Listing, Task, printable
from featcache.datasets.splits import split_code
from featcache.errors import CorruptError, FormatError, InputError, MissingError
from featcache.images.read import ImageFile, ImageSource
from featcache.system.files import write_atomically
from featcache.system.json import parse_json
from featcache.system.sources.opening import input_exists

_LOOKED_FOR = 100  # images, before a folder counts as one that does not hold them


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of one data set in a cache: a `Listing` whose bytes are known, with a split each.

    `digests` (n, 32) uint8: sha256 of each file's bytes (zeros where it could not be read). `splits` (n,) uint8: index
    into `SPLITS`. `failures`: index → reason, for samples that have no row. `called`: the folder's name,
    where it was moved and the data set kept another. The other fields are the `Listing`'s.
    """

    dataset: str
    listing: Listing
    digests: npt.NDArray[np.uint8]
    splits: npt.NDArray[np.uint8]
    failures: dict[int, str]
    split_seed: int
    called: str | None = None

    def __post_init__(self) -> None:
        if self.digests.shape != (len(self.listing), 32) or self.splits.shape != (len(self.listing),):
            raise InputError(f"samples must have a digest and a split each, got {self.digests.shape!r}")

    def __len__(self) -> int:
        return len(self.listing)

    @property
    def root(self) -> str:
        """The folder that paths are relative to."""
        return self.listing.root

    @property
    def task(self) -> Task:
        """What the labels are for."""
        return self.listing.task

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names (or target names), in label order."""
        return self.listing.classes

    @property
    def paths(self) -> list[str]:
        """Relative paths, sorted."""
        return self.listing.paths

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(n,) int64 label of each sample, -1 for none."""
        return self.listing.labels.astype(np.int64)

    @property
    def targets(self) -> npt.NDArray[np.float32] | None:
        """(n, n_targets) float32 for multi-label and regression sets, else None."""
        return self.listing.targets

    @property
    def decoded(self) -> npt.NDArray[np.bool_]:
        """(n,) whether the sample has not failed."""
        mask = np.ones(len(self), dtype=bool)
        mask[list(self.failures)] = False
        return mask

    def has_split(self, split: str) -> bool:
        """Whether any sample that did not fail is in `split`."""
        return bool((self.decoded & (self.splits == split_code(split))).any())

    def at(self, root: str) -> Samples:
        """Return these samples with their files looked for below the folder `root`."""
        return dataclasses.replace(self, listing=dataclasses.replace(self.listing, root=root))

    def require_images(self) -> None:
        """Raise `MissingError` where the folder of the images is gone, or holds none of the first of them."""
        if not len(self) or self.lie_there():
            return
        raise MissingError(
            f"the images of the data set {self.dataset!r} must lie in {printable(self.root)!r} as when they were "
            f"cached, {printable(self.paths[0])!r} and others are not there: pass --images with the folder they are in "
            "now, or build the cache again from it"
        )

    def lie_there(self) -> bool:
        """Return whether any of the first images is where it was listed."""
        return any(input_exists(self.listing.absolute(index)) for index in range(min(len(self), _LOOKED_FOR)))

    def sources(self, indices: Iterable[int]) -> list[ImageSource]:
        """Return a reader of the bytes of each sample at `indices`, which fails where a file has others by now."""
        return [ImageFile(self.listing.absolute(index), self.digests[index].tobytes()) for index in map(int, indices)]

    def label_conflicts(self) -> list[list[str]]:
        """Return groups of paths whose bytes are equal but whose labels differ."""
        return [
            [self.paths[i] for i in group]
            for group in self._duplicates()
            if len({self._label_key(i) for i in group}) > 1
        ]

    def split_leaks(self) -> list[list[str]]:
        """Return groups of paths whose bytes are equal but whose splits differ."""
        return [
            [self.paths[i] for i in group]
            for group in self._duplicates()
            if len({int(self.splits[i]) for i in group}) > 1
        ]

    def _label_key(self, index: int) -> object:
        targets = self.listing.targets
        return int(self.listing.labels[index]) if targets is None else targets[index].tobytes()

    def _duplicates(self) -> Iterator[list[int]]:
        keys = np.ascontiguousarray(self.digests).view("V32").ravel()
        readable = np.flatnonzero(self.digests.any(axis=1))
        if not len(readable):
            return
        order = readable[np.argsort(keys[readable].view("S32"), kind="stable")]
        edges = np.flatnonzero(keys[order[1:]] != keys[order[:-1]]) + 1
        for group in np.split(order, edges):
            if len(group) > 1:
                yield group.tolist()


# --- file form ------------------------------------------------------------------------------------------------------

SAMPLES_VERSION = 2
_UNCHECKED_VERSION = 1  # as version 2, without the checksum: still read


_MEND = "featcache verify --repair, then build"


def save_samples(samples: Samples, path: Path) -> None:
    """Write `samples` to `path` (safetensors), atomically: a reader sees the old file or the new one."""
    failures = {str(index): reason for index, reason in samples.failures.items()}
    header = {"version": SAMPLES_VERSION, **samples_header(samples), "failures": failures}
    write_atomically(path, pack_arrays(header, samples_arrays(samples)))


def load_samples(path: Path) -> Samples:
    """Return the samples that `save_samples` wrote; `FormatError` or `CorruptError` for another file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, ValueError) as error:
        raise CorruptError(f"{str(path)!r} must be a sample list, got other bytes ({error}): {_MEND}") from error
    header = _checked_header(metadata, arrays, place=str(path))
    failures = {int(index): reason for index, reason in header["failures"].items()}
    return samples_of(header, arrays, failures)


def samples_header(samples: Samples) -> dict[str, Any]:
    """Return what is said of a data set as a whole, as JSON values."""
    listing = samples.listing
    return {
        "dataset": samples.dataset,
        "root": listing.root,
        "task": listing.task,
        "classes": list(listing.classes),
        "ignored": listing.ignored,
        "listing_failures": [list(failure) for failure in listing.failures],
        "scanned_ns": listing.scanned_ns,
        "split_seed": samples.split_seed,
        **({} if samples.called is None else {"called": samples.called}),
        **({} if listing.input == "image" else {"input": listing.input}),
    }


def samples_arrays(samples: Samples) -> dict[str, npt.NDArray[Any]]:
    """Return what is said of each sample, by name; ``paths`` is one text, a zero byte between two."""
    listing = samples.listing
    blob = "\0".join(listing.paths).encode("utf-8", "surrogateescape")
    arrays: dict[str, npt.NDArray[Any]] = {
        "paths": np.frombuffer(blob, dtype=np.uint8),
        "stats": listing.stats,
        "digests": np.ascontiguousarray(samples.digests),
        "labels": listing.labels,
        "given_splits": listing.given_splits,
        "splits": samples.splits,
    }
    if listing.targets is not None:
        arrays["targets"] = listing.targets
    return arrays


def samples_of(header: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]], failures: dict[int, str]) -> Samples:
    """Return the samples of which `samples_header` and `samples_arrays` gave this."""
    blob = arrays["paths"].tobytes().decode("utf-8", "surrogateescape")
    listing = Listing(
        root=header["root"],
        task=header["task"],
        classes=tuple(header["classes"]),
        paths=blob.split("\0") if blob else [],
        stats=arrays["stats"],
        labels=arrays["labels"],
        targets=arrays.get("targets"),
        given_splits=arrays["given_splits"],
        ignored=header["ignored"],
        failures=tuple((name, reason) for name, reason in header["listing_failures"]),
        scanned_ns=header["scanned_ns"],
        input=header.get("input", "image"),
    )
    return Samples(
        header["dataset"],
        listing,
        arrays["digests"],
        arrays["splits"],
        failures,
        header["split_seed"],
        header.get("called"),
    )


def pack_arrays(header: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Return a safetensors file of `arrays` with `header` in its metadata, under a checksum."""
    from safetensors.numpy import save

    text = json.dumps(header, ensure_ascii=True)
    return bytes(save(dict(arrays), metadata={"featcache": text, "crc32c": str(_checksum(text, arrays))}))


def unpack_arrays(data: bytes, *, place: str) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Return the header and the arrays that `pack_arrays` packed; `FormatError` or `CorruptError` for other bytes."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(data)
        metadata = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    except (SafetensorError, ValueError) as error:
        raise CorruptError(f"{place!r} must be a sample list, got other bytes ({error}): {_MEND}") from error
    return _checked_header(metadata, arrays, place=place), arrays


def _checked_header(
    metadata: Mapping[str, str], arrays: Mapping[str, npt.NDArray[Any]], *, place: str
) -> dict[str, Any]:
    try:
        header = parse_json(metadata.get("featcache", "{}"))
    except ValueError as error:
        raise CorruptError(f"{place!r} must be a sample list, got other bytes ({error}): {_MEND}") from error
    if not isinstance(header, dict):
        raise CorruptError(f"{place!r} must be a sample list, its header is no JSON object: {_MEND}")
    intact = metadata.get("crc32c") == str(_checksum(metadata.get("featcache", ""), arrays))
    if not intact and ("crc32c" in metadata or header.get("version") != _UNCHECKED_VERSION):
        raise CorruptError(f"{place!r} must match its checksum, it does not: {_MEND}")
    if header.get("version") not in (_UNCHECKED_VERSION, SAMPLES_VERSION):
        raise FormatError(
            f"{place!r} must be a sample list of version {SAMPLES_VERSION}, got {header.get('version')!r}: "
            "open it with the featcache that wrote it"
        )
    return header


def _checksum(header: str, arrays: Mapping[str, npt.NDArray[Any]]) -> int:
    """Return the crc32c over the header's text, then, by name, each array's ``NAME DTYPE SHAPE`` and bytes."""
    from crc32c import crc32c

    checksum = crc32c(header.encode())
    for name, array in sorted(arrays.items()):
        shape = ",".join(str(side) for side in array.shape)
        checksum = crc32c(f"{name} {array.dtype.name} {shape}".encode(), checksum)
        checksum = crc32c(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, checksum)
    return checksum


def subset(samples: Samples, indices: Iterable[int]) -> Samples:
    """Return the samples at `indices` (sorted), as a data set of the same name and classes."""
    rows = np.sort(np.fromiter(indices, dtype=np.int64))
    listing = samples.listing
    kept = dataclasses.replace(
        listing,
        paths=[listing.paths[i] for i in rows],
        stats=listing.stats[rows],
        labels=listing.labels[rows],
        targets=None if listing.targets is None else listing.targets[rows],
        given_splits=listing.given_splits[rows],
    )
    failures = {new: samples.failures[int(old)] for new, old in enumerate(rows) if int(old) in samples.failures}
    return Samples(samples.dataset, kept, samples.digests[rows], samples.splits[rows], failures, samples.split_seed)
