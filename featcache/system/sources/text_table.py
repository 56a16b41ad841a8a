"""A table of texts as it lies on disk, CSV, TSV, JSON lines or Parquet: its rows, each with its line."""

from __future__ import annotations

import csv
import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from featcache.errors import DependencyError, FormatError, InputError
from featcache.system.json import parse_json
from featcache.system.sources.parts import open_parts
from featcache.system.sources.text_columns import TextColumns, find_columns
from featcache.system.sources.text_encoding import decode_utf8

TEXT_TABLE_EXTENSIONS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_SEPARATORS = (",", ";", "\t", "|")
_END = "\x1f"  # a last row of our own, which a quote that is never closed swallows
_LARGEST_CELL = (1 << 31) - 1  # characters; the csv module's own bound is 131,072
_limit = threading.Lock()


@dataclass(frozen=True, slots=True)
class TextRow:
    """`line`: of the file, from 1; of Parquet the row. `text`: to the character; `label`, `split`: "" for none."""

    line: int
    text: str
    label: str
    split: str


@dataclass(frozen=True, slots=True)
class TextTable:
    """The rows of a table and, one line each, what was not plain in it; `labelled`: whether it has labels at all."""

    rows: list[TextRow]
    labelled: bool
    notes: tuple[str, ...]


def is_text_table(path: str) -> bool:
    """Return whether the name is that of a table of texts."""
    return path.lower().endswith(TEXT_TABLE_EXTENSIONS)


def read_text_table(
    source: str | os.PathLike[str], *, text_column: str | None = None, label_column: str | None = None
) -> TextTable:
    """Return the rows of a table of texts, on a disk or in a storage.

    Parameters
    ----------
    source : path or URL
        ``.csv`` or ``.tsv`` (UTF-8, a header, ``,`` ``;`` tab or ``|`` between cells, texts of any length), ``.jsonl``
        (an object a line; a list of labels is several), or ``.parquet`` (with pyarrow).
    text_column, label_column : str, optional
        See `featcache.system.sources.text_columns.find_columns`. A column ``split`` is read where there is one.

    Returns
    -------
    TextTable
        In the file's order. Rows without a word are left out.

    Raises
    ------
    MissingError
        Where there is no such file.
    InputError
        With the line, for another encoding than UTF-8, unbalanced quotes, rows of more cells than the header, texts
        that are no strings, and columns that are not there.
    FormatError
        For a Parquet file that is none.
    DependencyError
        For Parquet without pyarrow.

    Examples
    --------
    >>> from pathlib import Path
    >>> _ = Path("cards.csv").write_text('text,category\\n"Where is it, my card?",arrival\\n', encoding="utf-8")
    >>> read_text_table("cards.csv").rows
    [TextRow(line=2, text='Where is it, my card?', label='arrival', split='')]
    """
    path = os.fspath(source)
    file = open_parts(path)
    return parse_text_table(file.read_part(0, file.size), path, text_column=text_column, label_column=label_column)


def parse_text_table(
    data: bytes, source: str, *, text_column: str | None = None, label_column: str | None = None
) -> TextTable:
    """Return the rows of the table `data`, whose kind its name `source` says; `InputError` as `read_text_table`."""
    if not is_text_table(source):
        raise InputError(f"a table of texts must be one of {', '.join(TEXT_TABLE_EXTENSIONS)}, got {source!r}")

    def columns_of(names: Sequence[str]) -> TextColumns:
        return find_columns(names, source, text_column=text_column, label_column=label_column)

    lower = source.lower()
    if lower.endswith(".parquet"):
        return _read_parquet(data, source, columns_of)
    text = decode_utf8(data, source)
    if lower.endswith((".csv", ".tsv")):
        return _read_cells(text, source, columns_of)
    return _read_json_lines(text, source, columns_of)


def _read_cells(text: str, source: str, columns_of: Callable[[Sequence[str]], TextColumns]) -> TextTable:
    head = next((line for line in io.StringIO(text) if line.strip()), None)
    if head is None:
        raise InputError(f"a table of texts must have a header and rows, {source!r} is empty")
    separator = _separator(head, columns_of)
    rows: list[TextRow] = []
    columns: TextColumns | None = None
    width, line, begins = 0, 0, 1
    cells: list[str] = []
    reader = csv.reader(io.StringIO(f"{text}\n{_END}", newline=""), delimiter=separator)
    with _cells_of_any_length():
        try:
            for cells in reader:
                line, begins = begins, reader.line_num + 1
                if cells == [_END] or not any(cell.strip() for cell in cells):
                    continue
                if columns is None:
                    columns, width = columns_of(cells), len(cells)
                    continue
                if any(cell.strip() for cell in cells[width:]):
                    raise InputError(
                        f"each row of {source!r} must have {width} cells, line {line} has {len(cells)} "
                        f"({separator.join(cells)[:80]!r}): put quotes around a text that holds {separator!r}"
                    )
                rows.append(_row(line, [*cells, *[""] * (width - len(cells))], columns))
        except csv.Error as error:
            raise InputError(f"{source!r} must be a readable table, line {begins} is not: {error}") from error
    if cells != [_END]:
        raise InputError(f"each quote in {source!r} must be closed, that of line {line} is not")
    assert columns is not None
    return TextTable(rows, columns.label is not None, columns.notes)


