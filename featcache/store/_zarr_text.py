"""What Zarr v3 calls things: the descriptions of groups and arrays, and the names of chunks, on disk and elsewhere."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from featcache.store._record import COLUMN_PREFIX, Layout, Record

ATTRIBUTE = "featcache"
CRC_BYTES = 4


def array_metadata(layout: Layout, record: Record) -> dict[str, Any]:
    """Return an array's description; its attributes hold the commit record."""
    little = {} if layout.dtype == "uint8" else {"configuration": {"endian": "little"}}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [record.rows, *layout.shape],
        "data_type": layout.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [layout.block_rows, *layout.shape]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": 0.0 if np.dtype(layout.dtype).kind == "f" else 0,
        "codecs": [{"name": "bytes", **little}, {"name": "crc32c"}],
        "attributes": {ATTRIBUTE: record.to_json()},
    }


def group_metadata(record: Record | None) -> dict[str, Any]:
    """Return a group's description; the one of the store's group holds the commit record."""
    attributes = {} if record is None else {ATTRIBUTE: record.to_json()}
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def array_text(layout: Layout, record: Record) -> bytes:
    """Return an array's zarr.json."""
    return _json(array_metadata(layout, record))


def group_text(record: Record | None) -> bytes:
    """Return a group's zarr.json."""
    return _json(group_metadata(record))


def consolidated_text(record: Record) -> bytes:
    """Return the zarr.json of the store's group with those of all that is in it, so that one request opens it."""
    members = {COLUMN_PREFIX.rstrip("/"): group_metadata(None)}
    members |= {layout.name: array_metadata(layout, record) for layout in record.arrays}
    consolidated = {"kind": "inline", "must_understand": False, "metadata": members}
    return _json({**group_metadata(record), "consolidated_metadata": consolidated})


def chunk_name(layout: Layout, block: int) -> str:
    """Return the name of an array's chunk below its group."""
    return f"{layout.name}/" + ".".join(["c", str(block), *("0" for _ in layout.shape)])


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=1).encode()
