"""What each layer's integers alone cost the features, without labels: one layer rounded, all others in floats.

The error that a layer's integers make of its float inputs is added to its float output, and the float network carries
it on to the features: one run of the graph for each layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from featcache.compression.choosing import layers_with_weights
from featcache.compression.layerwise import Calibrated, Convolution, error_over_variance, usual_error
from featcache.compression.ranges import fake_quantize
from featcache.engines.session import open_session
from featcache.graph.cost import node_macs
from featcache.graph.nodes import Graph
from featcache.model.quantization import QuantParams

_PART = 8  # of the calibration images one is looked at: a ranking needs less than ranges do
_LEAST_IMAGES = 8


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


def layer_errors(model: onnx.ModelProto, images: npt.NDArray[np.uint8], found: Calibrated) -> tuple[LayerError, ...]:
    """Return what each layer costs of the float `model`, the worst first, with the integers of `found`.

    `images` (n, height, width, 3) uint8: those that `found` was calibrated on; some of them are looked at. A layer that
    `found` leaves in floats is not among them.
    """
    macs = node_macs(model)
    chosen = set(found.quantization.nodes)
    layers = [node for node in layers_with_weights(model) if node.name in chosen]
    probe = _Probe(model, layers, images)
    errors = [
        LayerError(node.name, probe.error(node, found), macs[node.name] / sum(macs.values()), True) for node in layers
    ]
    return tuple(sorted(errors, key=lambda entry: -entry.error))


class _Probe:
    """The float graph with a value added to each layer's output, 0 where none is given."""

    def __init__(self, model: onnx.ModelProto, layers: Sequence[onnx.NodeProto], images: npt.NDArray[np.uint8]) -> None:
        self.images = images[: max(_LEAST_IMAGES, len(images) // _PART)]
        self.convolutions = {node.name: Convolution(node) for node in Graph(model).nodes if node.kind == "Conv"}
        self.constants = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in model.graph.initializer}
        self.session = open_session(_with_additions(model, layers).SerializeToString())
        self.features = model.graph.output[0].name
        sources = sorted({node.input[0] for node in layers})
        exact = self.session.run(sources, {"image": self.images})
        self.inputs = {name: torch.from_numpy(np.asarray(value)) for name, value in zip(sources, exact, strict=True)}
        batches = [images[start : start + _PART] for start in range(0, len(images), _PART)]
        rows = [self.session.run([self.features], {"image": batch})[0] for batch in batches]
        self.exact = torch.from_numpy(np.concatenate(rows))

    def error(self, node: onnx.NodeProto, found: Calibrated) -> float:
        """Return the features' error with `node` alone in integers."""
        added = _integer_error(
            node, self.inputs[node.input[0]], self.constants, found, self.convolutions.get(node.name)
        )
        rough = self.session.run([self.features], {"image": self.images, _addition(node): added.numpy()})[0]
        return error_over_variance(self.exact[: len(rough)], torch.from_numpy(np.asarray(rough)), of=self.exact)


def _integer_error(
    node: onnx.NodeProto,
    inputs: Tensor,
    constants: Mapping[str, Tensor],
    found: Calibrated,
    convolution: Convolution | None,
) -> Tensor:
    """Return by how much the integers of layer `node` miss its float output of these float `inputs`."""
    rough = fake_quantize(inputs, found.quantization.activations[node.input[0]])
    weight = constants[node.input[1]]
    rounded = _rounded(weight, found.quantization.weights[node.input[1]])
    if convolution is None:
        return rough @ rounded - inputs @ weight
    error = convolution(rough, rounded, None) - convolution(inputs, weight, None)
    if len(node.input) > 2:  # its bias takes back what it can
        error += usual_error(-error).view(1, -1, 1, 1)
    return error


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
