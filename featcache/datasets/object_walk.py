"""The image objects below a place in a storage, by the rules of folders."""

from __future__ import annotations

from featcache.datasets.walk import FolderFiles, is_litter, sort_file
from featcache.system.objects import ObjectPath
from featcache.system.sources.remote import object_stat


def find_objects(place: ObjectPath) -> FolderFiles:
    """Return the image objects below `place`, listed a thousand to a request.

    An object that comes or goes meanwhile is in the list or not; one that is gone when it is read is a failure then.
    Raises `MissingError` for a bucket that is not there, `StorageError` where the storage denies or fails.
    """
    files = FolderFiles()
    folders: dict[str, tuple[list[str], list[int]]] = {}
    for found, status in place.walk():
        name = found.relative_name(place)
        folder, _, last = name.rpartition("/")
        if folder and any(map(is_litter, folder.split("/"))):
            continue
        if not sort_file(name, last, files):
            continue
        paths, numbers = folders.setdefault(folder, ([], []))
        paths.append(name)
        numbers.extend(object_stat(found, status))
    for folder, (paths, numbers) in folders.items():
        files.add(folder, paths, numbers)
    return files
