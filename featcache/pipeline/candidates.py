"""The drawing of what a search tried: accuracy on val against bytes, and against milliseconds, with the frontier."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from featcache.pipeline.axis import linear_ticks, tick_texts
from featcache.pipeline.parts import (
    entries_of,
    is_number,
    milliseconds_text,
    section,
    share_text,
    size_text,
    table,
    text,
)

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 250, 70, 24, 24, 46
_COSTS = {"bytes": "megabytes", "latency_ms": "milliseconds of one image"}
_SCALES = {"bytes": 1e-6, "latency_ms": 1.0}


def candidates_section(document: Mapping[str, Any]) -> str:
    """Return the card of ``candidates``: two drawings and a table; nothing where fewer than two were tried."""
    entries = [entry for entry in entries_of(document.get("candidates")) if _complete(entry)]
    if len(entries) < 2:
        return ""
    chosen = str(document.get("chosen") or "")
    drawings = "".join(_draw(entries, cost, chosen) for cost in _COSTS)
    rows = []
    for entry in sorted(entries, key=lambda one: float(one["bytes"])):
        name = " + ".join(map(str, entry.get("steps") or ())) or "float"
        low, high = share_text(entry.get("drop_low")), share_text(entry.get("drop_high"))
        rows.append(
            [
                f"<b>{text(name)}</b>" if entry.get("name") == chosen else text(name),
                share_text(entry["val_accuracy"]),
                f"{share_text(entry.get('drop'))}<br><small>{low} to {high}</small>",
                size_text(entry["bytes"]),
                milliseconds_text(entry["latency_ms"]),
                "yes" if entry.get("meets") is True else "no",
            ]
        )
    columns = [
        ("what was done", False), ("val", True), ("lost", True), ("bytes", True), ("latency", True),
        ("within budget", False),
    ]  # fmt: skip
    note = (
        "Every model that was tried, measured on val; the line joins those that none beats. Lost: of the val images, "
        "with its 95 % interval, paired with the float model."
    )
    return section("What was tried", drawings + table(columns, rows), note=note)


def _complete(entry: Mapping[str, Any]) -> bool:
    return all(is_number(entry.get(name)) for name in ("val_accuracy", "bytes", "latency_ms"))


def _draw(entries: Sequence[Mapping[str, Any]], cost: str, chosen: str) -> str:
    """Return an SVG of accuracy against `cost`: a dot for each entry, filled where within the budget."""
    xs = [float(entry[cost]) * _SCALES[cost] for entry in entries]
    ys = [float(entry["val_accuracy"]) for entry in entries]
    low, high = min(ys), max(ys)
    margin = max(0.1 * (high - low), 0.005)
    across = _Axis(0.0, 1.05 * max(xs), _LEFT, _WIDTH - _RIGHT)
    up = _Axis(low - margin, high + margin, _HEIGHT - _BOTTOM, _TOP)
    inner = f'width="{_WIDTH - _LEFT - _RIGHT}" height="{_HEIGHT - _TOP - _BOTTOM}"'
    parts = [f'<rect class="frame" x="{_LEFT}" y="{_TOP}" {inner} fill="none"/>']
    ticks = linear_ticks(up.low, up.high)
    for tick, label in zip(ticks, tick_texts(ticks, percent=True), strict=True):
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{up(tick):.1f}" y2="{up(tick):.1f}"/>'
        )
        parts.append(f'<text x="{_LEFT - 8}" y="{up(tick) + 4:.1f}" text-anchor="end">{label}</text>')
    ticks = linear_ticks(across.low, across.high)
    for tick, label in zip(ticks, tick_texts(ticks, percent=False), strict=True):
        parts.append(f'<text x="{across(tick):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{label}</text>')
    front: list[tuple[float, float]] = []
    for x, y in sorted(zip(xs, ys, strict=True), key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    line = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in front)
    parts.append(f'<polyline class="right" points="{line}"/>')
    for entry, x, y in zip(entries, xs, ys, strict=True):
        kind = "right" if entry.get("meets") is True else "wrong"
        radius = 7 if entry.get("name") == chosen else 4
        name = " + ".join(map(str, entry.get("steps") or ())) or "float"
        parts.append(
            f'<circle class="{kind}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="{radius}">'
            f"<title>{text(name)}</title></circle>"
        )
    middle = (_LEFT + _WIDTH - _RIGHT) // 2
    parts.append(
        f'<text class="axis" x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{_COSTS[cost]}</text>'
        f'<text class="axis" x="{_LEFT}" y="{_TOP - 8}">accuracy on val</text>'
    )
    return (
        f'<svg class="path" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="accuracy on val against '
        f'{_COSTS[cost]}">{"".join(parts)}</svg>'
    )


class _Axis:
    """A linear map of values from `low` to `high` onto pixels."""

    def __init__(self, low: float, high: float, start: float, stop: float) -> None:
        self.low, self.high, self._start = low, high, start
        self._scale = (stop - start) / (high - low) if math.isfinite(high - low) and high > low else 0.0

    def __call__(self, value: float) -> float:
        return self._start + (value - self.low) * self._scale
