"""`LabelStore`: the labels that people gave to the images of one data set, and every change of them.

Images are known by the digest of their bytes, as in a cache: a label stays with its image when that is renamed, and
equal images have one label. A change names the revision that was looked at; one of an image whose label has changed
since is refused, so that two windows never overwrite each other unseen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from featcache.serve.refusals import RefusedError
from featcache.serve.studio.database import Database, Write

Change = tuple[bytes, str | None, str | None]  # digest, label before, label after


@dataclass(frozen=True, slots=True)
class History:
    """Where a data set's labels stand: `revision` grows with every change; how many can be undone, and done again."""

    revision: int
    undo: int
    redo: int


class LabelStore:
    """The labels of the data set `name` in the cache `cache`, a path below the workspace."""

    def __init__(self, database: Database, cache: str, name: str) -> None:
        self._database, self._cache = database, cache
        with database.transaction() as write:
            write("INSERT OR IGNORE INTO datasets(cache, name) VALUES(?, ?)", (cache, name))
            ((number,),) = write("SELECT id FROM datasets WHERE cache=? AND name=?", (cache, name))
        self.id = int(number)

    def labels(self) -> dict[bytes, str | None]:
        """Return the label, None for none, of each image that was ever given one here."""
        return dict(self._database.read("SELECT digest, label FROM labels WHERE dataset=?", (self.id,)))

    def classes(self) -> list[str]:
        """Return the classes that were added here, in their order."""
        rows = self._database.read("SELECT name FROM classes WHERE dataset=? ORDER BY rowid", (self.id,))
        return [name for (name,) in rows]

    def add_class(self, name: str) -> None:
        """Add a class; nothing happens where it is there already."""
        with self._database.transaction() as write:
            write("INSERT OR IGNORE INTO classes(dataset, name) VALUES(?, ?)", (self.id, name))

    def note_made(self, name: str) -> None:
        """Keep that the data set `name` of this cache was made of another one's labels, and is none to be labelled."""
        with self._database.transaction() as write:
            write(
                "INSERT INTO datasets(cache, name, made) VALUES(?, ?, 1) ON CONFLICT(cache, name) DO UPDATE SET made=1",
                (self._cache, name),
            )

    def history(self) -> History:
        """Return where the labels stand."""
        with self._database.transaction() as write:
            return self._history(write)

    def change(self, changes: Sequence[Change], *, revision: int) -> History:
        """Give the labels of `changes`, on disk when this returns; what had been undone can be done again no more.

        Raises `RefusedError` (409) where one of the images has changed since `revision`.
        """
        with self._database.transaction() as write:
            history = self._history(write)
            self._check_unchanged(write, {digest for digest, _, _ in changes}, history, revision)
            number = history.undo + 1
            write("DELETE FROM changes WHERE dataset=? AND number>=?", (self.id, number))
            write(
                "INSERT INTO changes(dataset, number, digest, before, after) VALUES(?, ?, ?, ?, ?)",
                [(self.id, number, *change) for change in changes],
                many=True,
            )
            after = History(history.revision + 1, number, 0)
            self._put(write, [(digest, label) for digest, _, label in changes], after)
            return after

    def undo(self, *, revision: int) -> tuple[History, list[tuple[bytes, str | None]]]:
        """Take the last change back; return where that leads, and the labels that images now have.

        Raises `RefusedError`: 409 where `revision` is not the present one, 404 where there is nothing to undo.
        """
        return self._step(revision, forward=False)

    def redo(self, *, revision: int) -> tuple[History, list[tuple[bytes, str | None]]]:
        """Do the change again that was undone last; returns and raises as `undo`."""
        return self._step(revision, forward=True)

    def _step(self, revision: int, *, forward: bool) -> tuple[History, list[tuple[bytes, str | None]]]:
        with self._database.transaction() as write:
            history = self._history(write)
            if revision != history.revision:
                raise _conflict(history)
            if not (history.redo if forward else history.undo):
                raise RefusedError(404, f"there must be a change to {'do again' if forward else 'undo'}, there is none")
            number = history.undo + forward
            labels = write(
                f"SELECT digest, {'after' if forward else 'before'} FROM changes WHERE dataset=? AND number=?",
                (self.id, number),
            )
            step = 1 if forward else -1
            after = History(history.revision + 1, history.undo + step, history.redo - step)
            self._put(write, labels, after)
            return after, labels

    def _check_unchanged(self, write: Write, digests: set[bytes], history: History, revision: int) -> None:
        if revision == history.revision:
            return
        newer = write("SELECT digest FROM labels WHERE dataset=? AND revision>?", (self.id, revision))
        if revision > history.revision or any(digest in digests for (digest,) in newer):
            raise _conflict(history)

    def _put(self, write: Write, labels: Sequence[tuple[bytes, str | None]], history: History) -> None:
        write(
            "INSERT OR REPLACE INTO labels(dataset, digest, label, revision) VALUES(?, ?, ?, ?)",
            [(self.id, digest, label, history.revision) for digest, label in labels],
            many=True,
        )
        write("UPDATE datasets SET revision=?, position=? WHERE id=?", (history.revision, history.undo, self.id))

    def _history(self, write: Write) -> History:
        ((revision, position),) = write("SELECT revision, position FROM datasets WHERE id=?", (self.id,))
        ((last,),) = write("SELECT coalesce(max(number), 0) FROM changes WHERE dataset=?", (self.id,))
        return History(revision, position, last - position)

    def note_accuracy(self, *, revision: int, labels: int, correct: int, total: int) -> None:
        """Keep what the head of `revision`, trained on so many `labels`, answers rightly of `total` held-out images."""
        with self._database.transaction() as write:
            write(
                "INSERT OR REPLACE INTO accuracies(dataset, revision, labels, correct, total) VALUES(?, ?, ?, ?, ?)",
                (self.id, revision, labels, correct, total),
            )

    def accuracies(self) -> list[tuple[int, int, int, int]]:
        """Return (revision, labels, correct, total) as they were noted, oldest first."""
        return self._database.read(
            "SELECT revision, labels, correct, total FROM accuracies WHERE dataset=? ORDER BY revision", (self.id,)
        )


def _conflict(history: History) -> RefusedError:
    return RefusedError(
        409,
        f"a change must be of what is there now, labels have changed since: look again, at revision {history.revision}",
    )
