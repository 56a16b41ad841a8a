"""Parquet and Arrow files of images as a `Listing`: a column of bytes, one of labels, as Hugging Face writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featcache.datasets.container_listing import ContainedImage, listing_of_contained, unreadable
from featcache.datasets.container_splits import container_splits
from featcache.datasets.listing import Listing, Task, counted
from featcache.datasets.splits import NO_SPLIT
from featcache.datasets.tar_scan import LABEL_FIELDS
from featcache.errors import AccessError, FormatError, InputError, MissingError, ReadError
from featcache.system.json import parse_json
from featcache.system.sources.columns import byte_columns, member_name, open_arrow, open_parquet, row_stat
from featcache.system.sources.interface import FileStat
from featcache.system.sources.parts import open_parts

_IMAGE_NAMES = ("image", "img", "images", "picture", "photo", "jpg", "jpeg", "png", "webp", "bytes", "content", "data")
_LABEL_NAMES = (*LABEL_FIELDS, "labels", "target", "fine_label")


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of one file: their paths, stats and labels, and which column was read as the label."""

    paths: list[str]
    stats: list[FileStat]
    labels: list[list[str]]
    label_column: str | None
    other_labels: tuple[str, ...]


def scan_columns(
    root: str,
    names: Sequence[str],
    scanned_ns: int,
    *,
    task: Task | None,
    splits: bool,
    codes: Mapping[str, int] | None = None,
) -> Listing:
    """Return the listing of the images in the Parquet or Arrow files `names` below `root`; images are not read.

    `codes`: the split of each file, by default said by the files' names. A file that cannot be read is one failure.
    Raises `InputError` where a file has no column of images, or none of the files can be read.
    """
    if codes is None:
        codes = container_splits(names) if splits else {}
    failures: list[tuple[str, str]] = []
    found: list[ContainedImage] = []
    notes: list[str] = []
    for name in names:
        try:
            rows = _rows_of(f"{root}/{name}", name)
        except (FormatError, MissingError, AccessError, ReadError) as error:
            failures.append((name, unreadable(error)))
            continue
        code = codes.get(name, NO_SPLIT)
        found += [
            ContainedImage(path, stat, labels, code)
            for path, stat, labels in zip(rows.paths, rows.stats, rows.labels, strict=True)
        ]
        if rows.other_labels and not notes:
            others = ", ".join(map(repr, rows.other_labels))
            notes.append(f"the labels are read from the column {rows.label_column!r}, not from {others}")
    if not found and failures:
        name, why = failures[0]
        raise InputError(
            f"IMAGES must hold at least one image; none of {counted(len(names), 'file')} can be read, {name!r}: {why}"
        )
    return listing_of_contained(root, found, scanned_ns, task=task, ignored=0, failures=failures, notes=notes)


def _rows_of(path: str, name: str) -> _Rows:
    file = open_parts(path)
    parquet = path.lower().endswith(".parquet")
    opened = open_parquet(file) if parquet else open_arrow(path, file)
    schema = opened.schema_arrow if parquet else opened.schema
    count = opened.metadata.num_rows if parquet else opened.num_rows
    features = _features(schema)
    image = _image_column(schema, features, path)
    label, others = _label_column(schema, features)
    values: list[Any] = [None] * count
    if label is not None:
        values = (opened.read(columns=[label]) if parquet else opened).column(label).to_pylist()
    names = _class_names(features.get(label)) if label is not None else None
    width = [member_name(image, row, count=count, schema=schema) for row in range(count)]
    return _Rows(
        [f"{name}/{member}" for member in width],
        [row_stat(file, image, row) for row in range(count)],
        [_texts(value, names) for value in values],
        label,
        others,
    )


def _features(schema: Any) -> dict[str, Any]:
    """Return what Hugging Face's datasets says of the columns, in the schema's metadata; {} where nothing."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    try:
        features = parse_json(text)["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}  # another program's, or of another version: the columns speak for themselves
    return features if isinstance(features, dict) else {}


def _image_column(schema: Any, features: Mapping[str, Any], path: str) -> str:
    columns = byte_columns(schema)
    said = [name for name in columns if isinstance(features.get(name), dict) and features[name].get("_type") == "Image"]
    named = [name for name in _IMAGE_NAMES if name in columns]
    for candidates in (said, named if len(columns) > 1 else columns):
        if candidates:
            return str(candidates[0])
    listed = ", ".join(f"{field.name} ({str(field.type)[:40]})" for field in schema)
    raise InputError(
        f"{path!r} must have a column of image bytes (binary, or a struct with the field bytes), its columns are "
        f"{listed}: write the images' bytes into a column 'image'"
    )


def _label_column(schema: Any, features: Mapping[str, Any]) -> tuple[str | None, tuple[str, ...]]:
    """Return the column of the labels, None where there is none, and the others that hold classes, too."""
    classes = [name for name in schema.names if _class_names(features.get(name)) is not None]
    named = [name for name in _LABEL_NAMES if name in schema.names]
    candidates = [name for name in named if name in classes] or classes or named
    if not candidates:
        return None, ()
    return candidates[0], tuple(name for name in classes if name != candidates[0])


def _class_names(feature: Any) -> list[str] | None:
    """Return the names of a ``ClassLabel``, or of a list of them."""
    if isinstance(feature, list) and len(feature) == 1:
        return _class_names(feature[0])
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list):
        return [str(name) for name in feature["names"]]
    return _class_names(feature.get("feature"))


def _texts(value: Any, names: list[str] | None) -> list[str]:
    """Return a label as texts, none for null and for -1 of a class, as test splits without labels have."""
    if value is None:
        return []
    if isinstance(value, list):
        return [text for one in value for text in _texts(one, names)]
    if names is not None and isinstance(value, int):
        return [names[value]] if 0 <= value < len(names) else []
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return [text.strip()] if text.strip() else []
