"""The quantized graph as a torch module that can be trained: weights in floats, rounded with learned steps.

It runs the very graph that is deployed (`apply_quantization`), each QuantizeLinear with its DequantizeLinear as one
rounding whose step is learned: which value is rounded, and who reads it rounded, is decided there and nowhere else.
Without gradients it computes as the runtime will (`featcache.compression.integers`); with them it leaves out the
rounding of biases to 32 bits, and adds floats where integers will be added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from featcache.compression.integers import Integers, Products, Sum, multiply, rounded
from featcache.compression.layerwise import Calibrated, run_node
from featcache.compression.learned_scales import ActivationRounding, WeightRounding
from featcache.distillation.depthwise import convolve_small_map, is_small_map
from featcache.errors import BackboneError
from featcache.graph.nodes import Graph, Node
from featcache.graph.qdq import apply_quantization
from featcache.graph.torch_graph import KINDS, OPERATIONS
from featcache.model.quantization import Quantization, along_axis

_QUANTIZED, _DEQUANTIZED = "/quantized", "/dequantized"  # what `apply_quantization` adds to the name of what it rounds
_PRODUCTS = ("Conv", "Gemm", "MatMul")
_LIMITS = ("Relu", "Clip")
_OF_THE_IMAGE = ("Cast", "Sub", "Div", "Mul", "Transpose")  # bytes to normalised floats, channels first
_LARGEST_BIAS = 2**31 - 2**8  # at a scale that is rounded to float32


class FakeQuantized(nn.Module):
    """Normalised images (N, 3, height, width) → features (N, d), as the integers of the quantized graph give them.

    Parameters
    ----------
    graph
        The float graph of `featcache.graph.write.write_onnx`: ``image`` → ``features``.
    quantization
        Which operations compute in integers, and the scales to begin with.
    values
        Initializers to begin with, where they are others than the graph's.
    trainable
        Names of the initializers that are learned; the others stay.
    limit
        The largest integer of a weight.

    Raises
    ------
    BackboneError
        Where the graph has operations without a torch form.
    """

    def __init__(
        self,
        graph: onnx.ModelProto,
        quantization: Quantization,
        *,
        values: Mapping[str, npt.NDArray[np.float32]],
        trainable: frozenset[str],
        limit: int,
    ) -> None:
        super().__init__()
        self._limit = limit
        self.quantization = quantization
        floats = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
        floats.update(values)
        deployed = Graph(apply_quantization(graph, quantization))
        try:
            deployed.check_kinds(KINDS, form="torch")
        except NotImplementedError as error:
            raise BackboneError(
                f"method 'qat' must have a network that torch can train, got {error}: use 'ptq'"
            ) from error
        self._opset = deployed.opset
        self._start = _behind_preprocessing(deployed)
        self._output = deployed.outputs[0]
        self._constants = dict(deployed.constants)
        self._names: dict[str, str] = {}  # of initializers, as this module's own
        self.activations, self.weights = nn.ModuleDict(), nn.ModuleDict()
        self._biases: dict[str, tuple[str, str]] = {}  # → the value and the weight whose product it is added to
        before = deployed.leading_to([self._start])
        self._steps = tuple(node for node in deployed.leading_to([self._output]) if node not in before)
        for node in self._steps:
            self._take(node, deployed, floats, trainable)

    def _take(
        self,
        node: Node,
        deployed: Graph,
        floats: Mapping[str, npt.NDArray[np.float32]],
        trainable: frozenset[str],
    ) -> None:
        """Keep what `node` reads: parameters, and a rounding for what is quantized."""
        if node.kind == "QuantizeLinear":
            name = node.inputs[0]
            self.activations[_key(name)] = ActivationRounding(
                self.quantization.activations[name], upper=_upper(deployed.maker(name))
            )
        elif node.kind == "DequantizeLinear":
            name = node.inputs[0].removesuffix(_QUANTIZED)
            if name in self.quantization.weights:
                self._keep(name, floats[name], learned=name in trainable)
                self.weights[_key(name)] = WeightRounding(
                    self.quantization.weights[name], rank=floats[name].ndim, limit=self._limit
                )
            elif node.constant(0) is not None:
                self._keep(name, floats[name], learned=name in trainable)
        else:
            for name in node.inputs:
                value = floats.get(name)
                if value is not None and value.ndim and value.dtype == np.float32:
                    self._keep(name, value, learned=name in trainable)
            if node.kind == "Conv" and len(node.inputs) > 2 and node.inputs[2].endswith(_DEQUANTIZED):
                source, weight, bias = (name.removesuffix(_DEQUANTIZED) for name in node.inputs)
                self._biases[bias] = (source, weight)

    def _keep(self, name: str, value: npt.NDArray[np.float32], *, learned: bool) -> None:
        if name in self._names:
            return
        self._names[name] = own = f"value_{len(self._names)}"
        tensor = torch.from_numpy(np.array(value))
        if learned:
            self.register_parameter(own, nn.Parameter(tensor))
        else:
            self.register_buffer(own, tensor)

    def _stored(self, name: str) -> Tensor:
        return getattr(self, self._names[name])  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of normalised `images`: with gradients where those are wanted, else as integers do."""
        known: dict[str, Any] = {self._start: images}
        step = self._in_floats if torch.is_grad_enabled() else self._in_integers
        for node in self._steps:
            result = step(node, known)
            results = result if isinstance(result, tuple) else (result,)
            known.update(zip(node.outputs, results, strict=False))
        features: Tensor = _real(known[self._output])
        return features

    def _in_floats(self, node: Node, known: Mapping[str, Any]) -> Any:
        """Return the results of `node` with gradients, a value between quantizations being the float it stands for."""
        source = node.inputs[0]
        if node.kind == "QuantizeLinear":
            return self._activation(source).rounded(known[source])
        if node.kind == "DequantizeLinear":
            if source in known:
                return known[source]
            name = source.removesuffix(_QUANTIZED)
            value = self._stored(name)
            return self._weight(name).rounded(value) if _key(name) in self.weights else value
        operation = _convolve if node.kind == "Conv" else OPERATIONS[node.kind]
        return operation([self._value(name, known) for name in node.inputs], node)

    def _in_integers(self, node: Node, known: Mapping[str, Any]) -> Any:
        """Return the results of `node`, of integers where the runtime computes it in integers."""
        source = node.inputs[0]
        if node.kind == "QuantizeLinear":
            grid = self._activation(source).grid()
            value = known[source]
            return rounded(value, grid) if isinstance(value, Tensor) else value.rounded(grid)
        if node.kind == "DequantizeLinear":
            if source in known:
                return known[source]
            name = source.removesuffix(_QUANTIZED)
            value = self._stored(name)
            return self._weight(name).integers(value) if _key(name) in self.weights else value
        inputs = [self._value(name, known) for name in node.inputs]
        integer = all(isinstance(value, Integers) for value in inputs[:2])
        if integer and node.kind in _PRODUCTS and len(inputs) > 1:
            weight = node.inputs[1].removesuffix(_DEQUANTIZED)
            return multiply(
                lambda first, second: OPERATIONS[node.kind]([first, second], node),
                inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None,
                axis=self._weight(weight).axis, channels=1 if node.kind == "Conv" else -1,
            )  # fmt: skip
        if integer and node.kind == "Add":
            return Sum(inputs[0], inputs[1])
        if node.kind in _LIMITS and isinstance(inputs[0], Products | Sum):
            low, high = (0.0, None) if node.kind == "Relu" else node.limits()
            return inputs[0].clipped(-math.inf if low is None else low, math.inf if high is None else high)
        # no two programs compute floats alike: here a last bit would decide roundings further on
        outputs = run_node(node.proto, [[_array(_real(value)) for value in inputs]], opset=self._opset)
        return tuple(value for (value,) in outputs)

    def _value(self, name: str, known: Mapping[str, Any]) -> Any:
        if not name:
            return None
        if name in known:
            return known[name]
        if name in self._names:
            return self._stored(name)
        constant = self._constants[name]
        return constant.item() if constant.ndim == 0 and constant.dtype == np.float32 else constant

    def _activation(self, name: str) -> ActivationRounding:
        return self.activations[_key(name)]  # type: ignore[return-value]

    def _weight(self, name: str) -> WeightRounding:
        return self.weights[_key(name)]  # type: ignore[return-value]

    @torch.no_grad()
    def learned(self) -> Calibrated:
        """Return the values learned, weights on their grid, with exactly the scales learned."""
        activations = {name: self._activation(name).params() for name in self.quantization.activations}
        scales = {name: self._weight(name).scale().flatten() for name in self.quantization.weights}
        for bias, (source, weight) in self._biases.items():
            # a bias must fit 32 bits at the scale input · weight, also where all weights of its output are tiny
            least = self._stored(bias).abs() / (_LARGEST_BIAS * activations[source].scale[0])
            scales[weight] = torch.maximum(scales[weight], least)
        values: dict[str, npt.NDArray[np.float32]] = {}
        for name in self._names:
            value = self._stored(name)
            if isinstance(value, nn.Parameter):
                values[name] = self._on_grid(name, value, scales).cpu().numpy()
        weights = {name: along_axis(scale.tolist(), axis=self._weight(name).axis) for name, scale in scales.items()}
        return Calibrated(values, Quantization(self.quantization.nodes, activations, weights), math.nan)

    def _on_grid(self, name: str, value: Tensor, scales: Mapping[str, Tensor]) -> Tensor:
        if name not in scales:
            return value
        rounding = self._weight(name)
        steps = scales[name].view_as(rounding.calibrated)
        return (value / steps).round().clamp(rounding.low, rounding.high) * steps


