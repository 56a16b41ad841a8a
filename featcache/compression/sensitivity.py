"""What each layer's integers alone cost the features, without labels: one layer rounded, all others in floats.

The error that a layer's integers make of its float inputs is added to its float output, and the float network carries
it on to the features: one run of the graph for each layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from featcache.compression.choosing import layers_with_weights
from featcache.compression.layerwise import (
    Batches,
    Calibrated,
    Convolution,
    bias_of,
    error_over_variance,
    shifted,
    usual_error,
)
from featcache.compression.ranges import fake_quantize
from featcache.engines.session import open_session
from featcache.graph.cost import node_macs
from featcache.graph.nodes import Graph
from featcache.model.quantization import QuantParams

_PART = 8  # of the calibration inputs one is looked at: a ranking needs less than ranges do
_LEAST = 8  # inputs


@dataclass(frozen=True, slots=True)
class LayerError:
    """`error`: mean squared error of the features with this layer alone in integers, each over its variance.

    `macs_share`: of the network's multiplications. `integers`: whether the layer computes in integers in the end.
    """

    layer: str
    error: float
    macs_share: float
    integers: bool

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {name: getattr(self, name) for name in ("layer", "error", "macs_share", "integers")}


def layer_errors(
    model: onnx.ModelProto, inputs: Sequence[npt.NDArray[Any]], found: Calibrated
) -> tuple[LayerError, ...]:
    """Return what each layer costs of the float `model`, the worst first, with the integers of `found`.

    `inputs`: those that `found` was calibrated on, a batch of each shape; some of them are looked at. A layer that
    `found` leaves in floats is not among them.
    """
    macs = node_macs(model)
    chosen = set(found.quantization.nodes)
    layers = [node for node in layers_with_weights(model) if node.name in chosen]
    probe = _Probe(model, layers, inputs)
    errors = [
        LayerError(node.name, probe.error(node, found), macs[node.name] / sum(macs.values()), True) for node in layers
    ]
    return tuple(sorted(errors, key=lambda entry: -entry.error))


class _Probe:
    """The float graph with a value added to each layer's output, 0 where none is given."""

    def __init__(
        self, model: onnx.ModelProto, layers: Sequence[onnx.NodeProto], inputs: Sequence[npt.NDArray[Any]]
    ) -> None:
        least = -(-_LEAST // len(inputs))
        self.batches = [batch[: max(least, len(batch) // _PART)] for batch in inputs]
        self.graph = Graph(model)
        self.layers = {node.name: node for node in self.graph.nodes}
        self.constants = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in model.graph.initializer}
        self.session = open_session(_with_additions(model, layers).SerializeToString())
        self.start, self.features = model.graph.input[0].name, model.graph.output[0].name
        sources = sorted({node.input[0] for node in layers})
        exact = [self._run(sources, batch) for batch in self.batches]
        self.inputs = dict(zip(sources, map(list, zip(*exact, strict=True)), strict=True))
        parts = [batch[start : start + _PART] for batch in inputs for start in range(0, len(batch), _PART)]
        self.all = torch.cat([self._run([self.features], part)[0] for part in parts])
        self.exact = torch.cat([self._run([self.features], batch)[0] for batch in self.batches])

    def _run(self, names: Sequence[str], batch: npt.NDArray[Any], **added: npt.NDArray[Any]) -> list[Tensor]:
        values = self.session.run(names, {self.start: batch, **added})
        return [torch.from_numpy(np.asarray(value)) for value in values]

    def error(self, node: onnx.NodeProto, found: Calibrated) -> float:
        """Return the features' error with `node` alone in integers."""
        exact, rough = self._outputs(node, found)
        if bias_of(self.graph, self.layers[node.name]):  # which takes back what it can
            channels = 1 if node.op_type == "Conv" else -1
            rough = shifted(rough, usual_error(exact, rough, channels=channels), channels=channels)
        features = [
            self._run([self.features], batch, **{_addition(node): (one - other).numpy()})[0]
            for batch, one, other in zip(self.batches, rough, exact, strict=True)
        ]
        return error_over_variance(self.exact, torch.cat(features), of=self.all)

    def _outputs(self, node: onnx.NodeProto, found: Calibrated) -> tuple[Batches, Batches]:
        """Return what `node` gives of its float inputs, without a bias: in floats, and in the integers of `found`."""
        batches, params = self.inputs[node.input[0]], found.quantization.activations[node.input[0]]
        rounded = [fake_quantize(batch, params) for batch in batches]
        weight = self.constants[node.input[1]]
        integers = _rounded(weight, found.quantization.weights[node.input[1]])
        layer = self.layers[node.name]
        if layer.kind == "Conv":
            shape = Convolution(layer)
            return [shape(b, weight, None) for b in batches], [shape(b, integers, None) for b in rounded]
        return [batch @ weight for batch in batches], [batch @ integers for batch in rounded]


def _rounded(weight: Tensor, params: QuantParams) -> Tensor:
    """Return `weight` with each value on the nearest of its integers.

    Those that are deployed were chosen for inputs that the layers before had rounded: of float inputs they are off by
    more, most of all where inputs hardly vary.
    """
    assert params.axis is not None
    shape = [-1 if axis == params.axis else 1 for axis in range(weight.ndim)]
    scale = torch.tensor(params.scale).view(shape)
    return torch.round(weight / scale) * scale


def _addition(node: onnx.NodeProto) -> str:
    return f"{node.name}/added"


def _with_additions(model: onnx.ModelProto, layers: Sequence[onnx.NodeProto]) -> onnx.ModelProto:
    """Return a copy of `model` that adds an input to the output of each of `layers`, and gives their inputs as well."""
    named = {node.name for node in layers}
    sources = sorted({node.input[0] for node in layers})
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    graph = probe.graph
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        if node.name in named:
            output, addition = node.output[0], _addition(node)
            node.output[0] = f"{output}/alone"
            nodes.append(helper.make_node("Add", [node.output[0], addition], [output]))
            graph.initializer.append(numpy_helper.from_array(np.zeros(1, dtype=np.float32), addition))
            graph.input.append(helper.make_tensor_value_info(addition, TensorProto.FLOAT, None))
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in sources)
    return probe
