"""A BUNDLE on disk, opened: its labels, its preprocessing and the device files it holds.

BUNDLE/manifest.json     format, version, device files by format, lineage, sha256 and size of every file
BUNDLE/preprocess.json   labels, task, how an image becomes the input, the tensors of each format
BUNDLE/report.json       what was measured when it was made; not covered by the manifest
BUNDLE/signature.json    where it was signed: an Ed25519 signature of the manifest
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from featcache.errors import CorruptError, InputError
from featcache.extract.inputs.deployed import DeployedInput
from featcache.extract.inputs.registry import find_input
from featcache.formats.interface import Runner
from featcache.formats.registry import find_target
from featcache.graph.cost import GraphCost
from featcache.heads.base import TASKS
from featcache.heads.unknown import UnknownRule
from featcache.recipe import InputPreprocessing, preprocessing_from_json
from featcache.system.json import DocumentKind, read_document
from featcache.system.members import checked_member, read_member
from featcache.system.threads import processor_count

FORMAT = "featcache.bundle"
VERSION = 1
MANIFEST_FILE, PREPROCESS_FILE, REPORT_FILE = "manifest.json", "preprocess.json", "report.json"
SIGNATURE_FILE = "signature.json"
_MAKE, _RENEW = "make one with 'featcache export'", "export the bundle again"
_MANIFEST = DocumentKind(
    "BUNDLE", make=_MAKE, renew=_RENEW, format=FORMAT, versions=(VERSION,), keys=("name", "formats", "lineage", "files")
)
_PREPROCESS = DocumentKind(
    "BUNDLE", make=_MAKE, renew=_RENEW, keys=("labels", "task", "unknown", "preprocessing", "tensors")
)


@dataclass(frozen=True, slots=True)
class Bundle:
    """What stands in a bundle's JSON files.

    Parameters
    ----------
    path
        The directory.
    name
        The backbone's.
    classes, task, unknown
        Label of each logit, what logits mean, and the rule for images of no known class.
    preprocessing
        How an image, or a text, becomes the input.
    formats
        Files of each format, the one to open first.
    lineage
        Where the model came from.
    costs
        What each format's graph costs by counting, as counted by the export; None in bundles that lack them.
    digests
        sha256 of every file that the manifest states, by its path in the bundle.
    """

    path: Path
    name: str
    classes: tuple[str, ...]
    task: str
    unknown: UnknownRule | None
    preprocessing: InputPreprocessing
    formats: Mapping[str, tuple[str, ...]]
    lineage: Mapping[str, Any]
    costs: Mapping[str, GraphCost | None]
    digests: Mapping[str, str]

    def format_named(self, name: str | None) -> str:
        """Return `name`, or for None the first format; `InputError` for one the bundle does not hold."""
        if name is None:
            return next(iter(self.formats))
        if name not in self.formats:
            raise InputError(f"format must be one of this bundle's {', '.join(self.formats)}, got {name!r}")
        return name

    @property
    def input(self) -> DeployedInput:
        """What stands before the model: how bytes become its input.

        Raises `MissingError` and `CorruptError` for a file that it needs, as `featcache.system.members.read_member`.
        """
        return find_input(self.preprocessing.input).deployed(self.preprocessing, self._asset)

    def _asset(self, name: str) -> bytes:
        return read_member(self.path, name, renew=_RENEW, sha256=str(self.digests.get(name)))

    def files(self, format: str) -> tuple[Path, ...]:
        """Return the paths of the files of `format`, each a plain file with the digest that the manifest states.

        Raises `MissingError` and `CorruptError` as `featcache.system.members.checked_member`.
        """
        return tuple(
            checked_member(self.path, name, renew=_RENEW, sha256=self.digests.get(name))
            for name in self.formats[self.format_named(format)]
        )

    def open(self, format: str | None = None, *, threads: int | None = None) -> Runner:
        """Return the model of `format` (default: the first), loaded, computing with `threads` (default: all).

        Raises as `files`, and `FormatError` where its runtime does not read the file.
        """
        named = self.format_named(format)
        return find_target(named).open(self.files(named), threads=threads or processor_count())


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Return whether `path` is a directory with a bundle's manifest."""
    place = Path(path)
    return (place / MANIFEST_FILE).is_file() and (place / PREPROCESS_FILE).is_file()


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Return the bundle in a directory; its device files are neither opened nor checked before `Bundle.open`.

    Parameters
    ----------
    path
        The directory that `export` wrote.

    Raises
    ------
    MissingError
        Where there is none.
    FormatError
        For another format or version.
    CorruptError
        Where its JSON is not what `export` wrote.

    Examples
    --------
    >>> from featcache.runtime import open_bundle
    >>> bundle = open_bundle("bundle")
    >>> bundle.classes, list(bundle.formats)
    (('cat', 'dog'), ['onnx'])
    >>> with bundle.open("onnx", threads=1) as runner:
    ...     runner.run(bundle.input.example()).shape
    (1, 2)
    """
    place = Path(path)
    manifest = read_manifest(place)
    described = read_document(place / PREPROCESS_FILE, _PREPROCESS)
    try:
        _check_values(described, manifest)
        unknown = described["unknown"]
        return Bundle(
            path=place,
            name=manifest["name"],
            classes=tuple(described["labels"]),
            task=described["task"],
            unknown=None if unknown is None else UnknownRule.from_json(unknown),
            preprocessing=preprocessing_from_json(described["preprocessing"]),
            formats={name: tuple(entry["files"]) for name, entry in manifest["formats"].items()},
            lineage=manifest["lineage"],
            costs={
                name: GraphCost(**entry["figures"]) if "figures" in entry else None
                for name, entry in manifest["formats"].items()
            },
            digests=_digests(manifest),
        )
    except (KeyError, TypeError, AttributeError, InputError) as error:
        raise CorruptError(f"{str(path)!r} must hold a whole bundle, got {error!r:.200}: {_RENEW}") from error


def read_manifest(place: Path) -> dict[str, Any]:
    """Return the manifest of the bundle at `place`.

    Raises `MissingError`, `FormatError` and `CorruptError` as `featcache.system.json.read_document`.
    """
    return read_document(place / MANIFEST_FILE, _MANIFEST)


def _digests(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of the files; `KeyError` where one of a format is not stated."""
    digests = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    for entry in manifest["formats"].values():
        for name in entry["files"]:
            digests[name]
    return digests


def _check_values(described: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    """Raise `InputError` unless labels are texts, the task is one that logits can have, and files lie inside."""
    labels = described["labels"]
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise InputError(f"labels must be a list of one text or more, got {labels!r:.100}")
    if described["task"] not in TASKS:
        raise InputError(f"task must be one of {TASKS!r}, got {described['task']!r:.60}")
    if not manifest["formats"]:
        raise InputError("formats must be one or more, got none")
    for entry in manifest["formats"].values():
        if not entry["files"] or not isinstance(entry["files"], list):
            raise InputError(f"each format must list its files, got {entry['files']!r:.60}")
        for name in entry["files"]:
            check_inside(name)


def check_inside(name: str) -> None:
    """Raise `InputError` unless `name` is a relative path of plain parts that cannot leave its root."""
    parts = PurePosixPath(name).parts
    odd = not parts or name != "/".join(parts) or any(part in (".", "..", "/") for part in parts)
    if odd or "\\" in name or "\0" in name or ":" in parts[0]:
        raise InputError(f"a file of a bundle must have a plain relative path inside it, got {name!r}")
