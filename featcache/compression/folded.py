"""A model with its norms folded, beside its graph: what both ways to quantize begin with, and how they write theirs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch

from featcache.compression.layerwise import Calibrated
from featcache.graph.qdq import consumers_of
from featcache.graph.write import write_onnx
from featcache.model.kinds import model_kind
from featcache.model.merged import MergedModel


@dataclass(frozen=True, slots=True)
class FoldedModel:
    """`model` in floats, norms folded; `graph`: input → features, of the very same weights.

    `held`: by the names of those initializers of the graph that may become others, what they are called in the model's
    state. A linear layer holds its weight the other way round.
    """

    model: MergedModel
    graph: onnx.ModelProto
    held: Mapping[str, str]

    @property
    def adjustable(self) -> frozenset[str]:
        """Names of the initializers that may become others."""
        return frozenset(self.held)


def fold_model(model: MergedModel) -> FoldedModel:
    """Return a copy of a float `model` with its batch norms folded; the head is the old one."""
    plain = model_kind(model.recipe.input).folded(model)
    with tempfile.TemporaryDirectory() as folder:
        graph = onnx.load(str(write_onnx(plain, Path(folder) / "float.onnx", outputs=("features",))))
    state = {name: tensor for name, tensor in plain.state_dict().items() if name.startswith("backbone.")}
    return FoldedModel(plain, graph, _held(graph, state))


def _held(graph: onnx.ModelProto, state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the name in `state` of each initializer of one reader that stands there, as it is or transposed."""
    readers = consumers_of(graph.graph)
    held = {}
    for tensor in graph.graph.initializer:
        if len(readers.get(tensor.name, ())) != 1:
            continue
        (node,) = readers[tensor.name]
        linear = f"{node.name.rpartition('/')[0]}.weight"
        values = onnx.numpy_helper.to_array(tensor)
        if tensor.name in state and np.array_equal(values, state[tensor.name].numpy()):
            held[tensor.name] = tensor.name
        elif node.op_type == "MatMul" and linear in state and np.array_equal(values, state[linear].numpy().T):
            held[tensor.name] = linear
    return held


def with_integers(folded: FoldedModel, found: Calibrated) -> MergedModel:
    """Return the quantized model: `folded`'s, whose weights become those that were `found`, with their scales."""
    model = folded.model
    state = model.state_dict()
    with torch.no_grad():
        for name, values in found.values.items():
            here = torch.from_numpy(values)
            stored = state[folded.held[name]]
            stored.copy_(here if folded.held[name] == name else here.T)
    return type(model)(
        model.backbone, model.fitted_head, recipe=model.recipe, surgery=model.surgery, quantization=found.quantization,
        lineage=model.lineage,
    )  # fmt: skip
