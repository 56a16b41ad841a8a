"""What each stage and each device file costs, and how well it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from featcache.pipeline.parts import (
    bar,
    count_text,
    entries_of,
    is_number,
    large_text,
    mapping_in,
    median_of,
    milliseconds_text,
    section,
    share_text,
    size_text,
    table,
    text,
)

_NAMES = {"float": "float", "pruned": "pruned", "int8": "INT8", "small": "compressed"}
_VERBS = {"float": "merge", "pruned": "prune", "int8": "quantize", "small": "compress"}


def models_section(document: Mapping[str, Any]) -> str:
    """Return the card that compares the float, pruned and quantized model."""
    models = entries_of(document.get("table"))
    largest = max((entry["bytes"] for entry in models if is_number(entry.get("bytes"))), default=0)
    slowest = max((v for entry in models if is_number(v := median_of(entry.get("latency_ms")))), default=0)

    def with_bar(shown: str, value: Any, most: Any) -> str:
        return f"{shown}<br>{bar(value / most)}" if is_number(value) and most else shown

    steps = mapping_in(document, "run")
    rows = []
    for entry in models:
        latency, name = median_of(entry.get("latency_ms")), str(entry.get("model", "model"))
        step = mapping_in(steps, _VERBS.get(name, name))
        macs = step.get("macs")
        if name == "float":
            made = (mapping_in(steps, verb) for verb in ("prune", "quantize", "compress"))
            macs = next((step["macs_before"] for step in made if "macs_before" in step), None)
        rows.append(
            [
                text(_NAMES.get(name, name)),
                share_text(entry.get("accuracy")),
                with_bar(size_text(entry.get("bytes")), entry.get("bytes"), largest),
                large_text(step.get("parameters")),
                large_text(macs),
                with_bar(milliseconds_text(latency), latency, slowest),
            ]
        )
    columns = [("model", False), ("accuracy", True), ("bytes", True), ("parameters", True), ("MACs", True)]
    note = (
        "Each measured on its own exported file, from image bytes. Latency: one image in memory, on the machine below."
    )
    if document.get("shipped"):
        note += f" In the bundle: {text(document['shipped'])}."
    return section("From float to small", table([*columns, ("latency", True)], rows) if rows else "", note=note)


def formats_section(document: Mapping[str, Any]) -> str:
    """Return the card of the device files of the bundle."""
    formats = mapping_in(mapping_in(document, "export"), "formats")
    rows = []
    for name, entry in formats.items():
        if not isinstance(entry, Mapping):
            continue
        latency = mapping_in(entry, "latency_ms")
        listed = entry.get("files")
        files = listed if isinstance(listed, list) else []
        run = (
            text(entry.get("runtime") or "yes")
            if entry.get("executed") is True
            else f"not run: {text(entry.get('reason'))}"
        )
        moved, p95 = entry.get("max_probability_diff"), milliseconds_text(latency.get("p95"))
        moved = moved if is_number(moved) else entry.get("max_abs_diff")  # of values, where there are no probabilities
        agreement = share_text(entry.get("top1_agreement")) if is_number(entry.get("top1_agreement")) else "–"
        rows.append(
            [
                f"{text(name)}<br><small>{'<br>'.join(text(file) for file in files)}</small>",
                run,
                size_text(entry.get("bytes")),
                share_text(entry.get("accuracy")),
                f"{moved:.2g}" if is_number(moved) else "–",
                agreement,
                f"{milliseconds_text(latency.get('median'))}<br><small>95 %: {p95}</small>",
                f"{size_text(entry.get('resident_bytes'))}<br>"
                f"<small>values on the way: {size_text(entry.get('peak_activation_bytes'))}</small>",
            ]
        )
    columns = [("format", False), ("run by", False), ("bytes", True), ("accuracy", True), ("largest difference", True)]
    references = {str(e.get("reference")) for e in formats.values() if isinstance(e, Mapping) and e.get("reference")}
    compared = max(
        (e["n_compared"] for e in formats.values() if isinstance(e, Mapping) and e.get("n_compared")), default=0
    )
    note = (
        f"Compared with {text(' and '.join(sorted(references)))} on {count_text(compared)} images."
        if references
        else ""
    )
    if rows:
        note += (
            " Agreement of first classes is stated from 300 images on. Memory: what the process grew by while it ran"
            " the file, and what values on the way need at least, by counting. Power is not measured."
        )
    columns += [("agreement", True), ("latency", True), ("memory", True)]
    return section("Device files", table(columns, rows) if rows else "", note=note)
