"""Golden samples: a few JPEGs or texts that travel with a model, and the logits they must give wherever it runs.

A directory of ``00.jpg`` (``00.txt``) … and ``golden.json``: ``kind`` (``photos`` or ``synthetic``), ``computed_by``
(what gave the logits) and per sample its file, sha256 and logits. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from featcache.errors import CorruptError, InputError, MissingError, SampleError
from featcache.extract.inputs.deployed import DeployedInput
from featcache.images.read import read_image_bytes
from featcache.system.json import DocumentKind, read_document
from featcache.system.members import read_member

if TYPE_CHECKING:
    from featcache.cache import FeatureCache

GOLDEN_FILE = "golden.json"
GOLDEN_COUNT = 16
_DOCUMENT = DocumentKind(
    "golden samples",
    make="make them with 'featcache merge --golden'",
    renew="merge or export again",
    keys=("kind", "computed_by", "images"),
)

GoldenKind = Literal["photos", "synthetic", "none"]


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """Files of one ending and the logits (n, n_classes) float32 they gave; `computed_by` names what computed them."""

    kind: str
    computed_by: str
    images: tuple[bytes, ...]
    logits: npt.NDArray[np.float32]
    suffix: str = ".jpg"

    def __post_init__(self) -> None:
        if self.logits.ndim != 2 or len(self.logits) != len(self.images):
            raise InputError(f"logits must be one row per golden image ({len(self.images)}), got {self.logits.shape!r}")

    def files(self) -> dict[str, bytes]:
        """Return the bytes of every file of the directory form, by name."""
        names = [f"{index:02d}{self.suffix}" for index in range(len(self.images))]
        entries = [
            {"file": name, "sha256": hashlib.sha256(data).hexdigest(), "logits": [float(value) for value in row]}
            for name, data, row in zip(names, self.images, self.logits, strict=True)
        ]
        document = {"kind": self.kind, "computed_by": self.computed_by, "images": entries}
        text = json.dumps(document, indent=1, allow_nan=False) + "\n"
        return {**dict(zip(names, self.images, strict=True)), GOLDEN_FILE: text.encode()}

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Golden:
        """Return the golden samples in `folder`.

        Raises `MissingError` where a file is not there, `CorruptError` where an image is not the one that was stored
        or ``golden.json`` is not what `files` returned.
        """
        place = Path(folder)
        document = read_document(place / GOLDEN_FILE, _DOCUMENT)
        try:
            entries = document["images"]
            images = tuple(
                read_member(place, Path(entry["file"]).name, renew=_DOCUMENT.renew, sha256=str(entry["sha256"]))
                for entry in entries
            )
            logits = np.array([entry["logits"] for entry in entries], dtype=np.float32)
            suffix = Path(entries[0]["file"]).suffix if entries else ".jpg"
            return cls(document["kind"], document["computed_by"], images, logits, suffix)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CorruptError(
                f"{GOLDEN_FILE} in {str(place)!r} must be what featcache wrote, got {error!r:.200}"
            ) from error


def golden_inputs(
    cache: FeatureCache, deployed: DeployedInput, *, dataset: str | None = None, count: int = GOLDEN_COUNT
) -> tuple[bytes, ...]:
    """Return up to `count` inputs of the data set: of test where it has some, one class after another.

    Each is what `deployed` makes of it to travel. Files that changed since the build are passed over; `MissingError`
    where none is left.
    """
    samples = cache.samples(dataset)
    samples.require_images()
    for split in ("test", "val", "train"):
        indices = cache.select(split=split, dataset=dataset, labelled=False).indices
        if len(indices):
            break
    digests = [samples.digests[index].tobytes() for index in indices]
    rank: dict[int, int] = {}
    order = []
    for digest, index in sorted(zip(digests, indices.tolist(), strict=True)):
        label = int(samples.labels[index])
        rank[label] = rank.get(label, -1) + 1  # the how-manieth of its class, so that every class comes early
        order.append((rank[label], label, digest, index))
    photos: list[bytes] = []
    for _, _, digest, index in sorted(order):
        if len(photos) == count:
            break
        try:
            photos.append(deployed.golden(read_image_bytes(samples.listing.absolute(index), digest=digest)))
        except SampleError:
            continue
    if not photos:
        raise MissingError(
            f"golden samples must be read from {samples.root!r}, none is there unchanged: build the cache again or "
            "pass --golden synthetic"
        )
    return tuple(photos)
