"""What `IMAGES` names: a folder, a table, a list, tars or columns of images, on a disk or in a storage."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import product
from typing import Literal
from urllib.parse import unquote

from featcache.datasets.walk import has_image_extension, is_table
from featcache.errors import InputError, MissingError
from featcache.system.objects import ObjectPath, is_url, without_secrets
from featcache.system.sources.opening import is_container

Kind = Literal["folder", "table", "list", "containers", "saved", "image", "other"]

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
_MOST_EXPANDED = 1_000_000
WHAT_IMAGES_MAY_BE = (
    "a folder of images, a .csv or .txt that lists them, tars or Parquet files, on a disk or at s3://, gs://, az://, "
    "https://"
)


@dataclass(frozen=True, slots=True)
class ImagesPlace:
    """What a person named. `root`: the folder that paths of images are relative to, absolute or a URL.

    `source`: the place itself. `name`: what a data set of it is called. `files`: of containers, relative to `root`.
    """

    kind: Kind
    source: str
    root: str
    name: str
    files: tuple[str, ...] = ()

    @property
    def is_remote(self) -> bool:
        """Whether it lies in a storage."""
        return is_url(self.root)


def images_place(images: str | os.PathLike[str]) -> ImagesPlace:
    """Return what `images` names, by its form, and on a disk by what is there.

    Raises `MissingError` where nothing is there on the disk, `InputError` for a URL that cannot be read from.
    """
    named = os.fspath(images)
    if is_url(named):
        return _url_place(named)
    source = os.path.abspath(named)
    if not os.path.lexists(source) and _RANGE.search(source):
        return _pattern_place(source)
    if not os.path.exists(source):
        raise MissingError(f"IMAGES must be a folder or a CSV file; {named!r} does not exist")
    folder, name = os.path.split(source)
    stem = os.path.splitext(name)[0]
    if os.path.isdir(source):
        return ImagesPlace("saved" if _is_saved(source) else "folder", source, source, name)
    if is_table(source):
        return ImagesPlace("table", source, folder, stem)
    if is_container(source):
        return ImagesPlace("containers", source, folder, stem, (name,))
    if source.lower().endswith(".txt"):
        return ImagesPlace("list", source, folder, stem)
    return ImagesPlace("image" if has_image_extension(source) else "other", source, folder, stem)


def root_of(images: str | os.PathLike[str]) -> str:
    """Return the folder that the paths of `images` are relative to, whether there is anything or not."""
    try:
        return images_place(images).root
    except MissingError:
        return os.path.abspath(images)


def data_set_name(images: str | os.PathLike[str]) -> str:
    """Return what `images` are called: their folder's name, or the name of what lists or holds them without ending."""
    try:
        return images_place(images).name
    except MissingError:
        return os.path.splitext(os.path.basename(os.path.abspath(images)))[0]


def _url_place(named: str) -> ImagesPlace:
    web = named.startswith(("http://", "https://"))
    if web and ("?" in named or "#" in named):
        raise InputError(
            f"a URL of images must have no query, got {without_secrets(named)!r}: a signed one ends, and is a secret; "
            "name the place, and set credentials in the environment"
        )
    place = ObjectPath(unquote(named) if web else named)
    source = str(place)
    if _RANGE.search(source):
        return _pattern_place(source)
    above = str(place.parent)
    if is_table(source):
        return ImagesPlace("table", source, above, place.stem)
    if is_container(source):
        return ImagesPlace("containers", source, above, place.stem, (place.name,))
    if source.lower().endswith(".txt"):
        return ImagesPlace("list", source, above, place.stem)
    if has_image_extension(source):
        return ImagesPlace("image", source, above, place.stem)
    if web:
        raise InputError(
            f"{source!r} must name a .csv or .txt that lists the images, or a tar or Parquet file: a web server does "
            "not say what it has"
        )
    return ImagesPlace("folder", source, source, place.name)


def _pattern_place(source: str) -> ImagesPlace:
    """Return the containers that a pattern such as ``shard-{000..009}.tar`` names."""
    literal = source[: _RANGE.search(source).start()]  # type: ignore[union-attr]
    root = literal.rpartition("/")[0]
    files = tuple(path[len(root) + 1 :] for path in _expanded(source))
    for file in files:
        if not is_container(file):
            raise InputError(f"a pattern must name .tar or .parquet files, got {source!r}")
    name = literal.rpartition("/")[2].rstrip("-_. ") or root.rpartition("/")[2]
    return ImagesPlace("containers", source, root, name, files)


def _expanded(pattern: str) -> list[str]:
    pieces: list[list[str]] = []
    end, count = 0, 1
    for match in _RANGE.finditer(pattern):
        pieces.append([pattern[end : match.start()]])
        if match[3] is not None:
            pieces.append(match[3].split(","))
        else:
            first, last = int(match[1]), int(match[2])
            if last < first:
                raise InputError(f"the range in {pattern!r} must go up, got {match[0]}")
            if last - first >= _MOST_EXPANDED:
                raise InputError(f"a pattern must name at most {_MOST_EXPANDED} files, got {match[0]}")
            pieces.append([f"{number:0{len(match[1])}d}" for number in range(first, last + 1)])
        count *= len(pieces[-1])
        end = match.end()
    if count > _MOST_EXPANDED:
        raise InputError(f"a pattern must name at most {_MOST_EXPANDED} files, {pattern!r} names {count}")
    return ["".join(parts) for parts in product(*pieces, [pattern[end:]])]


def _is_saved(folder: str) -> bool:
    """Return whether `save_to_disk` of Hugging Face's datasets wrote the folder."""
    return any(
        all(os.path.isfile(os.path.join(folder, name)) for name in names)
        for names in (("dataset_dict.json",), ("state.json", "dataset_info.json"))
    )
