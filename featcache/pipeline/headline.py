"""What stands above the cards: a warning where one is due, and the few figures that matter most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from featcache.pipeline.parts import (
    count_text,
    is_number,
    mapping_in,
    median_of,
    milliseconds_text,
    plain_text,
    share_text,
    size_text,
    text,
)


def warning_section(document: Mapping[str, Any]) -> str:
    """Return the banner over figures of a backbone that was never trained; nothing over others."""
    if document.get("random_weights") is not True:
        return ""
    return (
        f'<p class="warning"><b>Random weights.</b> The backbone ({text(document.get("weights", "random"))}) was never '
        "trained: it is a random projection of the pixels, and only the head was fitted. The figures below say what "
        "that gives, not what a trained backbone would.</p>"
    )


def figures_section(document: Mapping[str, Any]) -> str:
    """Return the boxes with the few figures that matter most."""
    evaluation, boxes = mapping_in(document, "evaluation"), []
    if is_number(evaluation.get("accuracy")):
        where = text(evaluation.get("split") or "labelled") + f" images ({count_text(evaluation.get('n'))})"
        boxes.append((share_text(evaluation["accuracy"]), f"right on the {where}"))
    formats = mapping_in(mapping_in(document, "export"), "formats")
    last = next((entry for entry in formats.values() if isinstance(entry, Mapping)), {})
    if is_number(last.get("bytes")):
        boxes.append((size_text(last["bytes"]), "on the device"))
    if is_number(median_of(last.get("latency_ms"))):
        threads = mapping_in(last, "latency_ms").get("threads")
        boxes.append(
            (milliseconds_text(median_of(last["latency_ms"])), f"per image, {plain_text(threads)} threads, here")
        )
    classes = document.get("classes")
    if isinstance(classes, list):
        boxes.append((count_text(len(classes)), "classes"))
    drawn = "".join(f'<div class="figure"><b>{value}</b><span>{label}</span></div>' for value, label in boxes)
    return f'<div class="figures">{drawn}</div>' if boxes else ""
