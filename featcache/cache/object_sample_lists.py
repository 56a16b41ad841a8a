"""The samples of a cache on object storage: parts of at most 131,072 entries, and a small head that names them.

    samples/NAME/99999999999999999998.json    head 1 of data set NAME: its name counts down, the newest stands first
    parts/DIGEST.safetensors                  some entries, named by their content: what did not change is not put again

A list ends a part behind every entry whose image's digest begins with two zero bytes, so that an image more moves no
boundary but its own. A head is put where its number is free: of two builds that replace the same list, one is refused.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt

from featcache.cache.sample_lists import SampleLists
from featcache.datasets.samples import (
    SAMPLES_VERSION,
    Samples,
    pack_arrays,
    samples_arrays,
    samples_header,
    samples_of,
    subset,
    unpack_arrays,
)
from featcache.errors import CorruptError, ExistsError, FormatError, LockedError, MissingError
from featcache.system.files import safe_name
from featcache.system.json import DocumentKind, canonical_json, parse_document, with_checksum
from featcache.system.objects import ObjectPath

MOST_ENTRIES = 1 << 17
_HIGHEST = 10**20 - 1
_MEND = "featcache verify --repair, then build"
_HEAD = DocumentKind(
    "a list of samples",
    make="use the featcache that wrote it",
    renew=_MEND,
    format="featcache-samples",
    versions=(1,),
    keys=("parts", "samples"),
    checksum=True,
)


class ObjectSampleLists(SampleLists):
    """The lists below the URL `place`."""

    def __init__(self, place: ObjectPath) -> None:
        self._heads, self._parts = place / "samples", place / "parts"

    def names(self) -> list[str]:
        return sorted(unquote(name, errors="surrogateescape") for name in self._heads.children()[0])

    def stamp(self, dataset: str) -> int:
        return self._newest(self._heads / safe_name(dataset))

    def load(self, dataset: str) -> tuple[int, Samples]:
        number = self.stamp(dataset)
        return number, self._load(self._head(dataset, number))

    def replace(self, samples: Samples, *, before: int | None) -> None:
        parts = [self._put_part(part) for part in _parts(samples)]
        head = with_checksum(
            {
                "format": _HEAD.format,
                "version": 1,
                "samples": samples_header(samples),
                "parts": parts,
                "token": uuid.uuid4().hex,
            }
        )
        path = self._head(samples.dataset, 1 if before is None else before + 1)
        try:
            path.claim(json.dumps(head).encode())
        except ExistsError as error:
            raise LockedError(
                f"the data set {samples.dataset!r} must be replaced by one build at a time, another has replaced it "
                "meanwhile: build again (its rows are kept)"
            ) from error
        path.require_conditions()

    def check(self, *, repair: bool = False) -> Iterator[tuple[str, Samples | None, str | None]]:
        for name in self._heads.children()[0]:
            folder = self._heads / name
            try:
                samples = self._load(folder / f"{_HIGHEST - self._newest(folder):020d}.json")
            except CorruptError as error:
                yield str(folder), None, str(error)
                if repair:
                    for path, _ in list(folder.walk()):
                        path.unlink()
                continue
            except FormatError as error:
                yield str(folder), None, str(error)
                continue
            problem = None
            if safe_name(samples.dataset) != name:
                problem = f"{str(folder)!r} must hold that data set, it holds {samples.dataset!r}"
            yield str(folder), samples, problem

    def _head(self, dataset: str, number: int) -> ObjectPath:
        return self._heads / safe_name(dataset) / f"{_HIGHEST - number:020d}.json"

    def _newest(self, folder: ObjectPath) -> int:
        """Return the number of the newest head in `folder`; raises `MissingError` where there is none."""
        first = next(folder.walk(), None)
        if first is None:
            raise MissingError(f"{str(folder)!r} must hold a list of samples, it is empty: build the data set again")
        return _HIGHEST - int(first[0].stem)

    def _load(self, head: ObjectPath) -> Samples:
        document = parse_document(head.read_bytes(), _HEAD, place=str(head))
        arrays: list[dict[str, npt.NDArray[Any]]] = []
        failures: dict[int, str] = {}
        first = 0
        for part in document["parts"]:
            path = self._parts / f"{part['name']}.safetensors"
            try:
                header, some = unpack_arrays(path.read_bytes(), place=str(path))
            except MissingError as error:
                raise CorruptError(f"{str(path)!r} must be there, it is missing: {_MEND}") from error
            failures.update({first + int(index): reason for index, reason in header["failures"].items()})
            first += len(some["labels"])
            arrays.append(some)
        return samples_of(document["samples"], _joined(arrays), failures)

    def _put_part(self, part: Samples) -> dict[str, Any]:
        """Put a part, unless it is there; return what the head says of it."""
        failures = {str(index): reason for index, reason in part.failures.items()}
        header, arrays = {"version": SAMPLES_VERSION, "failures": failures}, samples_arrays(part)
        name = _content_name(header, arrays)
        path = self._parts / f"{name}.safetensors"
        if not path.exists():
            path.write_bytes(pack_arrays(header, arrays))
        return {"name": name, "entries": len(part)}


def _parts(samples: Samples) -> Iterator[Samples]:
    """Yield the entries part by part; one without entries where there are none."""
    if not len(samples):
        yield samples
    ends = np.flatnonzero((samples.digests[:, :2] == 0).all(axis=1) & samples.digests.any(axis=1)) + 1
    bounds = sorted({0, *ends.tolist(), len(samples)})
    for first, last in itertools.pairwise(bounds):
        for start in range(first, last, MOST_ENTRIES):
            yield subset(samples, range(start, min(start + MOST_ENTRIES, last)))


def _content_name(header: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> str:
    """Return a digest of what is in a part; of its bytes it would not do, as safetensors orders metadata at random."""
    state = hashlib.sha256(canonical_json(header).encode())
    for name, array in sorted(arrays.items()):
        state.update(f"{name} {array.dtype.name} {array.shape}".encode())
        state.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return state.hexdigest()


def _joined(parts: list[dict[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "paths"}
    joined["paths"] = np.frombuffer(b"\0".join(part["paths"].tobytes() for part in parts), dtype=np.uint8)
    return joined
