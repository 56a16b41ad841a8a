"""A text file that names an image a line: by a path relative to it, or by a URL of its own."""

from __future__ import annotations

from urllib.parse import unquote

from featcache.datasets.listing import printable
from featcache.datasets.table_files import FoundFile, TableFolder
from featcache.datasets.table_places import object_stats
from featcache.datasets.walk import FolderFiles, has_image_extension
from featcache.errors import InputError
from featcache.system.objects import ObjectPath, is_url, place_of, without_secrets
from featcache.system.sources.interface import FileStat


def find_listed(source: str, root: str) -> FolderFiles:
    """Return the images that the list at `source` names, each once, in the folders of their paths.

    Raises `InputError`, with the line, for a URL with a password or a query, and for text that is not UTF-8.
    """
    try:
        lines = place_of(source).read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{source!r} must be UTF-8 text, it is not ({error.reason}): save it as UTF-8") from error
    names: dict[str, ObjectPath | None] = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if not is_url(text):
            names[text] = None
            continue
        web = text.startswith("http")
        if web and "?" in text:
            raise InputError(
                f"a URL must have no query, line {number} of {source!r} has {without_secrets(text)!r}: a signed one "
                "ends, and is a secret"
            )
        place = ObjectPath(unquote(text) if web else text)
        below = str(place)
        names[below[len(root) + 1 :] if below.startswith(f"{root}/") else below] = place
    return _found(source, root, names)


def _found(source: str, root: str, names: dict[str, ObjectPath | None]) -> FolderFiles:
    folder = TableFolder(root)
    inside = [name for name in names if "://" not in name]
    folder.prepare(inside)
    stats: dict[str, FileStat | str] = {}
    for name in inside:
        found = folder.find(name)
        if isinstance(found, FoundFile):
            stats[found.path] = found.stat
        else:
            stats[name] = found
    foreign = {name: place for name, place in names.items() if "://" in name and place is not None}
    stats.update(zip(foreign, object_stats(list(foreign.values())), strict=True))
    files = FolderFiles()
    folders: dict[str, tuple[list[str], list[int]]] = {}
    for name, stat in stats.items():
        if isinstance(stat, str):
            files.failures.append((name, stat))
        elif not has_image_extension(name):
            files.ignored += 1
        else:
            place = foreign.get(name)
            below = (name if place is None else place.key).rpartition("/")[0]
            paths, numbers = folders.setdefault(below, ([], []))
            paths.append(name)
            numbers.extend(stat)
    for below, (paths, numbers) in folders.items():
        files.add(below, paths, numbers)
    if files.failures and not files.paths:
        name, why = files.failures[0]
        raise InputError(
            f"{source!r} must name an image a line, none is there, first {printable(name)!r}: {why}; or name a folder, "
            "or a .csv with their labels"
        )
    return files
