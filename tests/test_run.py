"""`run`: the whole job, also where a step does not lead on."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import featcache
from featcache.errors import VerificationError


def test_an_int8_file_that_answers_otherwise_here_leaves_the_model_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on processors without VNNI, where some networks' sums saturate."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6), ("test", 6)):
        for label, shade in (("dark", 40), ("light", 200)):
            place = tmp_path / "images" / split / label
            place.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(generator.normal(shade, 20, (40, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    formats = importlib.import_module("featcache.export")
    usual = formats.export

    def export(model, **options):
        if Path(model).name == "int8":
            raise VerificationError("format 'onnx' must give the reference's first class, it gives another")
        return usual(model, **options)

    monkeypatch.setattr(formats, "export", export)
    report = featcache.run(
        tmp_path / "images", out=tmp_path / "out", backbone="test_efficientnet", weights="random:0", prune_amount=0.0
    )
    assert report.shipped == "float"
    assert [row["bytes"] is None for row in report.table] == [False, True]
    assert any(note.startswith("int8: ") and note.endswith("the bundle holds the float model") for note in report.notes)
    assert featcache.evaluate(report.bundle, tmp_path / "images").n == 12
