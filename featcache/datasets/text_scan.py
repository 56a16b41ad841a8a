"""A data set of texts: a table, a folder of tables called as splits, or class folders of ``.txt`` files."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from featcache.datasets.folder import scan_folder
from featcache.datasets.labels import read_labels
from featcache.datasets.listing import Listing, Task, counted
from featcache.datasets.split_names import split_codes
from featcache.datasets.splits import NO_SPLIT, SPLITS
from featcache.datasets.walk import find_files
from featcache.errors import InputError, MissingError, ReadError
from featcache.system.objects import ObjectPath, is_url
from featcache.system.sources.interface import FileStat
from featcache.system.sources.parts import open_parts
from featcache.system.sources.text_rows import row_name, row_stat, utf8
from featcache.system.sources.text_table import TEXT_TABLE_EXTENSIONS, TextRow, is_text_table, parse_text_table

TEXT = "text"
TEXT_EXTENSIONS = frozenset({"txt"})
_SHARD = re.compile(r"-\d+-of-\d+$")  # as in train-00000-of-00001.parquet


@dataclass(frozen=True, slots=True)
class _NamedRow:
    """A row with its name and stat; `code`: the split of the whole file, `NO_SPLIT` where its name says none."""

    name: str
    row: TextRow
    code: int
    stat: FileStat


def scan_texts(
    source: str | os.PathLike[str],
    *,
    task: Task | None = None,
    splits: bool = True,
    known_classes: Collection[str] = (),
    text_column: str | None = None,
    label_column: str | None = None,
) -> Listing:
    """Return the texts of a data set with their labels and splits.

    Parameters
    ----------
    source : path or URL
        A table (see `featcache.system.sources.text_table.read_text_table`); a folder of tables called ``train.csv``,
        ``test.csv``, ``validation-00000-of-00001.parquet``; or a folder of class folders of ``.txt`` files, also below
        ``train/ val/ test/``, read as one of images is. A table may lie at ``s3://``, ``gs://``, ``az://``.
    task : {"classification", "multilabel", "regression"}, optional
        What the labels of a table are for; by default read off them.
    splits : bool
        Whether names of files and folders, or a column ``split``, may say the splits.
    known_classes : collection of str
        Folders of these names are classes wherever they stand: those of a model.
    text_column, label_column : str, optional
        Of tables; by default guessed by their names.

    Returns
    -------
    Listing
        Of the input kind ``text``. A text is called ``FILE:LINE`` (``FILE:COLUMN:LINE`` of a column that was named), or
        as its file. A row that is empty, or no characters, is a recorded failure.

    Raises
    ------
    MissingError
        Where `source` does not exist.
    InputError
        Where it holds no text, and as `featcache.system.sources.text_table.read_text_table`.

    Examples
    --------
    >>> from pathlib import Path
    >>> Path("pets").mkdir()
    >>> _ = Path("pets/train.csv").write_text("text,label\\nit barks,dog\\nit meows,cat\\n", encoding="utf-8")
    >>> _ = Path("pets/test.csv").write_text("text,label\\nit purrs,cat\\n", encoding="utf-8")
    >>> listing = scan_texts("pets")
    >>> listing.classes, listing.paths[0], listing.given_splits.tolist()
    (('cat', 'dog'), 'test.csv:2', [2, 0, 0])
    """
    scanned_ns = time.time_ns()
    named = os.fspath(source)
    if is_url(named):
        place = ObjectPath(named)
        return _of_tables([place.name], str(place.parent), scanned_ns, task, text_column, label_column, splits=splits)
    path = os.path.abspath(named)
    if not os.path.exists(path):
        raise MissingError(f"TEXTS must be a table or a folder; {named!r} does not exist")
    if not os.path.isdir(path):
        folder, name = os.path.split(path)
        return _of_tables([name], folder, scanned_ns, task, text_column, label_column, splits=splits)
    if tables := tables_in(path):
        return _of_tables(tables, path, scanned_ns, task, text_column, label_column, splits=splits)
    if task not in (None, "classification") or text_column or label_column:
        raise InputError(f"a task, and columns, need a table; {named!r} is a folder without one")
    listing = scan_folder(
        path, find_files(path, TEXT_EXTENSIONS), scanned_ns, splits=splits, known=frozenset(known_classes)
    )
    if not listing.paths:
        raise InputError(
            f"TEXTS must hold at least one .txt file or table ({', '.join(TEXT_TABLE_EXTENSIONS)}); {named!r} has none "
            f"among {listing.ignored} other files"
        )
    return replace(listing, input=TEXT)


def tables_in(folder: str) -> list[str]:
    """Return the names of the tables that lie in a folder, sorted."""
    return sorted(
        name for name in os.listdir(folder) if is_text_table(name) and os.path.isfile(os.path.join(folder, name))
    )


def _of_tables(
    files: list[str],
    root: str,
    scanned_ns: int,
    task: Task | None,
    text_column: str | None,
    label_column: str | None,
    *,
    splits: bool,
) -> Listing:
    codes = _split_codes(files) if splits else {}
    if len(files) > 1 and splits and len(codes) < len(files):
        others = [file for file in files if file not in codes]
        raise InputError(
            f"tables that lie together must be called as splits (train{TEXT_TABLE_EXTENSIONS[0]}, …), {others[0]!r} in "
            f"{root!r} is not: name one table, or pass --no-splits"
        )
    rows: list[_NamedRow] = []
    failures: list[tuple[str, str]] = []
    notes: list[str] = []
    labelled = False
    for name in files:
        file = open_parts(f"{root}/{name}")
        table = parse_text_table(
            file.read_part(0, file.size), f"{root}/{name}", text_column=text_column, label_column=label_column
        )
        code = codes.get(name, NO_SPLIT) if len(files) > 1 else NO_SPLIT
        for row in table.rows:
            called = row_name(name, row.line, text_column)
            try:
                data = utf8(row.text)
            except ReadError as error:
                failures.append((called, str(error)))
                continue
            if not row.text.strip():
                failures.append((called, "the text is empty"))
                continue
            rows.append(_NamedRow(called, row, code, row_stat(file, data, text_column or "", row.line)))
        notes += [note for note in table.notes if note not in notes]
        labelled = labelled or table.labelled
    if not rows:
        if not failures:
            raise InputError(f"a table of texts must have a row below its header; {files[0]!r} has none")
        name, reason = failures[0]
        raise InputError(
            f"TEXTS must hold at least one text, {counted(len(failures), 'row')} hold none: {name}: {reason}"
        )
    if not labelled:
        notes.append("the table has no column of labels: its texts are unlabelled; name it with --label-column")
    if not splits:
        rows = [replace(one, row=replace(one.row, split="")) for one in rows]
    labels = read_labels([one.row for one in rows], task)
    return Listing(
        root=root,
        task=labels.task,
        classes=labels.classes,
        paths=[one.name for one in rows],
        stats=np.array([one.stat for one in rows], dtype=np.int64).reshape(-1, 4),
        labels=labels.labels,
        targets=labels.targets,
        given_splits=_given_splits(rows),
        ignored=0,
        failures=tuple(failures),
        scanned_ns=scanned_ns,
        notes=(*notes, *labels.notes),
        input=TEXT,
    )


def _split_codes(names: list[str]) -> dict[str, int]:
    """Return file → index into `SPLITS` of the tables whose names say a split and nothing else."""
    stems = {name: _SHARD.sub("", name.rpartition(".")[0]) for name in names}
    codes = split_codes(set(stems.values()))
    return {name: codes[stem] for name, stem in stems.items() if stem in codes}


def _given_splits(rows: list[_NamedRow]) -> npt.NDArray[np.uint8]:
    codes = {"": NO_SPLIT} | split_codes({one.row.split for one in rows if one.row.split})
    given = np.empty(len(rows), dtype=np.uint8)
    for index, one in enumerate(rows):
        if one.row.split not in codes:
            raise InputError(
                f"split must be one of train, val, test or empty, got {one.row.split!r} in {one.name}: pass --no-splits"
            )
        code = codes[one.row.split]
        if NO_SPLIT not in (code, one.code) and code != one.code:
            raise InputError(
                f"the column 'split' must say what the file's name says, {one.name} says {SPLITS[code]!r}: "
                "rename the file, or pass --no-splits"
            )
        given[index] = one.code if code == NO_SPLIT else code
    return given
