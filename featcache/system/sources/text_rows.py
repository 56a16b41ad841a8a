"""Texts in tables as inputs: row 7 of ``cards.csv`` is called ``cards.csv:7``, its bytes are the text's UTF-8.

Where the column of texts is not the one that `find_columns` takes by itself, it stands in the name, too:
``cards.csv:body:7``.
"""

from __future__ import annotations

import threading
import time

from featcache.errors import ReadError
from featcache.system.sources.interface import Container, FileStat
from featcache.system.sources.parts import LocalParts, PartedFile, open_parts
from featcache.system.sources.text_table import parse_text_table

_SECONDS_BETWEEN_LOOKS = 1.0


class TextRowContainer(Container):
    """A table of texts; a member is called ``:LINE`` or ``COLUMN:LINE``."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = open_parts(path)
        self._data = self._file.read_part(0, self._file.size)
        self._looked = time.monotonic()
        self._lock = threading.Lock()
        self._texts: dict[str, dict[int, str]] = {}

    def read(self, name: str) -> tuple[bytes, FileStat]:
        """Return the UTF-8 of a row's text; raises `ReadError` as `Container.read`."""
        if not self._is_fresh():
            raise ReadError("is being written to")
        column, _, line = name.rpartition(":")
        text = self._column(column).get(int(line))
        if text is None:
            raise ReadError(f"cannot be read: line {line} begins no row")
        data = utf8(text)
        return data, row_stat(self._file, data, column, int(line))

    def _column(self, column: str) -> dict[int, str]:
        with self._lock:
            if column not in self._texts:
                table = parse_text_table(self._data, self._path, text_column=column or None)
                self._texts[column] = {row.line: row.text for row in table.rows}
            return self._texts[column]

    def is_current(self) -> bool:
        """Return whether the file is as it was."""
        return self._file.is_current()

    def _is_fresh(self) -> bool:
        """Return whether the file is as it was: on a disk now, in a storage a second ago, for that is a request."""
        now = time.monotonic()
        if isinstance(self._file, LocalParts) or now - self._looked > _SECONDS_BETWEEN_LOOKS:
            self._looked = now
            return self.is_current()
        return True


def row_name(file: str, line: int, column: str | None) -> str:
    """Return what a row is called; `column`: the one that was asked for, None for the usual one."""
    return f"{file}:{line}" if column is None else f"{file}:{column}:{line}"


def row_stat(file: PartedFile, data: bytes, column: str, line: int) -> FileStat:
    """Return what names the content of a row; `column`: as in its name, empty for the usual one."""
    return file.stat(len(data), column, line)


def utf8(text: str) -> bytes:
    """Return the bytes of a text; `ReadError` for half a surrogate pair, which JSON can write and UTF-8 cannot."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        half = ord(text[error.start])
        raise ReadError(f"a text must be whole characters, got half a surrogate pair (\\u{half:04x})") from error