def _separator(head: str, columns_of: Callable[[Sequence[str]], TextColumns]) -> str:
    """Return the separator by which the header has most columns, of those by which its columns are found."""
    by_cells = sorted(_SEPARATORS, key=lambda separator: -len(_header(head, separator)))
    for separator in by_cells:
        try:
            columns_of(_header(head, separator))
        except InputError:
            continue
        return separator
    return by_cells[0]  # it is refused there, with the columns' names


def _header(head: str, separator: str) -> list[str]:
    return next(csv.reader([head], delimiter=separator), [])


def _row(line: int, cells: Sequence[str], columns: TextColumns) -> TextRow:
    label, split = ("" if place is None else cells[place].strip() for place in (columns.label, columns.split))
    return TextRow(line, cells[columns.text], label, split)


@contextmanager
def _cells_of_any_length() -> Iterator[None]:
    """Lift the csv module's bound inside the block; it is one for the process, hence the lock."""
    with _limit:
        before = csv.field_size_limit(_LARGEST_CELL)
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _read_json_lines(text: str, source: str, columns_of: Callable[[Sequence[str]], TextColumns]) -> TextTable:
    objects: list[tuple[int, dict[str, Any]]] = []
    for line, content in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 may stand in a text
        if not content.strip():
            continue
        try:
            value = parse_json(content)
        except ValueError as error:
            raise InputError(f"each line of {source!r} must be a JSON object, line {line} is not: {error}") from error
        if not isinstance(value, dict):
            raise InputError(f"each line of {source!r} must be a JSON object, line {line} is {content[:40]!r}")
        objects.append((line, value))
    if not objects:
        raise InputError(f"a table of texts must have rows, {source!r} is empty")
    names = list(dict.fromkeys(name for _, value in objects for name in value))
    columns = columns_of(names)
    for line, value in objects:
        if not isinstance(value.get(names[columns.text]), str | None):
            raise InputError(
                f"each text of {source!r} must be a string, line {line} has {value[names[columns.text]]!r:.40}"
            )
    used = {place for place in (columns.text, columns.label, columns.split) if place is not None}
    rows = []
    for line, value in objects:
        cells = [_cell(value.get(name), line, source) if place in used else "" for place, name in enumerate(names)]
        rows.append(_row(line, cells, columns))
    return TextTable([row for row in rows if row.text or row.label], columns.label is not None, columns.notes)


def _cell(value: Any, line: int, source: str) -> str:
    """Return a JSON or Parquet value as the text that a CSV would hold; several labels between ``;``."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list) and not any(isinstance(part, list | dict) for part in value):
        parts = [_cell(part, line, source) for part in value]
        if any(";" in part for part in parts):
            raise InputError(f"labels in a list must not hold ';', line {line} of {source!r} has {value!r:.60}")
        return ";".join(parts)
    raise InputError(f"labels of {source!r} must be strings, numbers or lists of them, line {line} has {value!r:.60}")


def _read_parquet(data: bytes, source: str, columns_of: Callable[[Sequence[str]], TextColumns]) -> TextTable:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DependencyError(
            "Parquet needs pyarrow: pip install featcache[parquet], or give CSV or JSON lines"
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data)) as file:
            names = file.schema_arrow.names
            columns = columns_of(names)
            places = [place for place in (columns.text, columns.label, columns.split) if place is not None]
            kind = file.schema_arrow.field(columns.text).type
            table = file.read(columns=[names[place] for place in places])
            values = {place: table.column(names[place]).to_pylist() for place in places}
    except pyarrow.ArrowException as error:
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise FormatError(f"{source!r} must be a Parquet file of UTF-8 texts, it is not: {reason}") from error
    texts = values[columns.text]
    if any(not isinstance(value, str | None) for value in texts):
        raise InputError(f"the column {names[columns.text]!r} of {source!r} must hold strings, it holds {kind}")
    rows = []
    for index in range(len(texts)):
        cells = [
            _cell(values[place][index], index + 1, source) if place in values else "" for place in range(len(names))
        ]
        rows.append(_row(index + 1, cells, columns))
    return TextTable([row for row in rows if row.text or row.label], columns.label is not None, columns.notes)
