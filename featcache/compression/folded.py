"""A model with its norms folded, beside its graph: what both ways to quantize begin with, and how they write theirs."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch

from featcache.compression.layerwise import Calibrated
from featcache.graph.write import write_onnx
from featcache.model.kinds import model_kind
from featcache.model.merged import MergedModel


@dataclass(frozen=True, slots=True)
class FoldedModel:
    """`model` in floats, norms folded; `graph`: input → features, of the very same weights.

    `adjustable`: those initializers of the graph that the model holds as they are, under the same names.
    """

    model: MergedModel
    graph: onnx.ModelProto
    adjustable: frozenset[str]


def fold_model(model: MergedModel) -> FoldedModel:
    """Return a copy of a float `model` with its batch norms folded; the head is the old one."""
    plain = model_kind(model.recipe.input).folded(model)
    with tempfile.TemporaryDirectory() as folder:
        graph = onnx.load(str(write_onnx(plain, Path(folder) / "float.onnx", outputs=("features",))))
    state = {name: tensor for name, tensor in plain.state_dict().items() if name.startswith("backbone.")}
    adjustable = frozenset(
        tensor.name
        for tensor in graph.graph.initializer
        if tensor.name in state and np.array_equal(onnx.numpy_helper.to_array(tensor), state[tensor.name].numpy())
    )
    return FoldedModel(plain, graph, adjustable)


def with_integers(folded: FoldedModel, found: Calibrated) -> MergedModel:
    """Return the quantized model: `folded`'s, whose weights become those that were `found`, with their scales."""
    model = folded.model
    state = model.state_dict()
    with torch.no_grad():
        for name, values in found.values.items():
            state[name].copy_(torch.from_numpy(values))
    return type(model)(
        model.backbone, model.fitted_head, recipe=model.recipe, surgery=model.surgery, quantization=found.quantization,
        lineage=model.lineage,
    )  # fmt: skip
