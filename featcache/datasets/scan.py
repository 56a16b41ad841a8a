"""Scan an image folder or a table into a `Listing`, without opening a single image."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Collection

from featcache.datasets.folder import scan_folder
from featcache.datasets.listing import Listing, Task
from featcache.datasets.remarks import notes_on_classes, without_foreign_labels
from featcache.datasets.table_scan import scan_table
from featcache.datasets.walk import is_table
from featcache.errors import InputError, MissingError


def scan(
    images: str | os.PathLike[str],
    *,
    task: Task | None = None,
    splits: bool = True,
    known_classes: Collection[str] = (),
) -> Listing:
    """Return the images of a folder or a CSV file, listed without opening one.

    Parameters
    ----------
    images : path
        A folder of class folders, of ``train/ val/ test/`` (``training``, ``dev``, ``test_set``, …) above class
        folders, or a flat one (unlabelled); or a CSV file with the columns ``path,label[,split]``, whose paths are
        relative to it and cannot leave its folder, and whose labels ``;`` separates (``multilabel``, or numbers for
        ``regression``). Extensions are matched whatever their case. Symbolic links are followed.
    task : {"classification", "multilabel", "regression"}, optional
        What the labels of a CSV are for; by default read off them.
    splits : bool
        Whether folders, or the column ``split``, may say the splits; else folders named ``train`` are classes.
    known_classes : collection of str
        Names that are classes wherever they stand: those of a model.

    Returns
    -------
    Listing
        Sorted by path. What cannot be listed, such as a link that leads back to a folder above itself, is a recorded
        failure; what could be read in two ways is said in its `notes`.

    Raises
    ------
    MissingError
        Where `images` does not exist.
    InputError
        Where it holds no image, is no folder or CSV, or has labels that the task does not allow.

    Examples
    --------
    >>> from featcache.datasets.scan import scan
    >>> listing = scan("photos")
    >>> len(listing), listing.classes, listing.paths[0]
    (24, ('cat', 'dog'), 'cat/00.jpg')
    """
    scanned_ns = time.time_ns()
    source = os.path.abspath(os.fspath(images))
    if not os.path.exists(source):
        raise MissingError(f"IMAGES must be a folder or a CSV file; {os.fspath(images)!r} does not exist")
    if os.path.isdir(source):
        if task not in (None, "classification"):
            raise InputError(f"task {task!r} needs a CSV with labels; {os.fspath(images)!r} is a folder")
        listing = scan_folder(source, scanned_ns, splits=splits, known=frozenset(known_classes))
        if not known_classes:  # else the model says which classes there are
            listing = without_foreign_labels(listing)
    elif is_table(source):
        listing = scan_table(source, task, scanned_ns, splits=splits)
    else:
        raise InputError(f"IMAGES must be a folder of images or a .csv file, got the file {os.fspath(images)!r}")
    if not listing.paths:
        raise InputError(
            f"IMAGES must hold at least one image (.jpg, .png, .webp, …); {os.fspath(images)!r} "
            f"has none among {listing.ignored} other files: name the folder above the class folders"
        )
    return dataclasses.replace(listing, notes=(*listing.notes, *notes_on_classes(listing)))
