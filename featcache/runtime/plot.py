"""`write_plot`: the measurements of a bundle's device files as one SVG picture, made here without a library."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from featcache.runtime.benchmark import Benchmark
from featcache.system.files import refuse_existing, write_atomically

_LABEL, _BAR, _ROW, _HEAD, _GAP = 110, 190, 26, 58, 90
_INK, _FILL, _MARK = "#222222", "#3b7dd8", "#c0392b"

_PANELS: tuple[tuple[str, Callable[[Benchmark], float | None], Callable[[float], str]], ...] = (
    ("one image, ms", lambda b: None if b.latency_ms is None else b.latency_ms.median, lambda v: f"{v:.2f}"),
    ("file, MB", lambda b: b.bytes / 1e6, lambda v: f"{v:.2f}"),
    ("resident, MB", lambda b: None if b.resident_bytes is None else b.resident_bytes / 1e6, lambda v: f"{v:.1f}"),
)


def write_plot(benchmarks: Sequence[Benchmark], out: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write latency (median, with the 95th percentile marked), file size and memory as bars to `out`; return it.

    What was not measured has no bar and says so.
    """
    path = Path(out)
    refuse_existing(path, overwrite=overwrite)
    write_atomically(path, draw(benchmarks).encode())
    return path


def draw(benchmarks: Sequence[Benchmark]) -> str:
    """Return the SVG text."""
    width = _LABEL + len(_PANELS) * (_BAR + _GAP)
    height = _HEAD + _ROW * len(benchmarks) + 12
    threads = sorted({b.latency_ms.threads for b in benchmarks if b.latency_ms is not None})
    caption = f"median of single runs on {' or '.join(map(str, threads)) or 'no'} thread(s); red: 95th percentile"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="13" fill="{_INK}">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="8" y="18">{escape(caption)}</text>',
    ]
    for row, entry in enumerate(benchmarks):
        parts.append(f'<text x="8" y="{_HEAD + row * _ROW + 15}">{escape(entry.format)}</text>')
    for column, (title, value_of, shown) in enumerate(_PANELS):
        left = _LABEL + column * (_BAR + _GAP)
        values = [value_of(entry) for entry in benchmarks]
        marks = [entry.latency_ms.p95 if column == 0 and entry.latency_ms else None for entry in benchmarks]
        largest = max([value for value in [*values, *marks] if value is not None], default=0) or 1
        parts.append(f'<text x="{left}" y="{_HEAD - 12}" font-weight="bold">{escape(title)}</text>')
        for row, (value, mark) in enumerate(zip(values, marks, strict=True)):
            top = _HEAD + row * _ROW
            if value is None:
                parts.append(f'<text x="{left}" y="{top + 15}" fill="#777777">not measured</text>')
                continue
            length = _BAR * value / largest
            parts.append(f'<rect x="{left}" y="{top + 3}" width="{length:.1f}" height="{_ROW - 8}" fill="{_FILL}"/>')
            end = length
            if mark is not None:
                end = _BAR * mark / largest
                at = left + end
                parts.append(f'<path d="M{at:.1f} {top + 1}v{_ROW - 4}" stroke="{_MARK}" stroke-width="2"/>')
            parts.append(f'<text x="{left + end + 5:.1f}" y="{top + 15}">{escape(shown(value))}</text>')
    return "\n".join([*parts, "</svg>", ""])
