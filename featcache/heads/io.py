"""The directory form of a head: ``head.json`` and ``head.safetensors``; nothing pickled, nothing executed.

``head.json``: ``format`` ("featcache.head"), ``version``, ``kind``, ``classes``, ``task``, ``columns``, ``fingerprint``
(of the cache's Recipe), ``settings`` (what refits the head), ``options`` (of the kind), ``calibration``, ``unknown``,
``fit`` (the FitResult), ``arrays`` (name → shape and dtype) and ``sha256`` of ``head.safetensors``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from featcache.errors import CorruptError, InputError
from featcache.heads.base import Head
from featcache.heads.calibration import Calibration
from featcache.heads.kinds import head_class
from featcache.heads.unknown import UnknownRule
from featcache.system.files import new_directory
from featcache.system.json import DocumentKind, read_document
from featcache.system.members import read_member

FORMAT = "featcache.head"
VERSION = 1
JSON_FILE, ARRAYS_FILE = "head.json", "head.safetensors"
_DOCUMENT = DocumentKind(
    "a head",
    make="make one with 'featcache train'",
    renew="train the head again",
    format=FORMAT,
    versions=(VERSION,),
    keys=(
        "kind", "classes", "task", "columns", "fingerprint", "settings", "options", "calibration", "unknown", "arrays",
        "sha256",
    ),
)  # fmt: skip


def save_head(
    head: Head,
    path: str | os.PathLike[str],
    *,
    fit: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
    overwrite: bool = False,
) -> Path:
    """Return the path of the directory in which `head` now is; equal heads give equal bytes.

    The directory appears whole or not at all.

    Parameters
    ----------
    head : Head
        Of any kind.
    path : path
        The directory to be made.
    fit : mapping, optional
        The JSON values of the fit that made the head; `load_fit` gives them back.
    files : mapping of str to bytes, optional
        Further files by name, for people; nothing reads them back.
    overwrite : bool
        Whether what is at `path` is replaced.

    Returns
    -------
    Path
        `path`, made absolute.

    Raises
    ------
    ExistsError
        Where `path` exists and `overwrite` is false.
    StorageError
        Where the disk refuses.

    Examples
    --------
    >>> import numpy as np
    >>> from featcache.heads import LinearHead, save_head
    >>> head = LinearHead(classes=("a", "b"), weight=np.eye(2, dtype=np.float32), bias=np.zeros(2, np.float32))
    >>> path = save_head(head, "saved")
    >>> sorted(file.name for file in path.iterdir())
    ['head.json', 'head.safetensors']
    >>> save_head(head, "saved")
    Traceback (most recent call last):
    featcache.errors.ExistsError: ...
    """
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(array) for name, array in sorted(head.arrays().items())}
    data = save(arrays)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "kind": head.kind,
        "classes": list(head.classes),
        "task": head.task,
        "columns": list(head.columns),
        "fingerprint": head.fingerprint,
        "settings": dict(head.settings),
        "options": head.options(),
        "calibration": None if head.calibration is None else head.calibration.to_json(),
        "unknown": None if head.unknown is None else head.unknown.to_json(),
        "fit": None if fit is None else dict(fit),
        "arrays": {name: {"shape": list(array.shape), "dtype": array.dtype.name} for name, array in arrays.items()},
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    target = Path(os.path.abspath(path))
    with new_directory(target, overwrite=overwrite) as folder:
        for name, content in {**(files or {}), JSON_FILE: text.encode(), ARRAYS_FILE: data}.items():
            with open(folder / name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
    return target


def load_head(path: str | os.PathLike[str]) -> Head:
    """Return the head in directory `path`.

    Parameters
    ----------
    path : path
        What `save_head` or ``featcache train`` made.

    Returns
    -------
    Head
        Of the class that its kind is registered as.

    Raises
    ------
    MissingError
        Where there is no head.
    FormatError
        For another format or a newer version.
    CorruptError
        Where the arrays' bytes are not the ones that were saved, the document does not describe a whole head, or its
        kind is not known in this process: the module that registers it has to be imported first.

    Examples
    --------
    >>> from featcache.heads import load_head
    >>> head = load_head("head")
    >>> head.kind, head.classes
    ('linear', ('cat', 'dog'))
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    document = read_head_json(path)
    data = read_member(Path(path), ARRAYS_FILE, renew="train the head again", sha256=str(document["sha256"]))
    try:
        arrays = load(data)
        present = {name: {"shape": list(array.shape), "dtype": array.dtype.name} for name, array in arrays.items()}
        if present != document["arrays"]:
            raise CorruptError(f"{os.fspath(path)!r} must hold the arrays {document['arrays']!r}, got {present!r}")
        calibration, unknown = document["calibration"], document["unknown"]
        common = {
            "classes": tuple(document["classes"]),
            "task": document["task"],
            "columns": tuple(document["columns"]),
            "fingerprint": document["fingerprint"],
            "settings": document["settings"],
            "calibration": None if calibration is None else Calibration(**calibration),
            "unknown": None if unknown is None else UnknownRule.from_json(unknown),
        }
        return head_class(document["kind"]).from_state(arrays, document["options"], common)
    except (KeyError, TypeError, AttributeError, SafetensorError, InputError) as error:
        raise CorruptError(
            f"{os.fspath(path)!r} must hold a whole head, got {error!r:.200}: restore it or train the head again"
        ) from error


def load_fit(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the JSON values of the FitResult saved with the head in directory `path`, or None."""
    fit: dict[str, Any] | None = read_head_json(path).get("fit")
    return fit


def read_head_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the document in ``head.json`` of directory `path`.

    Raises `MissingError`, `FormatError` and `CorruptError` as `featcache.system.json.read_document`.
    """
    return read_document(Path(path) / JSON_FILE, _DOCUMENT)
