"""The page about the model's format names everything that a MODEL holds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from export_models import quantized, saved_model, small_model
from safetensors import safe_open

from featcache.heads.unknown import UnknownRule
from featcache.model.surgery import Surgery
from featcache.model.widths import layer_widths

PAGE = (Path(__file__).resolve().parents[2] / "featcache" / "model" / "README.md").read_text(encoding="utf-8")
BY_NAME = ("folded", "widths", "sha256", "activations", "weights")  # objects whose keys are names, not of the format
OPEN = ("lineage", "settings", "options", "model_kwargs", "unknown", "calibration")  # others say what stands there


def keys_of(value: Any, *, by_name: bool = False) -> Iterator[str]:
    """Yield every key of the format in `value`."""
    if isinstance(value, list):
        for entry in value:
            yield from keys_of(entry)
    elif isinstance(value, dict):
        for key, entry in value.items():
            if not by_name:
                yield key
            if key not in OPEN or by_name:
                yield from keys_of(entry, by_name=key in BY_NAME and not by_name)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized model with a rule for unknown images and every kind of layer width stated."""
    place = tmp_path_factory.mktemp("page")
    plain = quantized(small_model(), place)
    rule = UnknownRule("max_probability", 0.1, 0.95, 20, 0.9, ("bird",))
    widths = layer_widths(plain.backbone.network)
    made = plain.copy(surgery=Surgery(widths=widths)).with_head(dataclasses.replace(plain.fitted_head, unknown=rule))
    return saved_model(place / "model", model=made)


@pytest.mark.parametrize("name", ["model.json", "quant.json", "golden/golden.json"])
def test_page_names_every_key_of_a_document(model: Path, name: str) -> None:
    """Whoever reads a MODEL without this code finds each key on the page."""
    keys = set(keys_of(json.loads((model / name).read_text(encoding="utf-8"))))
    assert len(keys) > 3
    assert sorted(key for key in keys if f"`{key}`" not in PAGE) == []


def test_page_names_every_file(model: Path) -> None:
    """Files and the folder of golden samples."""
    names = {path.name + ("/" if path.is_dir() else "") for path in model.iterdir()}
    assert sorted(name for name in names if f"`{name}`" not in PAGE) == []


def test_tensors_are_called_as_the_page_says(model: Path) -> None:
    """Each is the network's or the head's, and the arrays of a linear head are those named."""
    with safe_open(model / "weights.safetensors", framework="numpy") as file:
        names = set(file.keys())
    head = {name for name in names if name.startswith("head.")}
    assert head == {"head.weight", "head.bias"} and all(f"`{name}`" in PAGE for name in head)
    assert "`backbone.network.NAME`" in PAGE
    assert all(name.startswith("backbone.network.") for name in names - head)
