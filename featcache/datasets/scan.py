"""Scan a place of images into a `Listing`, without reading a single image."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Collection, Sequence

from featcache.datasets.column_scan import scan_columns
from featcache.datasets.folder import scan_folder
from featcache.datasets.listing import Listing, Task, counted, printable
from featcache.datasets.object_walk import find_objects
from featcache.datasets.place import WHAT_IMAGES_MAY_BE, ImagesPlace, images_place
from featcache.datasets.remarks import notes_on_classes, without_foreign_labels
from featcache.datasets.saved_scan import scan_saved
from featcache.datasets.table_scan import scan_table
from featcache.datasets.tar_scan import scan_tars
from featcache.datasets.url_list import find_listed
from featcache.datasets.walk import find_files
from featcache.errors import InputError
from featcache.system.objects import ObjectPath


def scan(
    images: str | os.PathLike[str],
    *,
    task: Task | None = None,
    splits: bool = True,
    known_classes: Collection[str] = (),
) -> Listing:
    """Return the images of a folder, a CSV file or files of many images, listed without reading one.

    Parameters
    ----------
    images : path or URL
        A folder of class folders, of ``train/ val/ test/`` (``training``, ``dev``, ``test_set``, …) above class
        folders, or a flat one (unlabelled); or a CSV file with the columns ``path,label[,split]``, whose paths are
        relative to it and cannot leave its folder, and whose labels ``;`` separates (``multilabel``, or numbers for
        ``regression``); or a ``.txt`` file of paths and URLs. Extensions are matched whatever their case. Symbolic
        links are followed. Each may lie at ``s3://``, ``gs://`` or ``az://``, the files also at ``https://``. Or files
        of many images, one, a folder of them or a pattern such as ``shard-{000..009}.tar``: WebDataset tars (labels
        from ``.cls``, from ``label`` in ``.json``, or the folders within), Parquet files with a column of image bytes;
        and what ``save_to_disk`` of Hugging Face's datasets wrote.
    task : {"classification", "multilabel", "regression"}, optional
        What the labels of a CSV, of tars or of Parquet files are for; by default read off them.
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
        Where it holds no image, is nothing of the above, or has labels that the task does not allow.
    StorageError
        Where a storage denies it or does not answer.

    Examples
    --------
    >>> from featcache.datasets.scan import scan
    >>> listing = scan("photos")
    >>> len(listing), listing.classes, listing.paths[0]
    (24, ('cat', 'dog'), 'cat/00.jpg')
    """
    scanned_ns = time.time_ns()
    place = images_place(images)
    known = frozenset(known_classes)
    if place.kind == "folder":
        listing = _scan_below(place, scanned_ns, task=task, splits=splits, known=known)
    elif place.kind == "table":
        listing = scan_table(place.source, task, scanned_ns, splits=splits)
    elif place.kind == "list":
        _refuse_task(task, place)
        files = find_listed(place.source, place.root)
        listing = scan_folder(place.root, files, scanned_ns, splits=splits, known=known)
    elif place.kind == "containers":
        listing = _scan_containers(place.root, place.files, scanned_ns, task=task, splits=splits, known=known)
    elif place.kind == "saved":
        listing = scan_saved(place.root, scanned_ns, task=task, splits=splits)
    else:
        raise InputError(f"IMAGES must be {WHAT_IMAGES_MAY_BE}, got the file {os.fspath(images)!r}")
    if place.kind != "table" and not known_classes:  # else the model says which classes there are
        listing = without_foreign_labels(listing)
    if not listing.paths:
        first = next((f"; {path!r} {why}" for path, why in listing.failures), "")
        raise InputError(
            f"IMAGES must hold at least one image (.jpg, .png, .webp, …); {os.fspath(images)!r} "
            f"has none among {listing.ignored} other files: name the folder above the class folders{first}"
        )
    return dataclasses.replace(listing, notes=(*listing.notes, *notes_on_classes(listing)))


def _scan_below(
    place: ImagesPlace, scanned_ns: int, *, task: Task | None, splits: bool, known: frozenset[str]
) -> Listing:
    """Return the listing of the images below a folder or prefix; without any, of the tars or Parquet files there."""
    files = find_objects(ObjectPath(place.root)) if place.is_remote else find_files(place.root)
    if files.containers and not files.paths:
        names = sorted(files.containers)
        return _scan_containers(place.root, names, scanned_ns, task=task, splits=splits, known=known)
    _refuse_task(task, place)
    listing = scan_folder(place.root, files, scanned_ns, splits=splits, known=known)
    if not files.containers:
        return listing
    shown = printable(files.containers[0])
    note = f"{counted(len(files.containers), 'file')} of many images beside the others left out, first {shown}"
    return dataclasses.replace(listing, notes=(*listing.notes, f"{note}: name it as IMAGES to read it"))


def _scan_containers(
    root: str,
    names: Sequence[str],
    scanned_ns: int,
    *,
    task: Task | None,
    splits: bool,
    known: frozenset[str],
) -> Listing:
    tars = [name for name in names if name.lower().endswith(".tar")]
    if not tars:
        return scan_columns(root, names, scanned_ns, task=task, splits=splits)
    if len(tars) < len(names):
        other = next(name for name in names if name not in tars)
        raise InputError(f"IMAGES must be tars or Parquet files, got both ({tars[0]!r}, {other!r}): name one of them")
    return scan_tars(root, tars, scanned_ns, task=task, splits=splits, known=known)


def _refuse_task(task: Task | None, place: ImagesPlace) -> None:
    if task not in (None, "classification"):
        raise InputError(f"task {task!r} needs a CSV with labels; {place.source!r} is a {place.kind}")
