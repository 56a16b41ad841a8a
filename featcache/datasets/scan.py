"""Scan an image folder or a CSV file into a `Listing`, without opening a single image."""

from __future__ import annotations

import csv
import os
import stat as stat_module
import time
from array import array
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from featcache.datasets.listing import Listing, Task
from featcache.datasets.splits import NO_SPLIT
from featcache.errors import InputError, MissingError

# Formats that are not read stand here too (heic): such a photo is a recorded failure, not silently left out.
IMAGE_EXTENSIONS = frozenset(
    "avif bmp dib gif heic heif hif j2k jfif jp2 jpe jpeg jpg mpo pbm pgm png pnm ppm qoi tga tif tiff webp".split(" ")  # noqa: SIM905
)

_TYPE_BITS = 0o170000  # of a file's mode

_ALIASES = {"train": 0, "val": 1, "valid": 1, "validation": 1, "test": 2}


def scan(images: str | os.PathLike[str], *, task: Task | None = None) -> Listing:
    """Return the images of a folder or a CSV file, listed without opening one.

    Parameters
    ----------
    images : path
        A folder of class folders, of ``train/ val/ test/`` (``valid``, ``validation``) above class folders, or a flat
        one (unlabelled); or a CSV file with the columns ``path,label[,split]``, whose paths are relative to it and
        cannot leave its folder, and whose labels ``;`` separates (``multilabel``, or numbers for ``regression``).
        Extensions are matched whatever their case. Symbolic links are followed.
    task : {"classification", "multilabel", "regression"}, optional
        What the labels of a CSV are for; by default read off them.

    Returns
    -------
    Listing
        Sorted by path. What cannot be listed, such as a link that leads back to a folder above itself, is a recorded
        failure.

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
        listing = _scan_folder(source, scanned_ns)
    elif source.lower().endswith(".csv"):
        listing = _scan_csv(source, task, scanned_ns)
    else:
        raise InputError(f"IMAGES must be a folder of images or a .csv file, got the file {os.fspath(images)!r}")
    if not listing.paths:
        raise InputError(
            f"IMAGES must hold at least one image (.jpg, .png, .webp, …); {os.fspath(images)!r} "
            f"has none among {listing.ignored} other files: name the folder above the class folders"
        )
    return listing


class _FolderFiles:
    """The image files of a folder, a folder after another, and what else there was."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.numbers = array("q")  # size, mtime_ns, ctime_ns, inode of each
        self.folders: list[str] = []
        self.counts: list[int] = []  # images in each of `folders`
        self.failures: list[tuple[str, str]] = []
        self.ignored = 0


def _scan_folder(root: str, scanned_ns: int) -> Listing:
    files = _FolderFiles()
    _walk(root, "", (), files)
    order = sorted(range(len(files.paths)), key=files.paths.__getitem__)
    paths = [files.paths[i] for i in order]
    stats = np.array(files.numbers, dtype=np.int64).reshape(-1, 4)[order]
    folder = np.repeat(np.arange(len(files.folders)), files.counts)[order]
    parts = [name.split("/") if name else [] for name in files.folders]
    top = {path[0] for path in parts if path}
    has_splits = bool(top) and all(name.lower() in _ALIASES for name in top)
    splits = [_ALIASES[path[0].lower()] if has_splits and path else NO_SPLIT for path in parts]
    names = [path[int(has_splits)] if len(path) > has_splits else None for path in parts]
    classes = tuple(sorted({name for name in names if name is not None}))
    index: dict[str | None, int] = {name: i for i, name in enumerate(classes)}
    labels = np.array([index.get(name, -1) for name in names], dtype=np.int32)
    return Listing(
        root, "classification", classes, paths, stats, labels[folder], None, np.array(splits, dtype=np.uint8)[folder],
        files.ignored, tuple(files.failures), scanned_ns,
    )  # fmt: skip


