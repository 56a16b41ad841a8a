"""JSON documents: read whatever is in the file, written as one canonical text for equal values, with a checksum inside.

A document may come from a stranger. What `parse_json` lets through is a value that can be walked, compared and written
again; `read_document` turns everything else that a file can hold into one line that says what to do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from featcache.errors import CorruptError, FormatError, MissingError
from featcache.system.members import read_member
from featcache.system.objects import ObjectPath

MOST_BYTES = 1 << 27  # of a document; none of this package comes near
MOST_NESTED = 100  # brackets within brackets; no document of this package has more than ten


def canonical_json(value: Any) -> str:
    """Return `value` as JSON with sorted keys and no white space: equal values, equal text.

    Examples
    --------
    >>> canonical_json({"b": [1, 2.5], "a": None})
    '{"a":null,"b":[1,2.5]}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def with_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON `values` with ``crc32c``, the checksum of their `featcache.system.json.canonical_json`.

    Examples
    --------
    >>> with_checksum({"a": 1})
    {'a': 1, 'crc32c': 3489125738}
    """
    from crc32c import crc32c

    return {**values, "crc32c": crc32c(canonical_json(values).encode())}


def has_checksum(values: Mapping[str, Any]) -> bool:
    """Return whether `values` are what `with_checksum` returned."""
    try:
        return dict(values) == with_checksum({name: value for name, value in values.items() if name != "crc32c"})
    except UnicodeEncodeError:  # half a surrogate pair, which `with_checksum` refuses
        return False


def parse_json(text: bytes | str) -> Any:
    """Return the value that JSON `text` (bytes: UTF-8) states.

    Raises
    ------
    ValueError
        In one line: for anything but JSON as RFC 8259 has it, the same name twice in an object, a number that is not
        finite or of more than 4,300 digits, brackets nested more than `MOST_NESTED` deep.

    Examples
    --------
    >>> parse_json(b'{"rows": 3}')
    {'rows': 3}
    >>> parse_json("[NaN]")
    Traceback (most recent call last):
    ...
    ValueError: NaN is no number of JSON
    """
    try:
        value = json.loads(
            text if isinstance(text, str) else text.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_distinct,
        )
    except RecursionError:
        value, nested = None, MOST_NESTED + 1
    else:
        nested = _nesting(value)
    if nested > MOST_NESTED:
        raise ValueError(f"its brackets are nested more than {MOST_NESTED} deep")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if number - number != 0:
        raise ValueError(f"a number must be finite, got {digits[:20]}")
    return number


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        left = dict.fromkeys(values, 1)
        for name, _ in pairs:
            left[name] -= 1
            if left[name] < 0:
                raise ValueError(f"the name {name[:40]!r} stands twice in one object")
    return values


def _nesting(value: Any) -> int:
    """Return how deep brackets are nested, counted no further than one past `MOST_NESTED`."""
    depth, level = 0, [value]
    while depth <= MOST_NESTED and (level := [one for one in level if isinstance(one, (dict, list))]):
        depth += 1
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return depth


@dataclass(frozen=True, slots=True)
class DocumentKind:
    """What a JSON document must be, and what to tell the user of one that is not.

    Attributes
    ----------
    thing
        What is read, with its article or as a command's argument: ``a head``, ``MODEL``.
    make
        Advice where there is none: ``make one with 'featcache train'``.
    renew
        Advice where it is damaged: ``train the head again``.
    format
        What must stand under ``format``; None for a document without.
    versions
        What may stand under ``version``, the newest last; empty for a document without.
    keys
        Names that must be there.
    checksum
        Whether ``crc32c`` must be there and hold, in every version but `unchecked`.
    """

    thing: str
    make: str
    renew: str
    format: str | None = None
    versions: tuple[int, ...] = ()
    keys: tuple[str, ...] = ()
    checksum: bool = False
    unchecked: tuple[int, ...] = ()


def read_document(path: Path | ObjectPath, kind: DocumentKind) -> dict[str, Any]:
    """Return the JSON object of `kind` in the file `path`, checked.

    Parameters
    ----------
    path
        A plain file, or a link to one in the same directory; or an object.
    kind
        What it must be.

    Raises
    ------
    MissingError
        Where there is none.
    FormatError
        Where it is of another format, or of a version that is not read.
    CorruptError
        Where it is no plain file of its directory, larger than `MOST_BYTES`, no JSON as `parse_json` reads it, no
        object, does not have its checksum, or lacks names.
    """
    return parse_document(_bytes_of(path, kind), kind, place=str(path))


def parse_document(data: bytes | str, kind: DocumentKind, *, place: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the JSON object of `kind` in `data`, checked; `place` names it in errors.

    Raises
    ------
    FormatError, CorruptError
        As `read_document`.
    """
    named = repr(os.fspath(place))
    try:
        document = parse_json(data)
        json.dumps(document, ensure_ascii=False).encode()  # half a surrogate pair could not be written again
    except ValueError as error:
        raise CorruptError(f"{named} must be JSON, got: {error}; {kind.renew}") from error
    if not isinstance(document, dict):
        raise CorruptError(f"{named} must be a JSON object, it is none; {kind.renew}")
    if "crc32c" in document and kind.checksum and not has_checksum(document):
        raise CorruptError(f"{named} must match its checksum, it does not; {kind.renew}")
    if kind.format is not None and document.get("format") != kind.format:
        raise FormatError(f"{named} must have the format {kind.format!r}, it has another: {kind.make}")
    version = document.get("version")
    if kind.versions and (type(version) is not int or version not in kind.versions):
        raise FormatError(
            f"{named} must be of version {kind.versions[-1]}, got {version!r:.60}: use the featcache that wrote it, or "
            f"{kind.make}"
        )
    if kind.checksum and "crc32c" not in document and version not in kind.unchecked:
        raise CorruptError(f"{named} must have a checksum, it has none; {kind.renew}")
    missing = [key for key in kind.keys if key not in document]
    if missing:
        raise CorruptError(f"{named} must have the keys {missing!r}; {kind.renew}")
    return document


def _bytes_of(path: Path | ObjectPath, kind: DocumentKind) -> bytes:
    if isinstance(path, ObjectPath):
        return path.read_bytes()
    if not os.path.lexists(path):
        raise MissingError(
            f"{kind.thing} must be a directory with {path.name}; {str(path.parent)!r} is none: {kind.make}"
        )
    return read_member(path.parent, path.name, renew=kind.renew, most_bytes=MOST_BYTES)
