"""``model.json``: what a MODEL says of itself, read without torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from featcache.system.json import DocumentKind, read_document

FORMAT = "featcache.model"
VERSION = 1
MODEL_FILE = "model.json"
RENEW = "merge it again"
_DOCUMENT = DocumentKind(
    "MODEL",
    make="make one with 'featcache merge'",
    renew=RENEW,
    format=FORMAT,
    versions=(VERSION,),
    keys=("architecture", "recipe", "classes", "head", "lineage", "sha256"),
)


def read_model_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the document in ``model.json`` of directory `path`.

    Raises `MissingError`, `FormatError` and `CorruptError` as `featcache.system.json.read_document`.
    """
    return read_document(Path(path) / MODEL_FILE, _DOCUMENT)
