"""`Workspace`: a folder of ordinary caches, heads, models and bundles, with the studio's database among them.

WORKSPACE/studio.sqlite    labels and their history, jobs (`featcache.serve.studio.database`)
WORKSPACE/images/NAME/     what was dropped into the page
WORKSPACE/caches/NAME      and heads/, models/, bundles/: what jobs make; those of one's own may lie anywhere in it
WORKSPACE/maps/            where images lie in a plane, by the number of the data set
WORKSPACE/jobs/ID.log      what a job's commands said
WORKSPACE/thumbnails/      small pictures, made again where they are missing
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from featcache.errors import InputError, MissingError, StorageError
from featcache.verification import Kind, kind_of

KINDS: tuple[Kind, ...] = ("cache", "head", "model", "bundle")
DATABASE = "studio.sqlite"
REPORT = "report.html"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_DEPTH = 4
_NOT_LOOKED_INTO = ("images", "thumbnails", "jobs", "maps")
_MOST = 1000
_ASIDE = ".unfinished-"


@dataclass(frozen=True, slots=True)
class Artefact:
    """A directory that a command made: its `kind`, and `name`, its path from the workspace."""

    kind: Kind
    name: str


class Workspace:
    """The folder at `root`, made where it is missing.

    Raises `InputError` where it is a file, `StorageError` where the disk refuses.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(os.path.abspath(root))
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"WORKSPACE must be a folder, {os.fspath(root)!r} is a file")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"WORKSPACE {os.fspath(root)!r} must be writable, got: {error.strerror}") from error

    @property
    def database(self) -> Path:
        """Where the database lies."""
        return self.root / DATABASE

    def folder(self, kind: str) -> Path:
        """Return the folder for what is called `kind`, such as ``jobs``, made where it is missing."""
        place = self.root / kind
        place.mkdir(exist_ok=True)
        return place

    def aside(self, kind: str) -> Path:
        """Return a path in the folder for `kind` that nothing has, for what is not whole yet."""
        return self.folder(kind) / f"{_ASIDE}{os.urandom(6).hex()}"

    def sweep(self) -> None:
        """Take away what a kill has left unfinished; only while nothing is being made."""
        for left in self.root.glob(f"*/{_ASIDE}*"):
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()

    def place(self, kind: Kind | str, name: str) -> Path:
        """Return where the new artefact `name` of `kind` is to lie. Raises `InputError` as `check_name`."""
        return self.folder(f"{kind}s") / check_name(name)

    def existing(self, kind: Kind, name: str) -> Path:
        """Return the path of the artefact that is listed as `name`; `MissingError` where none is."""
        if Artefact(kind, name) not in self.artefacts():
            raise MissingError(f"the workspace must hold the {kind} {name[:100]!r}, it does not")
        return self.root / name

    def artefacts(self) -> list[Artefact]:
        """Return what there is, by name; `_MOST` at most."""
        found = [artefact for _, artefact in zip(range(_MOST), self._below(self.root, ""), strict=False)]
        return sorted(found, key=lambda one: (KINDS.index(one.kind), one.name))

    def reports(self) -> list[str]:
        """Return the folders with a ``report.html``: what `featcache run` made, and models that `compress` found."""
        places = {f"{one.name}/compression" for one in self.artefacts() if one.kind == "model"}
        for one in self.artefacts():
            places.update(parent.as_posix() for parent in PurePosixPath(one.name).parents)
        return sorted(place for place in places if (self.root / place / REPORT).is_file())

    def report(self, name: str) -> Path:
        """Return the file of the report that is listed as `name`; `MissingError` where none is."""
        if name not in self.reports():
            raise MissingError(f"the workspace must hold the report {name[:100]!r}, it does not")
        return self.root / name / REPORT

    def _below(self, folder: Path, name: str) -> Iterator[Artefact]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:  # it goes just now, or is not ours to read
            return
        for entry in entries:
            if entry.name.startswith(".") or not entry.is_dir(follow_symlinks=False):
                continue
            below = f"{name}/{entry.name}" if name else entry.name
            try:
                yield Artefact(kind_of(folder / entry.name), below)
            except MissingError:
                if below not in _NOT_LOOKED_INTO and below.count("/") < _DEPTH:
                    yield from self._below(folder / entry.name, below)


def check_name(name: str) -> str:
    """Return `name`, fit for a folder's name on every system; `InputError` for any other."""
    if not _NAME.fullmatch(name) or name.endswith("."):
        raise InputError(f"a name must be 1 to 64 letters, digits, '_', '-' or '.', got {name[:100]!r}")
    return name
