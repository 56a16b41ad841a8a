"""The drawing of a penalty path: accuracy and features used against the penalty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from featcache.pipeline.parts import entries_of, is_number, mapping_in, section, text

_WIDTH, _HEIGHT, _MARGIN = 640, 240, 36
_PENALTIES = ("l2", "l1", "group_l1")


def path_section(document: Mapping[str, Any]) -> str:
    """Return the card of the path in ``run.train``, nothing where fewer than two penalties were looked at."""
    train = mapping_in(mapping_in(document, "run"), "train")
    points = entries_of(train.get("path"))
    free = next((name for name in _PENALTIES if len({p.get(name) for p in points if is_number(p.get(name))}) > 1), None)
    if free is None:
        return ""
    points = sorted((p for p in points if is_number(p.get(free)) and float(p[free]) > 0), key=lambda p: float(p[free]))
    if len(points) < 2:
        return ""
    at = [math.log10(float(p[free])) for p in points]
    features = train.get("num_features")
    most = float(str(features)) if is_number(features) else max(float(p.get("features_used") or 0) for p in points)
    values = [float(p["value"]) if is_number(p.get("value")) else None for p in points]
    used = [
        float(p["features_used"]) / most if is_number(p.get("features_used")) and most > 0 else None for p in points
    ]
    score = text(str(train.get("score") or "score").replace("_", " "))
    x = [_MARGIN + (_WIDTH - 2 * _MARGIN) * (a - at[0]) / (at[-1] - at[0]) for a in at]
    marks = [
        f'<line class="chosen" x1="{where:.1f}" x2="{where:.1f}" y1="{_MARGIN}" y2="{_HEIGHT - _MARGIN}">'
        f"<title>chosen: {free} = {float(point[free]):.3g}</title></line>"
        for where, point in zip(x, points, strict=True)
        if point.get("chosen") is True
    ]
    ends = "".join(
        f'<text x="{where:.1f}" y="{_HEIGHT - 12}" text-anchor="middle">{float(point[free]):.2g}</text>'
        for where, point in ((x[0], points[0]), (x[-1], points[-1]))
    )
    scale = "".join(
        f'<text x="{_MARGIN - 6}" y="{_height(share):.1f}" text-anchor="end">{share:.1f}</text>' for share in (0.0, 1.0)
    )
    drawing = (
        f'<svg class="path" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{score} and features used against {free}">{"".join(marks)}'
        f"{_line('right', x, values, score)}{_line('wrong', x, used, 'share of the features used')}{ends}{scale}</svg>"
    )
    note = f"Held-out {score} (green) and share of the features used (red) against {free}; upright: the value chosen."
    return section("Penalty path", drawing, note=note)


def _height(share: float) -> float:
    return _HEIGHT - _MARGIN - (_HEIGHT - 2 * _MARGIN) * min(max(share, 0.0), 1.0)


def _line(kind: str, x: Sequence[float], shares: Sequence[float | None], name: str) -> str:
    known = [(where, _height(share), share) for where, share in zip(x, shares, strict=True) if share is not None]
    corners = " ".join(f"{where:.1f},{height:.1f}" for where, height, _ in known)
    dots = "".join(
        f'<circle class="{kind}" cx="{where:.1f}" cy="{height:.1f}" r="3"><title>{name}: {share:.4g}</title></circle>'
        for where, height, share in known
    )
    return f'<polyline class="{kind}" points="{corners}"/>{dots}'
