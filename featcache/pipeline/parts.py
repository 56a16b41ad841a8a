"""The pieces of ``report.html``: values as text that cannot be anything else, and a few shapes of HTML around them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_LARGEST = 1e300
_DIGEST = re.compile(r"[0-9a-f]{64}")  # a sha256, of which nobody reads more than the beginning


def text(value: object) -> str:
    """Return `value` as text that means nothing to HTML, control characters made visible."""
    plain = re.sub(
        r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", str(value)
    )
    return escape(plain, quote=True)


def is_number(value: object) -> bool:
    """Return whether `value` is a number to show or to compute with: finite, and no larger than floats reach."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LARGEST


def share_text(value: Any) -> str:
    """Return a share in [0, 1] as a percentage."""
    return f"{value:.1%}" if is_number(value) else "–"


def count_text(value: Any) -> str:
    """Return a whole number with separators."""
    return f"{value:,}" if isinstance(value, int) else "–"


def size_text(value: Any) -> str:
    """Return a number of bytes for people, in powers of 1000."""
    if not is_number(value):
        return "–"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.2f} {unit}" if value < 100 * scale else f"{value / scale:.0f} {unit}"
    return f"{value:.0f} B"


def large_text(value: Any) -> str:
    """Return a count in thousands, millions or billions."""
    if not is_number(value):
        return "–"
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.2f} {unit}"
    return f"{value:.0f}"


def milliseconds_text(value: Any) -> str:
    """Return milliseconds with their unit."""
    return f"{value:.2f} ms" if is_number(value) else "–"


def median_of(latency: Any) -> Any:
    """Return the median of a latency that may be a mapping or the number itself."""
    return latency.get("median") if isinstance(latency, Mapping) else latency


def plain_text(value: Any) -> str:
    """Return any JSON value as a line of escaped text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{text(key)} {plain_text(item)}" for key, item in value.items()) or "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(plain_text(item) for item in value[:12]) + (", …" if len(value) > 12 else "") or "–"
    return text(f"{value[:12]}…" if isinstance(value, str) and _DIGEST.fullmatch(value) else value)


def mapping_in(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the mapping under `key`, or an empty one where something else stands there."""
    value = document.get(key)
    return value if isinstance(value, Mapping) else {}


def entries_of(value: Any) -> list[Mapping[str, Any]]:
    """Return the mappings in a list; of anything else none."""
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []


def section(heading: str, body: str, *, note: str = "") -> str:
    """Return a card with ready HTML in it; nothing where there is no body."""
    paragraph = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{heading}</h2>{paragraph}{body}</section>" if body else ""


def table(columns: Sequence[tuple[str, bool]], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of ready HTML cells; a column is (heading, whether it holds numbers), the first names the row."""

    def kind(position: int, number: bool) -> str:
        return ' class="number"' if number else ' class="name"' if position == 0 else ""

    head = "".join(f"<th{kind(i, number)}>{name}</th>" for i, (name, number) in enumerate(columns))
    body = "".join(
        "<tr>" + "".join(f"<td{kind(i, columns[i][1])}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def bar(share: Any, *, low: bool = False) -> str:
    """Return a horizontal bar of a share in [0, 1]."""
    width = 100 * min(max(float(share), 0.0), 1.0) if is_number(share) else 0.0
    return f'<span class="bar{" low" if low else ""}"><i style="width:{width:.1f}%"></i></span>'
