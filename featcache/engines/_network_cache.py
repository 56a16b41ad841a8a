"""Keep compiled networks in the user's cache directory, so that the next start needs neither weights nor compiler.

A file is ``header length (8 bytes) | header (JSON) | payload``; the header holds the payload's sha256. A damaged or
foreign file counts as absent and is replaced. It is written aside and renamed, so that no reader ever sees half of it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.recipe import Recipe
from featcache.system.files import cache_home, new_file
from featcache.system.json import canonical_json, parse_json

if TYPE_CHECKING:
    from featcache.backbone.backbone import Backbone

MAX_BYTES = 2 << 30
_FORMAT = 1
_logger = logging.getLogger(__name__)


def cache_directory() -> Path:
    """Return the directory of compiled networks, in featcache's cache directory (``$FEATCACHE_HOME``)."""
    return cache_home() / "networks"


def entry_path(identity: Mapping[str, Any]) -> Path:
    """Return the file of the network that `identity` (JSON values) describes in full."""
    key = hashlib.sha256(canonical_json({"format": _FORMAT, **identity}).encode()).hexdigest()
    return cache_directory() / f"{key[:40]}.network"


def load_entry(path: Path) -> tuple[dict[str, Any], bytes] | None:
    """Return (header, payload) of an intact file, None where there is none."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    size = int.from_bytes(data[:8], "little")
    try:
        header = parse_json(data[8 : 8 + size])
        payload = data[8 + size :]
        intact = header["sha256"] == hashlib.sha256(payload).hexdigest()
    except (ValueError, KeyError, TypeError, OverflowError):
        intact = False
    if not intact:
        _logger.warning("the compiled network %s is damaged; it is compiled again", path)
        return None
    try:
        os.utime(path)  # the least recently used are removed first
    except OSError:
        _logger.debug("the time of %s cannot be set", path)
    return header, payload


def save_entry(path: Path, header: Mapping[str, Any], payload: bytes, *, max_bytes: int = MAX_BYTES) -> None:
    """Store a network; where the directory cannot be written to, the next start is slower and nothing else changes.

    The networks that were not used for longest go where all of them together are larger than `max_bytes`.
    """
    text = json.dumps({**header, "sha256": hashlib.sha256(payload).hexdigest()}).encode()
    try:
        with new_file(path, overwrite=True) as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.write(payload)
        _remove_oldest(path.parent, keep=path, max_bytes=max_bytes)
    except OSError as error:
        _logger.warning("the compiled network cannot be kept: %s; set FEATCACHE_HOME", error)


def _remove_oldest(directory: Path, *, keep: Path, max_bytes: int) -> None:
    entries = sorted(
        ((status.st_mtime, status.st_size, path) for path in directory.glob("*.network") for status in [path.stat()]),
        reverse=True,
    )
    total = 0
    for _, size, path in entries:
        total += size
        if total > max_bytes and path != keep:
            path.unlink(missing_ok=True)


def identity(source: Backbone | Recipe) -> dict[str, Any]:
    """Return what determines a network's graph besides engine and precision, as JSON values, for the cache's key."""
    size = source.image_preprocessing if isinstance(source, Recipe) else source.preprocessing
    return {
        "model": source.model if isinstance(source, Recipe) else source.model_name,
        "model_kwargs": dict(source.model_kwargs),
        "weights_sha256": source.weights_sha256,
        "outputs": list(source.outputs),
        "input": [size.height, size.width, list(size.mean), list(size.std)],
    }
