"""How the model came about: what each verb measured, the lineage, notes, and the machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from featcache.pipeline.parts import (
    count_text,
    entries_of,
    large_text,
    mapping_in,
    plain_text,
    section,
    share_text,
    size_text,
    text,
)

_VERBS = ("build", "train", "merge", "prune", "quantize")
_LEFT_OUT = ("failures", "problems", "recipe", "lineage", "path", "path_points", "per_class", "confusion")


def verbs_section(document: Mapping[str, Any]) -> str:
    """Return the card of what each verb measured."""
    parts = []
    for verb in _VERBS:
        values = mapping_in(mapping_in(document, "run"), verb)
        shown = {key: value for key, value in values.items() if key not in _LEFT_OUT and value not in (None, [], {})}
        if shown:
            rows = "".join(
                f"<dt>{text(key.replace('_', ' '))}</dt><dd>{plain_text(value)}</dd>" for key, value in shown.items()
            )
            parts.append(f"<details><summary>{verb}: {_summary(verb, values)}</summary><dl>{rows}</dl></details>")
    return section("What each step measured", "".join(parts))


_SUMMARIES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "build": lambda v: (
        f"{count_text(v.get('images'))} images, {count_text(v.get('extracted'))} run through the backbone, "
        f"{count_text(v.get('failed'))} failed"
    ),
    "train": lambda v: (
        f"test accuracy {share_text(v.get('test_accuracy'))}, "
        f"{share_text(v.get('nonzero_fraction'))} of the weights not zero"
    ),
    "merge": lambda v: f"{large_text(v.get('parameters'))} parameters, {size_text(v.get('bytes'))}",
    "prune": lambda v: _refit(v),
    "quantize": lambda v: _refit(v),
}


def _summary(verb: str, values: Mapping[str, Any]) -> str:
    return _SUMMARIES[verb](values)


def _refit(values: Mapping[str, Any]) -> str:
    before, after = share_text(values.get("accuracy_before_refit")), share_text(values.get("accuracy_after_refit"))
    return (
        f"{size_text(values.get('bytes_before'))} → {size_text(values.get('bytes_after'))}; accuracy "
        f"{share_text(values.get('accuracy_float'))} → {before}, {after} after the head was refitted"
    )


def steps_section(document: Mapping[str, Any]) -> str:
    """Return the card of the lineage: what was done to the model, with its settings."""
    items = []
    for step in entries_of(document.get("steps")):
        plain = {key: value for key, value in step.items() if key != "verb" and value is not None}
        items.append(f"<li><b>{text(step.get('verb', 'step'))}</b> {plain_text(plain) if plain else ''}</li>")
    return section("What was done", f"<ol>{''.join(items)}</ol>" if items else "")


def notes_section(document: Mapping[str, Any]) -> str:
    """Return the card of lines that the run wants read."""
    notes = document.get("notes")
    items = "".join(f"<li>{text(note)}</li>" for note in notes) if isinstance(notes, list) else ""
    return section("Notes", f"<ul>{items}</ul>" if items else "")


def machine_section(document: Mapping[str, Any]) -> str:
    """Return the card of the machine that everything was measured on."""
    machine = mapping_in(document, "machine")
    if not machine:
        return ""
    shown = {
        "processor": text(machine.get("processor", "–")),
        "threads": plain_text(machine.get("threads")),
        "memory": size_text(machine.get("memory_bytes")),
        "system": text(machine.get("system", "–")),
        "Python": text(machine.get("python", "–")),
        "versions": plain_text(machine.get("versions")),
    }
    rows = "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in shown.items())
    return section("Machine", f"<dl>{rows}</dl>", note="Latencies were measured here; on another device they differ.")
