"""What `save_to_disk` of Hugging Face's datasets wrote, as a `Listing`: Arrow files, of one split or of several."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from featcache.datasets.column_scan import scan_columns
from featcache.datasets.listing import Listing, Task, printable
from featcache.datasets.split_names import split_codes
from featcache.errors import InputError
from featcache.system.json import parse_json


def scan_saved(root: str, scanned_ns: int, *, task: Task | None, splits: bool) -> Listing:
    """Return the listing of the Dataset or DatasetDict at `root`.

    Raises `InputError` where its files are not what `save_to_disk` writes.
    """
    whole = Path(root) / "dataset_dict.json"
    parts = _names(_document(whole), "splits", root) if whole.exists() else [""]
    files = {f"{part}/{name}".lstrip("/"): part for part in parts for name in _data_files(os.path.join(root, part))}
    codes = split_codes(part for part in parts if part) if splits else {}
    listing = scan_columns(
        root,
        [name for name, part in files.items() if not codes or part in codes],
        scanned_ns,
        task=task,
        splits=splits,
        codes={name: codes[part] for name, part in files.items() if part in codes},
    )
    left_out = [part for part in parts if codes and part not in codes]
    if not left_out:
        return listing
    named = ", ".join(map(printable, left_out))
    note = f"{named} beside {' and '.join(sorted(codes))} left out: no name of a split, such as train, val or test"
    return dataclasses.replace(listing, notes=(*listing.notes, note))


def _data_files(folder: str) -> list[str]:
    state = _document(Path(folder) / "state.json")
    if state.get("_indices_data_files"):
        raise InputError(
            f"{folder!r} must hold its rows in order, it holds a selection of them: flatten_indices() first"
        )
    entries = state.get("_data_files")
    names = [entry.get("filename") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return _plain(names, f"{folder}/state.json")


def _names(document: dict[str, Any], key: str, root: str) -> list[str]:
    return _plain(document.get(key), f"{root}/dataset_dict.json")


def _plain(names: Any, place: str) -> list[str]:
    """Return `names`; `InputError` where one of them leads out of its folder, or there are none."""
    if not isinstance(names, list) or not names:
        raise InputError(f"{place!r} must name files as save_to_disk does, it names none: save the data set again")
    for name in names:
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise InputError(f"{place!r} must name files of its own folder, got {name!r}")
    return list(names)


def _document(path: Path) -> dict[str, Any]:
    try:
        values = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} must be the JSON that save_to_disk writes, got: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{str(path)!r} must be the JSON that save_to_disk writes, got another")
    return values
