"""What stands in a bundle beside the device files: labels, preprocessing, card, snippets, golden samples, manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featcache.bundle.card import model_card, preprocess_document
from featcache.bundle.manifest import manifest_bytes, manifest_entries
from featcache.bundle.snippet import write_snippets
from featcache.formats.interface import Converted, ModelFacts
from featcache.formats.labels import labels_text
from featcache.graph.cost import GraphCost
from featcache.model.golden import Golden
from featcache.recipe import Recipe
from featcache.runtime.bundle import FORMAT, PREPROCESS_FILE, VERSION
from featcache.system.files import write_atomically

GOLDEN_FOLDER = "golden"


def write_contents(
    folder: Path, facts: ModelFacts, converted: Mapping[str, Converted], *, recipe: Recipe, golden: Golden | None
) -> None:
    """Write everything that is for people and for other programs, but for the manifest and what was measured."""
    write_atomically(folder / "labels.txt", labels_text(facts.classes).encode())
    write_atomically(folder / PREPROCESS_FILE, json_bytes(preprocess_document(facts, converted)))
    names = {name: relative_names(folder, made) for name, made in converted.items()}
    card = model_card(facts, names, weights=recipe.weights, random_weights=recipe.random_weights)
    write_atomically(folder / "model_card.md", card.encode())
    for name, text in write_snippets(facts, list(converted)).items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_atomically(folder / name, text.encode())
    for name, data in facts.input.assets.items():
        write_atomically(folder / name, data)
    if golden is not None:
        (folder / GOLDEN_FOLDER).mkdir()
        for name, data in golden.files().items():
            write_atomically(folder / GOLDEN_FOLDER / name, data)


def bundle_manifest(
    folder: Path, facts: ModelFacts, converted: Mapping[str, Converted], costs: Mapping[str, GraphCost]
) -> bytes:
    """Return ``manifest.json`` of what is in `folder` now."""
    return manifest_bytes(
        {
            "format": FORMAT,
            "version": VERSION,
            "name": facts.name,
            "quantized": facts.quantized,
            "formats": {
                name: {"files": list(relative_names(folder, made)), "figures": costs[name].to_json()}
                for name, made in converted.items()
            },
            "lineage": dict(facts.lineage),
            "files": manifest_entries(folder),
        }
    )


def relative_names(folder: Path, converted: Converted) -> tuple[str, ...]:
    """Return the names of a format's files as they stand in the bundle's JSON."""
    return tuple(path.relative_to(folder).as_posix() for path in converted.files)


def json_bytes(value: Any) -> bytes:
    """Return a document's bytes: a key a line, in the order it was made."""
    return (json.dumps(value, indent=1, sort_keys=False, ensure_ascii=False, allow_nan=False) + "\n").encode()
