"""What a tar in a storage holds, kept on this machine: its headers lie between its members, and are read once.

Kept below the folder of `cache_home`, by URL, ETag and size: of a tar that was replaced nothing is found.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.errors import StorageError
from featcache.system.files import cache_home, write_atomically
from featcache.system.json import has_checksum, parse_json, with_checksum
from featcache.system.sources.parts import PartedFile
from featcache.system.sources.tar import Member

_VERSION = 1


@dataclass(frozen=True, slots=True)
class TarIndex:
    """The members of a tar, in their order, and JSON values that whoever walked it keeps beside them."""

    members: list[Member]
    values: dict[str, Any]


def kept_index(file: PartedFile) -> TarIndex | None:
    """Return what was kept of the tar `file`, None where nothing was, or not of this very tar."""
    place = _place(file)
    if place is None or not place.is_file():
        return None
    try:
        document = parse_json(place.read_bytes())
        if not isinstance(document, dict) or document.get("version") != _VERSION or not has_checksum(document):
            return None
        members = [Member(name, offset, size) for name, offset, size in document["members"]]
        return TarIndex(members, dict(document["values"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # half a file of another program: it is made anew


def keep_index(file: PartedFile, index: TarIndex) -> None:
    """Keep `index` for the tar `file`, where an ETag names what is in that; a memo only: a full disk keeps none."""
    place = _place(file)
    if place is None:
        return
    members = [[member.name, member.offset, member.size] for member in index.members]
    with suppress(OSError, StorageError, UnicodeEncodeError):
        document = with_checksum({"version": _VERSION, "members": members, "values": index.values})
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, json.dumps(document).encode())


def _place(file: PartedFile) -> Path | None:
    stat = file.stat(file.size, "members")
    if stat[1] > 0:  # times: they name content on this machine alone, where a walk is quick
        return None
    return cache_home() / "tars" / f"{-stat[1]:016x}{-stat[2]:016x}.json"
