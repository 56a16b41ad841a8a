"""JSON documents: one canonical text for equal values, and a checksum inside a document."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def canonical_json(value: Any) -> str:
    """Return `value` as JSON with sorted keys and no white space: equal values, equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def with_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON `values` with ``crc32c``, the checksum of their `featcache.system.json.canonical_json`."""
    from crc32c import crc32c

    return {**values, "crc32c": crc32c(canonical_json(values).encode())}


def has_checksum(values: Mapping[str, Any]) -> bool:
    """Return whether `values` are what `with_checksum` returned."""
    return dict(values) == with_checksum({name: value for name, value in values.items() if name != "crc32c"})
