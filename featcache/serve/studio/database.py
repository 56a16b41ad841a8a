"""`Database`: the SQLite file of a workspace, where what was acknowledged is on disk before it is acknowledged."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from featcache.errors import CorruptError, FormatError, LockedError, StorageError

VERSION = 1
_APPLICATION = 0x66635354  # "fcST"
_SCHEMA = """
CREATE TABLE datasets(
    id INTEGER PRIMARY KEY, cache TEXT NOT NULL, name TEXT NOT NULL, made INTEGER NOT NULL DEFAULT 0,
    revision INTEGER NOT NULL DEFAULT 0, position INTEGER NOT NULL DEFAULT 0, UNIQUE(cache, name));
CREATE TABLE classes(
    dataset INTEGER NOT NULL REFERENCES datasets(id), name TEXT NOT NULL, PRIMARY KEY(dataset, name));
CREATE TABLE labels(
    dataset INTEGER NOT NULL REFERENCES datasets(id), digest BLOB NOT NULL, label TEXT, revision INTEGER NOT NULL,
    PRIMARY KEY(dataset, digest)) WITHOUT ROWID;
CREATE TABLE changes(
    dataset INTEGER NOT NULL, number INTEGER NOT NULL, digest BLOB NOT NULL, before TEXT, after TEXT,
    PRIMARY KEY(dataset, number, digest)) WITHOUT ROWID;
CREATE TABLE accuracies(
    dataset INTEGER NOT NULL, revision INTEGER NOT NULL, labels INTEGER NOT NULL, correct INTEGER NOT NULL,
    total INTEGER NOT NULL, PRIMARY KEY(dataset, revision)) WITHOUT ROWID;
CREATE TABLE jobs(
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, parameters TEXT NOT NULL, state TEXT NOT NULL, step INTEGER NOT NULL,
    created REAL NOT NULL, started REAL, ended REAL, process TEXT, result TEXT, error TEXT);
"""


class Write(Protocol):
    """What `Database.transaction` gives."""

    def __call__(self, statement: str, parameters: Sequence[Any] = (), *, many: bool = False) -> list[Any]:
        """Run one statement, or with `many` the same for each item of `parameters`; return its rows."""


class Database:
    """The opened file at `path`, made where it is missing; no second process can open it meanwhile. Thread-safe.

    Raises
    ------
    LockedError
        Where another studio has it open.
    FormatError
        Where it is a database of something else, or of another version.
    CorruptError
        Where it is no database.
    StorageError
        Where the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0.5)
        try:
            with self._refusals():
                self._connection.execute("PRAGMA locking_mode=EXCLUSIVE")
                self._connection.execute("PRAGMA journal_mode=WAL")
                self._connection.execute("PRAGMA synchronous=FULL")
                self._connection.execute("PRAGMA foreign_keys=ON")
                self._open()
        except BaseException:
            self._connection.close()
            raise

    def _open(self) -> None:
        with self.transaction() as write:
            ((application,),) = write("PRAGMA application_id")
            ((version,),) = write("PRAGMA user_version")
            ((tables,),) = write("SELECT count(*) FROM sqlite_master")
            if (application, version) == (0, 0) and not tables:
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    write(statement)
                write(f"PRAGMA application_id={_APPLICATION}")
                write(f"PRAGMA user_version={VERSION}")
            elif (application, version) != (_APPLICATION, VERSION):
                raise FormatError(
                    f"{str(self._path)!r} must be a studio's database of version {VERSION}, got application "
                    f"{application}, version {version}: open it with the featcache that wrote it"
                )

    @contextmanager
    def transaction(self) -> Iterator[Write]:
        """Give a function that runs one statement; all of them are on disk when the block ends, or none."""
        with self._lock, self._refusals():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._write
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _write(self, statement: str, parameters: Sequence[Any] = (), *, many: bool = False) -> list[Any]:
        if many:
            self._connection.executemany(statement, parameters)
            return []
        return self._connection.execute(statement, parameters).fetchall()

    def read(self, statement: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Return the rows that a query gives."""
        with self._lock, self._refusals():
            return self._connection.execute(statement, parameters).fetchall()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Turn what SQLite says inside the block into errors of ours."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise LockedError(
                    f"the workspace {str(self._path.parent)!r} must be open in one studio alone, another has it open: "
                    "use its page, or stop it"
                ) from error
            raise StorageError(f"{str(self._path)!r} must be writable, got: {error}; free space there") from error
        except sqlite3.DatabaseError as error:
            raise CorruptError(f"{str(self._path)!r} must be a studio's database, got: {error}") from error
