"""What files of many images hold, tars and Parquet files alike, as one `Listing`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featcache.datasets.labels import labels_of
from featcache.datasets.listing import Listing, Task
from featcache.datasets.table import TableRow
from featcache.errors import FeatcacheError, MissingError
from featcache.system.sources.interface import FileStat


@dataclass(frozen=True, slots=True)
class ContainedImage:
    """An image in such a file: its `path`, what names its content, its `labels` as texts, and its split's index."""

    path: str
    stat: FileStat
    labels: list[str]
    split: int


def listing_of_contained(
    root: str,
    images: Sequence[ContainedImage],
    scanned_ns: int,
    *,
    task: Task | None,
    ignored: int,
    failures: Sequence[tuple[str, str]],
    notes: Sequence[str] = (),
) -> Listing:
    """Return the listing of labelled `images`, by path; `InputError` where the labels do not suit the task."""
    found = sorted(images, key=lambda image: image.path)
    rows = [TableRow(i, image.path, ";".join(image.labels), "") for i, image in enumerate(found, start=1)]
    labels = labels_of(rows, [image.labels for image in found], task)
    return Listing(
        root=root,
        task=labels.task,
        classes=labels.classes,
        paths=[image.path for image in found],
        stats=np.array([image.stat for image in found], dtype=np.int64).reshape(-1, 4),
        labels=labels.labels,
        targets=labels.targets,
        given_splits=np.array([image.split for image in found], dtype=np.uint8),
        ignored=ignored,
        failures=tuple(failures),
        scanned_ns=scanned_ns,
        notes=(*notes, *labels.notes),
    )


def unreadable(error: FeatcacheError) -> str:
    """Return why a file that raised `error` could not be read, for the list of failures."""
    return "does not exist" if isinstance(error, MissingError) else str(error)
