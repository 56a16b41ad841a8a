"""The drawing of a penalty path: the held-out score and the features used, each against the penalty.

Two panels above each other share the penalty's axis, which is in powers of ten. Each panel's own axis spans the values
that are there, not 0 to 1: a path is looked at for where it bends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featcache.pipeline.axis import linear_ticks, power_text, power_ticks, tick_texts
from featcache.pipeline.parts import entries_of, is_number, mapping_in, section, text

_WIDTH, _LEFT, _RIGHT = 640, 84, 20
_TOP, _PANEL, _GAP, _BOTTOM = 26, 150, 30, 46
_PENALTIES = {"l2": "L2 penalty", "l1": "L1 penalty", "group_l1": "group L1 penalty"}


@dataclass(frozen=True, slots=True)
class _Panel:
    """A curve to draw: its axis's `name`, a value and its standard error per penalty, None where there is none."""

    name: str
    kind: str
    values: tuple[float | None, ...]
    errors: tuple[float, ...]
    percent: bool


def path_section(document: Mapping[str, Any]) -> str:
    """Return the card of the path in ``run.train``, nothing where fewer than two penalties were looked at."""
    train = mapping_in(mapping_in(document, "run"), "train")
    points = entries_of(train.get("path"))
    free = next((name for name in _PENALTIES if len({p.get(name) for p in points if is_number(p.get(name))}) > 1), None)
    if free is None:
        return ""
    points = sorted((p for p in points if is_number(p.get(free)) and float(p[free]) > 0), key=lambda p: float(p[free]))
    panels = _panels(points, score=str(train.get("score") or "score").replace("_", " "))
    if len(points) < 2 or not panels:
        return ""
    note = "Each point is a head fitted with that penalty"
    if panels[0].errors and any(panels[0].errors):
        note += "; the band is one standard error"
    return section("Penalty path", _draw(points, free, panels), note=f"{note}.")


def _panels(points: Sequence[Mapping[str, Any]], *, score: str) -> list[_Panel]:
    """Return the panels that have something to show: a number of features that never changes is none."""
    values = tuple(float(p["value"]) if is_number(p.get("value")) else None for p in points)
    errors = tuple(float(p["standard_error"]) if is_number(p.get("standard_error")) else 0.0 for p in points)
    used = tuple(float(p["features_used"]) if is_number(p.get("features_used")) else None for p in points)
    panels = [
        _Panel(f"held-out {score}", "right", values, errors, percent=score == "accuracy"),
        _Panel("features used", "wrong", used, (0.0,) * len(points), percent=False),
    ]
    varying = [panel for panel in panels if len(set(panel.values) - {None}) > 1]
    return varying or [panel for panel in panels[:1] if set(panel.values) - {None}]


def _draw(points: Sequence[Mapping[str, Any]], free: str, panels: Sequence[_Panel]) -> str:
    logs = [math.log10(float(point[free])) for point in points]
    x = [_LEFT + (_WIDTH - _LEFT - _RIGHT) * (log - logs[0]) / (logs[-1] - logs[0]) for log in logs]
    bottom = _TOP + len(panels) * _PANEL + (len(panels) - 1) * _GAP
    chosen = "".join(
        f'<line class="chosen" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{bottom}"/>'
        f'<text x="{min(max(at, _LEFT + 40), _WIDTH - _RIGHT - 40):.1f}" y="{_TOP - 8}" text-anchor="middle">'
        f"chosen: {float(point[free]):.3g}</text>"
        for at, point in zip(x, points, strict=True)
        if point.get("chosen") is True
    )
    drawn = "".join(
        _draw_panel(panel, x, top=_TOP + number * (_PANEL + _GAP), points=points, free=free)
        for number, panel in enumerate(panels)
    )
    name = _PENALTIES[free]
    return (
        f'<svg class="path" viewBox="0 0 {_WIDTH} {bottom + _BOTTOM}" role="img" '
        f'aria-label="{text(" and ".join(panel.name for panel in panels))} against the {name}">'
        f"{chosen}{drawn}{_draw_penalties(x, points, free, bottom)}"
        f'<text class="axis" x="{(_LEFT + _WIDTH - _RIGHT) / 2:.1f}" y="{bottom + 38}" text-anchor="middle">'
        f"{name} (stronger to the right)</text></svg>"
    )


def _draw_penalties(x: Sequence[float], points: Sequence[Mapping[str, Any]], free: str, bottom: float) -> str:
    """Return the shared axis: powers of ten, or the two ends where fewer than two powers lie between them."""
    low, high = float(points[0][free]), float(points[-1][free])
    exponents = power_ticks(low, high)
    marks = [(10.0**exponent, power_text(exponent)) for exponent in exponents]
    if len(marks) < 2:
        marks = [(low, f"{low:.2g}"), (high, f"{high:.2g}")]
    span = math.log10(high) - math.log10(low)
    drawn = f'<line class="frame" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    for value, shown in marks:
        at = x[0] + (x[-1] - x[0]) * (math.log10(value) - math.log10(low)) / span
        drawn += (
            f'<line class="frame" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 5}"/>'
            f'<text x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{shown}</text>'
        )
    return drawn


def _draw_panel(
    panel: _Panel, x: Sequence[float], *, top: float, points: Sequence[Mapping[str, Any]], free: str
) -> str:
    known = [
        (at, value, error, float(point[free]))
        for at, value, error, point in zip(x, panel.values, panel.errors, points, strict=True)
        if value is not None
    ]
    ticks = linear_ticks(min(value for _, value, _, _ in known), max(value for _, value, _, _ in known))

    def height(value: float) -> float:
        inside = min(max(value, ticks[0]), ticks[-1])
        return top + _PANEL * (1 - (inside - ticks[0]) / (ticks[-1] - ticks[0]))

    grid = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{height(tick):.1f}" y2="{height(tick):.1f}"/>'
        f'<text x="{_LEFT - 8}" y="{height(tick) + 4:.1f}" text-anchor="end">{shown}</text>'
        for tick, shown in zip(ticks, tick_texts(ticks, percent=panel.percent), strict=True)
    )
    upper = [f"{at:.1f},{height(value + error):.1f}" for at, value, error, _ in known]
    lower = [f"{at:.1f},{height(value - error):.1f}" for at, value, error, _ in reversed(known)]
    band = f'<polygon class="{panel.kind} band" points="{" ".join(upper + lower)}"/>' if any(panel.errors) else ""
    corners = " ".join(f"{at:.1f},{height(value):.1f}" for at, value, _, _ in known)
    dots = "".join(
        f'<circle class="{panel.kind}" cx="{at:.1f}" cy="{height(value):.1f}" r="3">'
        f"<title>{free} {penalty:.3g}: {text(panel.name)} {value:.4g}</title></circle>"
        for at, value, _, penalty in known
    )
    middle = top + _PANEL / 2
    return (
        f'{grid}<text class="axis" x="16" y="{middle:.1f}" text-anchor="middle" '
        f'transform="rotate(-90 16 {middle:.1f})">{text(panel.name)}</text>'
        f'{band}<polyline class="{panel.kind}" points="{corners}"/>{dots}'
    )