def _walk(root: str, prefix: str, above: tuple[tuple[int, int], ...], files: _FolderFiles) -> None:
    """Add the image files below ``root/prefix`` to `files`."""
    folder = os.path.join(root, prefix) if prefix else root
    try:
        status = os.stat(folder)
        here = (status.st_dev, status.st_ino)
        if here in above:
            files.failures.append((prefix, "a symbolic link that leads back to a folder above it"))
            return
        entries = os.scandir(folder)
    except OSError as error:
        files.failures.append((prefix or ".", f"cannot be listed: {error.strerror}"))
        return
    start, inner, before = f"{prefix}/" if prefix else "", [], len(files.paths)
    append, extend, extensions = files.paths.append, files.numbers.extend, IMAGE_EXTENSIONS
    with entries:
        for entry in entries:  # the loop of a build with nothing to do: every step counts
            name = entry.name
            try:
                if entry.is_dir():
                    if not name.startswith("."):
                        inner.append(start + name)
                    continue
                if name.rpartition(".")[2].lower() not in extensions:
                    files.ignored += 1
                    continue
                status = entry.stat()
            except OSError as error:  # a link to itself, or no rights
                files.failures.append((start + name, f"cannot be read: {error.strerror}"))
                continue
            if status.st_mode & _TYPE_BITS == stat_module.S_IFREG:
                append(start + name)
                extend((status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
            else:
                files.failures.append((start + name, "not a regular file"))
    if len(files.paths) > before:
        files.folders.append(prefix)
        files.counts.append(len(files.paths) - before)
    for name in inner:
        _walk(root, name, (*above, here), files)


def _scan_csv(source: str, task: Task | None, scanned_ns: int) -> Listing:
    root = os.path.dirname(source)
    rows = _read_csv(source)
    if task is None:
        task = "multilabel" if any(";" in label for _, label, _ in rows) else "classification"
    failures: list[tuple[str, str]] = []
    kept: dict[str, tuple[str, str, tuple[int, int, int, int]]] = {}
    ignored = 0
    for path, label, split in rows:
        inside = _inside(path)
        if inside is None:
            failures.append((path, "the path leaves the folder of the CSV"))
            continue
        if inside.rpartition(".")[2].lower() not in IMAGE_EXTENSIONS:
            ignored += 1
            continue
        if inside in kept:
            raise InputError(f"each path may stand once in {source!r}; {inside!r} stands again: separate labels by ';'")
        try:
            status = os.stat(os.path.join(root, inside))
        except OSError as error:
            failures.append((inside, f"cannot be read: {error.strerror}"))
            continue
        if not os.path.realpath(os.path.join(root, inside)).startswith(os.path.realpath(root) + os.sep):
            failures.append((inside, "a symbolic link that leaves the folder of the CSV"))
            continue
        if not stat_module.S_ISREG(status.st_mode):
            failures.append((inside, "not a regular file"))
            continue
        kept[inside] = (label, split, (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
    paths = sorted(kept)
    stats = np.array([kept[path][2] for path in paths], dtype=np.int64).reshape(len(paths), 4)
    splits = np.array([_given_split(kept[path][1], path) for path in paths], dtype=np.uint8)
    classes, labels, targets = _csv_labels(task, paths, [kept[path][0] for path in paths])
    return Listing(root, task, classes, paths, stats, labels, targets, splits, ignored, tuple(failures), scanned_ns)


def _read_csv(source: str) -> list[tuple[str, str, str]]:
    try:
        with open(source, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or []
            if "path" not in header or "label" not in header:
                raise InputError(f"a CSV must have the columns path,label[,split]; {source!r} has {list(header)!r}")
            return [
                (row["path"] or "", (row["label"] or "").strip(), (row.get("split") or "").strip()) for row in reader
            ]
    except csv.Error as error:
        raise InputError(f"{source!r} must be a readable CSV file, got: {error}") from error


def _inside(path: str) -> str | None:
    """Return `path` normalised, or None where it is absolute, empty or climbs out of its root."""
    pure = PurePosixPath(path.replace("\\", "/") if os.sep == "\\" else path)
    if not path or pure.is_absolute() or "\0" in path:
        return None
    parts: list[str] = []
    for part in pure.parts:
        if part != "..":
            parts.append(part)
        elif parts:
            parts.pop()
        else:
            return None
    return "/".join(parts) or None


def _given_split(name: str, path: str) -> int:
    if not name:
        return NO_SPLIT
    if name.lower() not in _ALIASES:
        raise InputError(f"split must be one of {sorted(_ALIASES)!r} or empty, got {name!r} for {path!r}")
    return _ALIASES[name.lower()]


def _csv_labels(
    task: Task, paths: Sequence[str], texts: Sequence[str]
) -> tuple[tuple[str, ...], npt.NDArray[np.int32], npt.NDArray[np.float32] | None]:
    """Return (class names, labels, targets) of the CSV's label column."""
    values = [[part.strip() for part in text.split(";") if part.strip()] for text in texts]
    unlabelled = np.full(len(paths), -1, dtype=np.int32)
    if task == "regression":
        width = max((len(value) for value in values), default=0)
        targets = np.full((len(paths), width), np.nan, dtype=np.float32)
        for i, value in enumerate(values):
            if value and len(value) != width:
                raise InputError(f"each label must hold {width} numbers, got {texts[i]!r} for {paths[i]!r}")
            for j, number in enumerate(value):
                try:
                    targets[i, j] = float(number)
                except ValueError as error:
                    raise InputError(f"regression labels must be numbers, got {number!r} for {paths[i]!r}") from error
                unlabelled[i] = 0
        return tuple(f"target{j}" if width > 1 else "target" for j in range(width)), unlabelled, targets
    classes = tuple(sorted({part for value in values for part in value}))
    index = {name: i for i, name in enumerate(classes)}
    if task == "classification":
        for path, text, value in zip(paths, texts, values, strict=True):
            if len(value) > 1:
                raise InputError(f"a label must be one class with task 'classification', got {text!r} for {path!r}")
        return classes, np.array([index[value[0]] if value else -1 for value in values], dtype=np.int32), None
    targets = np.zeros((len(paths), len(classes)), dtype=np.float32)
    for i, value in enumerate(values):
        targets[i, [index[part] for part in value]] = 1.0
        unlabelled[i] = index[value[0]] if value else -1
    return classes, unlabelled, targets
