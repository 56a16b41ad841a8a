"""Class by class: how often each is right, what it is taken for, and the surest mistakes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from featcache.pipeline.parts import (
    bar,
    entries_of,
    is_number,
    mapping_in,
    plain_text,
    section,
    share_text,
    table,
    text,
)

_PICTURE = re.compile(r"data:image/(?:jpeg|png);base64,[A-Za-z0-9+/]+={0,2}")
_CELLS_UP_TO = 32  # classes: above, a matrix of numbers is unreadable and a drawing says more
_ROWS_UP_TO = 40
_STRONG = 0.5  # shade above which a number needs the opposite ink


def per_class_section(document: Mapping[str, Any]) -> str:
    """Return the card of accuracies by class, the weakest first where there are many."""
    per_class = mapping_in(mapping_in(document, "evaluation"), "per_class")
    entries = [(label, entry) for label, entry in per_class.items() if isinstance(entry, Mapping)]

    def row(label: str, entry: Mapping[str, Any]) -> list[str]:
        value = entry.get("accuracy", entry.get("recall"))
        low = is_number(value) and value < 0.5
        return [
            text(label),
            bar(value, low=low),
            share_text(value),
            f"{plain_text(entry.get('correct'))} of {plain_text(entry.get('n'))}",
        ]

    columns = [("class", False), ("", False), ("accuracy", True), ("right", True)]
    rows = [row(label, entry) for label, entry in entries]
    if len(rows) <= _ROWS_UP_TO:
        return section("Accuracy per class", table(columns, rows) if rows else "")

    def weakness(item: tuple[str, Mapping[str, Any]]) -> float:
        value = item[1].get("accuracy", item[1].get("recall"))
        return float(value) if is_number(value) else 2.0

    weakest = [row(*item) for item in sorted(entries, key=weakness)[: _ROWS_UP_TO // 2]]
    rest = f"<details><summary>all {len(rows)} classes</summary>{table(columns, rows)}</details>"
    return section("Accuracy per class", table(columns, weakest) + rest, note=f"The {len(weakest)} weakest first.")


def confusion_section(document: Mapping[str, Any]) -> str:
    """Return the card of the confusion matrix."""
    evaluation = mapping_in(document, "evaluation")
    matrix, classes = evaluation.get("confusion"), evaluation.get("classes")
    if not (isinstance(matrix, list) and isinstance(classes, list) and len(matrix) == len(classes) > 0):
        return ""
    counts = [[value if isinstance(value, int) else 0 for value in row] for row in matrix]
    if any(len(row) != len(classes) for row in counts):
        return ""
    labels = [text(label) for label in classes]
    draw = _number_matrix if len(classes) <= _CELLS_UP_TO else _drawn_matrix
    pairs = sorted(
        ((n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if i != j and n > 0),
        key=lambda pair: (-pair[0], pair[1], pair[2]),
    )[:8]
    most = "".join(f"<li>{labels[i]} taken for {labels[j]}: {n:,}</li>" for n, i, j in pairs)
    listed = f"<details><summary>most frequent confusions</summary><ul>{most}</ul></details>" if most else ""
    note = "Rows: what the image is. Columns: what the model said. Shades: share of the row."
    return section("Confusion matrix", draw(counts, labels) + listed, note=note)


def _number_matrix(counts: list[list[int]], labels: list[str]) -> str:
    head = "".join(f'<th class="column" scope="col"><span title="{label}">{label}</span></th>' for label in labels)
    rows = []
    for i, row in enumerate(counts):
        total = sum(row) or 1
        cells = ""
        for j, n in enumerate(row):
            kind, shade = ("right" if i == j else "wrong" if n else "none"), (0.12 + 0.78 * n / total if n else 0)
            hint = f"{labels[i]} → {labels[j]}: {n}"
            kind += " strong" if shade > _STRONG else ""
            cells += f'<td class="{kind}" style="--a:{shade:.2f}" title="{hint}">{n or "·"}</td>'
        rows.append(f'<tr><th class="row" scope="row" title="{labels[i]}">{labels[i]}</th>{cells}</tr>')
    return (
        f'<div class="scroll"><table class="matrix"><tr><td class="none"></td>{head}</tr>{"".join(rows)}</table></div>'
    )


def _drawn_matrix(counts: list[list[int]], labels: list[str]) -> str:
    side = len(labels)
    cells = []
    for i, row in enumerate(counts):
        total = sum(row) or 1
        cells += [
            f'<rect class="{"right" if i == j else "wrong"}" x="{j}" y="{i}" width="1" height="1" '
            f'opacity="{0.15 + 0.85 * n / total:.2f}"><title>{labels[i]} → {labels[j]}: {n}</title></rect>'
            for j, n in enumerate(row)
            if n > 0
        ]
    return (
        f'<svg class="matrix" viewBox="0 0 {side} {side}" role="img" aria-label="Confusion matrix of {side} classes">'
        f"{''.join(cells)}</svg>"
    )


def mistakes_section(document: Mapping[str, Any]) -> str:
    """Return the card of the mistakes that the model was surest of, with their pictures."""
    figures = []
    for entry in entries_of(mapping_in(document, "evaluation").get("mistakes")):
        picture = str(entry.get("thumbnail", ""))
        if not _PICTURE.fullmatch(picture):
            continue
        answer = f'<b class="wrong">{text(entry.get("predicted"))}</b> {share_text(entry.get("probability"))}'
        label = f"is {text(entry.get('label'))}<br><small>{text(entry.get('path'))}</small>"
        figures.append(
            f'<figure><div><img src="{picture}" alt=""></div><figcaption>{answer}<br>{label}</figcaption></figure>'
        )
    body = f'<div class="gallery">{"".join(figures)}</div>' if figures else ""
    return section("Surest mistakes", body, note="What the model said, how sure it was, and what the label says.")
