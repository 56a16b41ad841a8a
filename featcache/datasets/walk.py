"""The image files below a folder, with their stats, and what else there was."""

from __future__ import annotations

import os
import stat as stat_module
from array import array
from collections.abc import Iterable, Sequence

from featcache.system.sources.opening import is_container

# Formats that are not read stand here too (heic): such a photo is a recorded failure, not silently left out.
IMAGE_EXTENSIONS = frozenset(
    "avif bmp dib gif heic heif hif j2k jfif jp2 jpe jpeg jpg mpo pbm pgm png pnm ppm qoi tga tif tiff webp".split()  # noqa: SIM905
)

_TYPE_BITS = 0o170000  # of a file's mode
_LITTER = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "__pycache__"})
_SHADOW = "._"  # what macOS writes beside each file on a foreign disk or in a zip


TABLE_EXTENSIONS = (".csv", ".tsv")


def is_table(path: str) -> bool:
    """Return whether the name is that of a table of images."""
    return path.lower().endswith(TABLE_EXTENSIONS)


def has_image_extension(path: str) -> bool:
    """Return whether the name's ending is that of an image, whatever its case."""
    return path.rpartition(".")[2].lower() in IMAGE_EXTENSIONS


def is_litter(folder: str) -> bool:
    """Return whether a folder of this name is passed over."""
    return folder.startswith(".") or folder in _LITTER


def sort_file(path: str, name: str, files: FolderFiles, extensions: frozenset[str] = IMAGE_EXTENSIONS) -> bool:
    """Return whether the file `path`, called `name`, has one of these `extensions`; count it in `files` if it has not.

    What macOS writes beside a file counts as none.
    """
    if name.rpartition(".")[2].lower() in extensions and not name.startswith(_SHADOW):
        return True
    files.ignored += 1
    if is_table(name):
        files.tables.append(path)
    elif is_container(name) and not name.startswith(_SHADOW):
        files.containers.append(path)
    return False


class FolderFiles:
    """The image files of a folder, a folder after another, and what else there was.

    `paths`: ``/``-separated, below the folder. `numbers`: size, mtime_ns, ctime_ns, inode of each. `folders`: those
    with images, `counts`: how many. `failures`: (path, reason) of what could not be listed. `ignored`: other files;
    `tables`: those of them that are tables of images; `containers`: those that may hold many images each.
    """

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.numbers = array("q")
        self.folders: list[str] = []
        self.counts: list[int] = []
        self.failures: list[tuple[str, str]] = []
        self.ignored = 0
        self.tables: list[str] = []
        self.containers: list[str] = []

    def add(self, folder: str, paths: Sequence[str], numbers: Iterable[int]) -> None:
        """Add the images `paths` of a folder, with the four numbers of each."""
        self.folders.append(folder)
        self.counts.append(len(paths))
        self.paths.extend(paths)
        self.numbers.extend(numbers)


def find_files(root: str, extensions: frozenset[str] = IMAGE_EXTENSIONS) -> FolderFiles:
    """Return the files below `root` that have one of these `extensions`, in lower case without a dot.

    Folders that begin with a dot and the litter of systems are passed over.
    """
    files = FolderFiles()
    _walk(root, "", (), extensions, files)
    return files


def _walk(
    root: str, prefix: str, above: tuple[tuple[int, int], ...], extensions: frozenset[str], files: FolderFiles
) -> None:
    """Add the files below ``root/prefix`` with these `extensions` to `files`."""
    folder = os.path.join(root, prefix) if prefix else root
    try:
        status = os.stat(folder)
        here = (status.st_dev, status.st_ino)
        if here in above:
            files.failures.append((prefix, "a symbolic link that leads back to a folder above it"))
            return
        entries = os.scandir(folder)
    except OSError as error:
        files.failures.append((prefix or ".", f"cannot be listed: {error.strerror}"))
        return
    start, inner, before = f"{prefix}/" if prefix else "", [], len(files.paths)
    append, extend = files.paths.append, files.numbers.extend
    with entries:
        for entry in entries:  # the loop of a build with nothing to do: every step counts
            name = entry.name
            try:
                if entry.is_dir():
                    if not name.startswith(".") and name not in _LITTER:
                        inner.append(start + name)
                    continue
                if name.rpartition(".")[2].lower() not in extensions or name.startswith(_SHADOW):
                    sort_file(start + name, name, files, extensions)
                    continue
                status = entry.stat()
            except OSError as error:  # a link to itself, or no rights
                files.failures.append((start + name, f"cannot be read: {error.strerror}"))
                continue
            if status.st_mode & _TYPE_BITS == stat_module.S_IFREG:
                append(start + name)
                extend((status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
            else:
                files.failures.append((start + name, "not a regular file"))
    if len(files.paths) > before:
        files.folders.append(prefix)
        files.counts.append(len(files.paths) - before)
    for name in inner:
        _walk(root, name, (*above, here), extensions, files)
