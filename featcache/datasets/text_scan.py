"""A data set of texts: a table, a folder of tables called as splits, or class folders of ``.txt`` files."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from featcache.datasets.folder import scan_folder
from featcache.datasets.labels import read_labels
from featcache.datasets.listing import Task, counted, printable
from featcache.datasets.split_names import split_codes
from featcache.datasets.splits import NO_SPLIT, SPLITS
from featcache.datasets.text_encoding import decode_utf8, text_digest
from featcache.datasets.text_table import TEXT_TABLE_EXTENSIONS, TextRow, is_text_table, read_text_table
from featcache.datasets.walk import find_files
from featcache.errors import InputError, MissingError

TEXT_EXTENSIONS = frozenset({"txt"})
_SHARD = re.compile(r"-\d+-of-\d+$")  # as in train-00000-of-00001.parquet


@dataclass(frozen=True, slots=True)
class TextListing:
    """The texts of a data set in its own order, with what it says of each.

    `root`: the folder of its files. `names`: where each text stands, ``FILE`` below the root or ``FILE:LINE``.
    `digests` (n, 32) uint8: sha256 of the UTF-8 bytes. `labels` (n,) int32: index into `classes`, -1 for none;
    `targets` as in a `Listing`. `given_splits` (n,) uint8: index into `SPLITS` or 255. `failures`: (name, reason) of
    what is no text. `notes`: one line each, how the data set was read where that is not plain.
    """

    root: str
    task: Task
    classes: tuple[str, ...]
    names: list[str]
    texts: list[str]
    digests: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int32]
    targets: npt.NDArray[np.float32] | None
    given_splits: npt.NDArray[np.uint8]
    failures: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True)
class _NamedRow:
    """A row with its file; `code`: the split of the whole file, `NO_SPLIT` where its name says none."""

    name: str
    row: TextRow
    code: int


def scan_texts(
    source: str | os.PathLike[str],
    *,
    task: Task | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    splits: bool = True,
) -> TextListing:
    """Return the texts of a data set with their labels and splits.

    Parameters
    ----------
    source : path
        A table (see `featcache.datasets.text_table.read_text_table`); a folder of tables called ``train.csv``,
        ``test.csv``, ``validation-00000-of-00001.parquet``; or a folder of class folders of ``.txt`` files, also below
        ``train/ val/ test/``, read as one of images is.
    task : {"classification", "multilabel", "regression"}, optional
        What the labels of a table are for; by default read off them.
    text_column, label_column : str, optional
        Of tables; by default guessed by their names.
    splits : bool
        Whether names of files and folders, or a column ``split``, may say the splits.

    Returns
    -------
    TextListing
        A text that is empty, or no characters, is a recorded failure.

    Raises
    ------
    MissingError
        Where `source` does not exist.
    InputError
        Where it holds no text, and as `featcache.datasets.text_table.read_text_table`.

    Examples
    --------
    >>> from pathlib import Path
    >>> Path("pets").mkdir()
    >>> _ = Path("pets/train.csv").write_text("text,label\\nit barks,dog\\nit meows,cat\\n", encoding="utf-8")
    >>> _ = Path("pets/test.csv").write_text("text,label\\nit purrs,cat\\n", encoding="utf-8")
    >>> listing = scan_texts("pets")
    >>> listing.classes, listing.names[0], listing.given_splits.tolist()
    (('cat', 'dog'), 'test.csv:2', [2, 0, 0])
    """
    path = os.path.abspath(os.fspath(source))
    if not os.path.exists(path):
        raise MissingError(f"TEXTS must be a table or a folder; {os.fspath(source)!r} does not exist")
    if not os.path.isdir(path):
        return _of_tables([path], os.path.dirname(path), task, text_column, label_column, splits=splits)
    tables = sorted(
        name for name in os.listdir(path) if is_text_table(name) and os.path.isfile(os.path.join(path, name))
    )
    if tables:
        files = [os.path.join(path, name) for name in tables]
        return _of_tables(files, path, task, text_column, label_column, splits=splits)
    if task not in (None, "classification") or text_column or label_column:
        raise InputError(f"a task, and columns, need a table; {os.fspath(source)!r} is a folder without one")
    return _of_folder(path, splits=splits)


def _of_tables(
    files: list[str], root: str, task: Task | None, text_column: str | None, label_column: str | None, *, splits: bool
) -> TextListing:
    codes = _split_codes([os.path.basename(file) for file in files]) if splits else {}
    if len(files) > 1 and splits and len(codes) < len(files):
        others = [os.path.basename(file) for file in files if os.path.basename(file) not in codes]
        raise InputError(
            f"tables that lie together must be called as splits (train{TEXT_TABLE_EXTENSIONS[0]}, …), {others[0]!r} in "
            f"{root!r} is not: name one table, or pass --no-splits"
        )
    named: list[_NamedRow] = []
    notes: list[str] = []
    labelled = False
    for file in files:
        table = read_text_table(file, text_column=text_column, label_column=label_column)
        base = os.path.basename(file)
        code = codes.get(base, NO_SPLIT) if len(files) > 1 else NO_SPLIT
        named += [_NamedRow(f"{printable(base)}:{row.line}", row, code) for row in table.rows]
        notes += [note for note in table.notes if note not in notes]
        labelled = labelled or table.labelled
    if not named:
        raise InputError(f"a table of texts must have a row below its header; {files[0]!r} has none")
    if not labelled:
        notes.append("the table has no column of labels: its texts are unlabelled; name it with --label-column")
    kept, digests, failures = _readable(named)
    if not splits:
        kept = [replace(one, row=replace(one.row, split="")) for one in kept]
    labels = read_labels([one.row for one in kept], task)
    return TextListing(
        root=root,
        task=labels.task,
        classes=labels.classes,
        names=[one.name for one in kept],
        texts=[one.row.text for one in kept],
        digests=digests,
        labels=labels.labels,
        targets=labels.targets,
        given_splits=_given_splits(kept),
        failures=failures,
        notes=(*notes, *labels.notes),
    )


def _split_codes(names: list[str]) -> dict[str, int]:
    """Return file → index into `SPLITS` of the tables whose names say a split and nothing else."""
    stems = {name: _SHARD.sub("", name.rpartition(".")[0]) for name in names}
    codes = split_codes(set(stems.values()))
    return {name: codes[stem] for name, stem in stems.items() if stem in codes}


def _readable(named: list[_NamedRow]) -> tuple[list[_NamedRow], npt.NDArray[np.uint8], tuple[tuple[str, str], ...]]:
    """Return the rows that have a text, the digests of these, and (name, reason) of the others."""
    kept: list[_NamedRow] = []
    digests = bytearray()
    failures: list[tuple[str, str]] = []
    for one in named:
        if not one.row.text.strip():
            failures.append((one.name, "the text is empty"))
            continue
        try:
            digests += text_digest(one.row.text)
        except InputError as error:
            failures.append((one.name, str(error)))
            continue
        kept.append(one)
    if not kept:
        name, reason = failures[0]
        raise InputError(
            f"TEXTS must hold at least one text, {counted(len(failures), 'row')} hold none: {name}: {reason}"
        )
    return kept, np.frombuffer(bytes(digests), dtype=np.uint8).reshape(len(kept), 32), tuple(failures)


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


def _of_folder(root: str, *, splits: bool) -> TextListing:
    listing = scan_folder(root, find_files(root, TEXT_EXTENSIONS), time.time_ns(), splits=splits, known=frozenset())
    if not listing.paths:
        raise InputError(
            f"TEXTS must hold at least one .txt file or table ({', '.join(TEXT_TABLE_EXTENSIONS)}); {root!r} has none "
            f"among {listing.ignored} other files"
        )
    texts: list[str] = []
    kept: list[int] = []
    digests = bytearray()
    failures = list(listing.failures)
    for index, name in enumerate(listing.paths):
        try:
            text = read_text_file(listing.absolute(index))
            digest = text_digest(text)
        except InputError as error:
            failures.append((name, str(error)))
        except OSError as error:
            failures.append((name, f"cannot be read: {error.strerror}"))
        else:
            texts.append(text)
            kept.append(index)
            digests += digest
    if not texts:
        raise InputError(
            f"TEXTS must hold at least one text, none of {counted(len(listing), 'file')} is: {failures[0][1]}"
        )
    return TextListing(
        root=root,
        task=listing.task,
        classes=listing.classes,
        names=[printable(listing.paths[index]) for index in kept],
        texts=texts,
        digests=np.frombuffer(bytes(digests), dtype=np.uint8).reshape(len(kept), 32),
        labels=listing.labels[kept],
        targets=None,
        given_splits=listing.given_splits[kept],
        failures=tuple(failures),
        notes=listing.notes,
    )


def read_text_file(path: str | os.PathLike[str]) -> str:
    """Return the text of a ``.txt`` file, all of it without UTF-8's mark.

    Raises `InputError` where it is not UTF-8 or empty, `OSError` where it cannot be read.
    """
    with open(path, "rb") as file:
        text = decode_utf8(file.read(), os.path.basename(os.fspath(path)))
    if not text.strip():
        raise InputError("the text is empty")
    return text
