"""A table of images as a `Listing`: its rows, the files that they name, each once, and their labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from featcache.datasets.labels import read_labels
from featcache.datasets.listing import Listing, Task, counted, printable
from featcache.datasets.split_names import split_codes
from featcache.datasets.splits import NO_SPLIT
from featcache.datasets.table import TableRow, read_table, refuse_other_encoding
from featcache.datasets.table_files import FoundFile, TableFolder
from featcache.datasets.walk import has_image_extension
from featcache.errors import InputError


def scan_table(source: str, task: Task | None, scanned_ns: int, *, splits: bool) -> Listing:
    """Return the listing of the table at `source`; `splits`: whether its column of that name is read.

    Raises `InputError`, with the row, where a row contradicts another or no row names an image.
    """
    root = os.path.dirname(source)
    folder = TableFolder(root)
    table = read_table(source, is_image=folder.names_an_image)
    notes = list(table.notes)
    rows = table.rows if splits else [replace(row, split="") for row in table.rows]
    if not rows:
        raise InputError(f"a table must have a row below its header; {source!r} has none")
    folder.prepare(row.path for row in rows)
    found = [folder.find(row.path) for row in rows]
    if all(isinstance(one, str) for one in found) and (above := _common_folder(folder, rows)):
        notes.append(f"the paths are read below {printable(above)}/, where the files are")
        found = [folder.find(f"{above}/{row.path.strip()}") for row in rows]

    failures: list[tuple[str, str]] = []
    kept: dict[str, tuple[TableRow, FoundFile]] = {}
    ignored, repeats, first_failure = 0, [], None
    for row, one in zip(rows, found, strict=True):
        if isinstance(one, str):
            refuse_other_encoding(row.path, source, row.line)
            failures.append((row.path, one))
            first_failure = first_failure or (row, one)
        elif not has_image_extension(one.path):
            ignored += 1
            first_failure = first_failure or (row, "has no image extension")
        elif one.path in kept:
            repeats.append(_merged(kept[one.path][0], row, source))
        else:
            kept[one.path] = (row, one)
    if not kept:
        assert first_failure is not None
        row, why = first_failure
        raise InputError(
            f"IMAGES must hold at least one image; none of {counted(len(rows), 'row')} of {source!r} names one, first "
            f"failing row {row.line}, {printable(row.path)!r}: {why}"
        )
    if repeats:
        earlier, row = repeats[0]
        notes.append(
            f"{counted(len(repeats), 'row')} repeating another merged, first row {row.line}, as row {earlier.line}"
        )
    spelled = [(row, one) for row, one in kept.values() if one.spelled]
    if spelled:
        row, one = spelled[0]
        notes.append(
            f"{len(spelled)} of {counted(len(rows), 'path')} spelled otherwise than the file, first row {row.line}: "
            f"{printable(row.path)!r} is {printable(one.path)!r}"
        )
    paths = sorted(kept)
    kept_rows = [kept[path][0] for path in paths]
    labels = read_labels(kept_rows, task)
    return Listing(
        root=root,
        task=labels.task,
        classes=labels.classes,
        paths=paths,
        stats=np.array([kept[path][1].stat for path in paths], dtype=np.int64).reshape(len(paths), 4),
        labels=labels.labels,
        targets=labels.targets,
        given_splits=np.array(_given_splits(kept_rows), dtype=np.uint8),
        ignored=ignored,
        failures=tuple(failures),
        scanned_ns=scanned_ns,
        notes=(*notes, *labels.notes),
    )


def _common_folder(folder: TableFolder, rows: Sequence[TableRow]) -> str | None:
    """Return the one folder below which every row that is there at all is found, by the first that is; None else."""
    return next((above for row in rows[:10] if (above := folder.common_folder(row.path))), None)


def _merged(earlier: TableRow, row: TableRow, source: str) -> tuple[TableRow, TableRow]:
    """Return two rows of one file that say the same; `InputError` where they do not."""
    for what, first, second in (("label", earlier.label, row.label), ("split", earlier.split, row.split)):
        if first != second:
            raise InputError(
                f"each path may stand once in {source!r}; {printable(row.path)!r} stands in row {earlier.line} with "
                f"the {what} {first!r}, in row {row.line} with {second!r}: keep one, or separate labels by ';'"
            )
    return earlier, row


def _given_splits(rows: Sequence[TableRow]) -> list[int]:
    codes = {"": NO_SPLIT} | split_codes({row.split for row in rows if row.split})
    for row in rows:
        if row.split not in codes:
            raise InputError(
                f"split must be one of train, val, test or empty, got {row.split!r} in row {row.line} for "
                f"{printable(row.path)!r}: put quotes around a label that holds the separator, or pass --no-splits"
            )
    return [codes[row.split] for row in rows]
