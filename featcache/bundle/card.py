"""The files of a bundle that are for people and for other programs: labels, preprocessing, model card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from featcache.formats.interface import Converted, ModelFacts
from featcache.formats.labels import one_line


def preprocess_document(facts: ModelFacts, converted: Mapping[str, Converted]) -> dict[str, Any]:
    """Return ``preprocess.json``: how encoded bytes become the input tensor, and what comes out."""
    return {
        "labels": list(facts.classes),
        "task": facts.task,
        "unknown": None if facts.unknown is None else dict(facts.unknown),
        **facts.input.document(),
        "tensors": {name: made.to_json() for name, made in converted.items()},
    }


def model_card(facts: ModelFacts, files: Mapping[str, tuple[str, ...]], *, weights: str, random_weights: bool) -> str:
    """Return ``model_card.md`` (Hugging Face's front matter), which holds what was done but no measurement.

    What was measured depends on the machine and stands in ``report.json``; the card is the same for equal models.
    """
    front: dict[str, Any] = {
        "library_name": "featcache",
        "pipeline_tag": facts.input.pipeline,
        "tags": [facts.input.pipeline, *_numbers(facts)[0], *files],
    }
    if "/" in facts.name:
        front["base_model"] = one_line(facts.name).removeprefix("hf-hub:").removeprefix("hf_hub:")
    elif facts.name:
        # not an address on the hub, which `base_model` has to be
        front["tags"] = [*front["tags"], one_line(facts.name)]
    lines = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items()), "---", ""]
    lines += [f"# {facts.input.noun.capitalize()} classifier on {_inline(facts.name)}", ""]
    if random_weights:
        lines += [
            f"**The backbone has random weights ({_inline(weights)}) and was never trained.** Only the head was.",
            "",
        ]
    shown = ", ".join(_inline(label) for label in facts.classes[:20])
    more = "" if len(facts.classes) <= 20 else f" and {len(facts.classes) - 20} more (`labels.txt`)"
    lines += [
        f"- Task: {facts.task}, {len(facts.classes)} classes: {shown}{more}",
        f"- Input: {facts.input.described()}",
        f"- Backbone: {_inline(facts.name)}, weights {_inline(weights)}",
        f"- Numbers: {_numbers(facts)[1]}",
        "- Measurements (accuracy, size, latency, agreement with the reference): `report.json`",
        "",
        "| format | files |",
        "|---|---|",
        *(f"| {name} | {', '.join(f'`{file}`' for file in names)} |" for name, names in files.items()),
        "",
        "## How it was made",
        "",
        *(f"{number}. {_inline(_step(step))}" for number, step in enumerate(facts.lineage.get("steps", []), start=1)),
        "",
    ]
    return "\n".join(lines)


def _numbers(facts: ModelFacts) -> tuple[list[str], str]:
    """Return the tags for what the model's numbers are, and the same for people."""
    if facts.dynamic:
        return ["int8"], "weights 8-bit integers (per channel), activations rounded where they are read, refitted head"
    if facts.quantized:
        return ["int8"], "8-bit integers (static, per channel), refitted head"
    return (["fp16"], "weights 16-bit floats") if facts.halves else ([], "32-bit floats")


def _step(step: Mapping[str, Any]) -> str:
    """Return one entry of the lineage as a sentence: its verb, then its plain values."""
    plain = [f"{key} {value}" for key, value in step.items() if key != "verb" and isinstance(value, (str, int, float))]
    return f"{step.get('verb', 'step')}: {', '.join(plain)}" if plain else str(step.get("verb", "step"))


def _inline(text: str) -> str:
    """Return `text` as one line in which Markdown and HTML mean nothing."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|&~])", r"\\\1", one_line(text))
