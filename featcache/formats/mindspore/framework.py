"""MindSpore, the framework: ``model.mindir`` for MindSpore 2.10, on servers and Ascend processors.

Its MindIR is version 3 of the format; MindSpore Lite 2.0, which the ``mindir`` format is for, reads and writes version
1. Neither opens the other's files.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from featcache.formats.interface import ModelFacts, numbers_of
from featcache.formats.tools.environments import Environment
from featcache.formats.tools.program import EnvironmentTarget, Prepared

_NUMBERS = "float32: weights are the stored integers, made floats in use, activations not rounded"


class MindSporeTarget(EnvironmentTarget):
    """Made by the framework's `export` of a cell that holds the ONNX graph's operations, run by its `GraphCell`."""

    name = "mindspore"
    reader = "MindSpore 2.10"
    environment = Environment(
        name="mindspore",
        program="run_mindspore.py",
        requirements="mindspore.txt",
        reports="mindspore",
        megabytes=2700,
        machines=("x86_64", "aarch64", "arm64"),
    )

    def tensors(self, facts: ModelFacts) -> dict[str, Any]:
        """Return the reference form for one image at a time, and the reader the file is for."""
        return {**super().tensors(facts), "reader": self.reader}

    def prepare(self, onnx_path: Path, scratch: Path, *, facts: ModelFacts) -> Prepared:
        """Return the graph for one image, whose integers the file keeps."""
        prepared = super().prepare(onnx_path, scratch, facts=facts)
        return dataclasses.replace(prepared, numbers=numbers_of(facts, integers=_NUMBERS))
