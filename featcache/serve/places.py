"""Which bundles to serve and as what: ``BUNDLE``, ``NAME=BUNDLE``, ``NAME/VERSION=BUNDLE``, a folder of versions."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featcache.bundle.manifest import may_be_bundle
from featcache.errors import InputError, MissingError

_WORD = re.compile(r"[^/\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,200}")
FIRST_VERSION = "1"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bundle lies that is served as version `version` of the model `name`."""

    name: str
    version: str
    path: Path


def find_places(texts: Sequence[str | os.PathLike[str]]) -> list[Place]:
    """Return the bundles that `texts` name, those of a folder of versions one by one.

    Parameters
    ----------
    texts
        Each a path, perhaps with ``NAME=`` or ``NAME/VERSION=`` before it. Without a name it is that of the directory,
        without a version ``1``. A folder that is no bundle but holds some is a folder of versions, named as they are.

    Raises
    ------
    MissingError
        Where a path is neither a bundle nor a folder of some.
    InputError
        For none, for a name that cannot stand in an address, and for two bundles of one name and version.

    Examples
    --------
    >>> [(place.name, place.version) for place in find_places(["bundle", "pets/7=bundle"])]
    [('bundle', '1'), ('pets', '7')]
    """
    if not texts:
        raise InputError("BUNDLE must be one or more, got none")
    found: dict[tuple[str, str], Place] = {}
    for text in texts:
        for place in _places_of(os.fspath(text)):
            other = found.setdefault((place.name, place.version), place)
            if other is not place:
                raise InputError(
                    f"each bundle must have a name and version of its own, {str(other.path)!r} and {str(place.path)!r} "
                    f"are both {place.name}/{place.version}: write NAME/VERSION=BUNDLE"
                )
    return list(found.values())


def _places_of(text: str) -> list[Place]:
    name, version, path = "", "", Path(text)
    if "=" in text and not path.exists():
        named, _, rest = text.partition("=")
        name, slash, version = named.partition("/")
        path = Path(rest)
        for word in (name, version) if slash else (name,):
            _check_word(word, text)
    name = name or Path(os.path.abspath(path)).name
    _check_word(name, text)
    if may_be_bundle(path):
        return [Place(name, version or FIRST_VERSION, path)]
    versions = sorted(child for child in path.iterdir() if may_be_bundle(child)) if path.is_dir() else []
    if not versions:
        raise MissingError(
            f"BUNDLE must be a bundle or a folder of some, {str(path)!r} is neither: make one with 'featcache export'"
        )
    if version:
        raise InputError(
            f"{text!r} must name one bundle, {str(path)!r} is a folder of {len(versions)}: leave /{version}"
        )
    return [Place(name, child.name, child) for child in versions]


def _check_word(word: str, text: str) -> None:
    if not _WORD.fullmatch(word) or word in (".", ".."):
        raise InputError(
            f"a model's name and version must be one word each without / or control characters, got {word!r} in "
            f"{text!r}: write NAME/VERSION=BUNDLE"
        )


def version_order(version: str) -> tuple[tuple[int, int, str], ...]:
    """Return what versions are sorted by: numbers in them count as numbers, so 10 comes after 9.

    >>> sorted(["10", "9", "9b"], key=version_order)
    ['9', '9b', '10']
    """
    parts = re.findall(r"[0-9]+|[^0-9]+", version)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)
