"""A table of images as it lies on disk: its text, its separator, its header, and its rows, each with its line."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from featcache.datasets.listing import printable
from featcache.errors import InputError
from featcache.system.objects import place_of

_COLUMNS = ("path", "label", "split")
_SEPARATORS = (",", ";", "\t", "|")
_MARKS = (  # of UTF-32 first: it begins as UTF-16 does
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"), (codecs.BOM_UTF8, "utf-8-sig"),
)  # fmt: skip
_END = "\x1f"  # a last row of our own, which a quote that is never closed swallows
_EXCEL_SEPARATOR = re.compile(r'"?sep=(.)"?[,;\t]*\r?\n', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TableRow:
    """`line`: of the file, from 1. `path`: as it stands there; `label`, `split`: without spaces around, "" for none."""

    line: int
    path: str
    label: str
    split: str


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of a table and, one line each, what was not plain in it."""

    rows: list[TableRow]
    notes: tuple[str, ...]


def read_table(source: str, *, is_image: Callable[[str], bool]) -> Table:
    """Return the rows of the file at `source`; rows without a word are left out.

    The columns are those of the header, whatever its case, or path, label and split where the first row, by `is_image`,
    names an image. Raises `InputError`, with the line, for text that is not UTF-8 or UTF-16 with its mark, unbalanced
    quotes, and rows of more cells than the header.
    """
    text = _decoded(place_of(source).read_bytes(), source)
    first = 1
    separator = None
    if mark := _EXCEL_SEPARATOR.match(text):
        text, first, separator = text[mark.end() :], 2, mark[1]
    head = next((line for line in io.StringIO(text) if line.strip()), "")
    if not head:
        raise InputError(f"a table must have the columns path,label[,split] and rows; {source!r} is empty")
    separators = [separator] if separator else _SEPARATORS
    columns, separator = _header(head, separators)
    notes = []
    has_header = columns is not None
    if columns is None:
        separator = next((one for one in separators if is_image(_cells(head, one)[0].strip())), None)
        if separator is None:
            raise InputError(
                f"a table must have the columns path,label[,split]; {source!r} has {_cells(head, separators[0])!r}: "
                "rename the column of the files to 'path', that of the classes to 'label', or leave only 'path'"
            )
        columns = {name: place for place, name in enumerate(_COLUMNS[: len(_cells(head, separator))])}
        notes.append(f"the table has no header: its columns are read as {','.join(columns)}")
    assert separator is not None
    rows = _rows(text, source, separator, columns, first_line=first, has_header=has_header)
    return Table(rows, tuple(notes))


def _decoded(data: bytes, source: str) -> str:
    """Return the file's text; bytes that are no UTF-8 stay, as surrogates, where they may be those of a file's name."""
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)
    if encoding is None and b"\0" in data[:64]:
        raise InputError(
            f"{source!r} must be UTF-8 text, its first row holds zero bytes, as UTF-16 without its mark does: save it "
            'as UTF-8 (in Excel: "CSV UTF-8")'
        )
    try:
        return data.decode(encoding or "utf-8", "surrogateescape" if encoding in (None, "utf-8-sig") else "strict")
    except UnicodeDecodeError as error:
        raise InputError(f"{source!r} must be whole text, it breaks off ({error.reason}): save it as UTF-8") from error


def refuse_other_encoding(text: str, source: str, line: int) -> None:
    """Raise `InputError` where `text`, of a line of the table, holds bytes that are not UTF-8."""
    if re.search("[\udc80-\udcff]", text):
        raise InputError(
            f"{source!r} must be UTF-8 text, row {line} has '{printable(text)}', as Latin-1 or cp1252 (Windows) does: "
            'save it as UTF-8 (in Excel: "CSV UTF-8")'
        )


def _cells(line: str, separator: str) -> list[str]:
    return next(csv.reader([line], delimiter=separator, skipinitialspace=True), None) or [""]


def _header(head: str, separators: Sequence[str]) -> tuple[dict[str, int] | None, str | None]:
    """Return column → its place and the separator, of the one by which most columns are known; None without path."""
    best: tuple[dict[str, int] | None, str | None] = (None, None)
    for separator in separators:
        names = [cell.strip().lower() for cell in _cells(head, separator)]
        places = {name: names.index(name) for name in _COLUMNS if name in names}
        if "path" in places and len(places) > len(best[0] or ()):
            for name in places:
                if names.count(name) > 1:
                    raise InputError(f"a table must have one column {name!r}, its header has {names.count(name)}")
            best = (places, separator)
    if best[0] is not None and best[1] is not None and "label" not in best[0]:
        others = {cell.strip() for cell in _cells(head, best[1]) if cell.strip().lower() not in (*_COLUMNS, "")}
        if others:  # one of them holds the labels, under another name
            return None, best[1]
    return best


def _rows(
    text: str, source: str, separator: str, columns: dict[str, int], *, first_line: int, has_header: bool
) -> list[TableRow]:
    rows: list[TableRow] = []
    lines = io.StringIO(f"{text}\n{_END}", newline="")
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    width = max(columns.values()) + 1
    line, begins, waits_for_header, cells = 0, first_line, has_header, [""]
    try:
        for cells in reader:
            line, begins = begins, reader.line_num + first_line
            if not any(cell.strip() for cell in cells) or cells == [_END]:
                continue
            if waits_for_header:
                width = max(place for place, cell in enumerate(cells) if cell.strip()) + 1
                waits_for_header = False
                continue
            if any(cell.strip() for cell in cells[width:]):
                raise InputError(
                    f"each row of {source!r} must have {width} cells, row {line} has {len(cells)} "
                    f"({printable(separator.join(cells))!r}): put quotes around a text that holds {separator!r}"
                )
            values = {name: cells[place] if place < len(cells) else "" for name, place in columns.items()}
            row = TableRow(line, values["path"], values.get("label", "").strip(), values.get("split", "").strip())
            refuse_other_encoding(row.label + row.split, source, line)
            rows.append(row)
    except csv.Error as error:
        raise InputError(f"{source!r} must be a readable table, row {begins} is not: {error}") from error
    if cells != [_END]:
        raise InputError(f"each quote in {source!r} must be closed, that of row {line} is not")
    return rows