def _real(value: Any) -> Any:
    """Return what a value of integers stands for, and any other as it is."""
    return value.real() if isinstance(value, Integers | Products | Sum) else value


def _array(value: Any) -> Tensor | None:
    """Return what one node reads as ONNX Runtime takes it."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return value.contiguous()
    return torch.from_numpy(np.array(value, dtype=np.float32 if isinstance(value, float) else None))


def _convolve(inputs: list[Any], node: Node) -> Tensor:
    """Return the convolution, with a gradient that has fast code also where the kernel is larger than the map."""
    x, weight = inputs[0], inputs[1]
    window = node.window()
    half = len(window.pads) // 2
    depthwise = node.attributes["group"] == x.shape[1] == len(weight)
    usual = set(window.dilations) != {1} or window.pads[:half] != window.pads[half:]
    if usual or not depthwise or not is_small_map(x, window.kernel):
        return OPERATIONS["Conv"](inputs, node)  # type: ignore[no-any-return]
    bias = inputs[2] if len(inputs) > 2 else None
    return convolve_small_map(x, weight, bias, stride=window.strides, padding=window.pads[:half])


def _key(name: str) -> str:
    """Return `name` as a module's: these have no dots."""
    return name.replace(".", ":")


def _behind_preprocessing(graph: Graph) -> str:
    """Return the value that is the normalised image, channels first."""
    name = graph.inputs[0]
    while (reader := graph.only_reader(name)) is not None and reader.kind in _OF_THE_IMAGE:
        name = reader.output
        if reader.kind == "Transpose":
            break
    return name


def _upper(maker: Node | None) -> float | None:
    """Return the largest value that `maker` lets pass, None where it does not limit."""
    return maker.limits()[1] if maker is not None and maker.kind == "Clip" else None
