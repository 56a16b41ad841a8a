"""The arrays of a store, written once beside its rows: what a repair begins with where no commit record is left.

It says nothing that changes, so it is never written again, and a store without it (of an older version) is whole.
"""

from __future__ import annotations

from pathlib import Path

from featcache.errors import CorruptError
from featcache.store._record import Record
from featcache.system.files import write_atomically

LAYOUT_FILE = "layout.json"
BEGIN_ANEW = "'featcache build IMAGES --cache CACHE --overwrite' begins anew"


def write_layout(store: Path, record: Record) -> None:
    """Write the arrays of `record` beside the rows of the store in the directory `store`."""
    write_atomically(store / LAYOUT_FILE, record.with_rows(0).to_text())


def read_layout(store: Path, *, rows: Path) -> Record:
    """Return the record of no rows that `write_layout` wrote; `CorruptError` where it is not there whole.

    `rows`: the file or directory whose own commit record is lost, for the message.
    """
    try:
        return Record.from_text((store / LAYOUT_FILE).read_bytes(), place=repr(str(store / LAYOUT_FILE)))
    except (OSError, KeyError, TypeError) as error:  # a `CorruptError` is an OSError
        raise CorruptError(
            f"{str(rows)!r} must hold a commit record, none is left of which rows could be told: {BEGIN_ANEW}"
        ) from error


def layout_problems(store: Path, record: Record) -> list[str]:
    """Return one line where the file is there and is not what `write_layout` writes of `record`."""
    path = store / LAYOUT_FILE
    if not path.exists() or path.read_bytes() == record.with_rows(0).to_text():
        return []
    return [f"{str(path)!r} must be as the commit record, it is damaged"]
