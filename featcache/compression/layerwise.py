"""Walk a float ONNX graph once, carrying for each tensor what it is and what the quantized network makes of it.

At each layer the quantized network's own inputs are at hand, so that its weights are rounded for them, its bias takes
back the usual error that arrived (Nagel et al. 2019, bias correction), and its output's range fits what it will hold.
Only the tensors still to be read are kept. It works on any graph: whatever is not computed in integers is run by ONNX
Runtime, node by node.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from featcache.compression.ranges import fake_quantize, power_range
from featcache.compression.rounding import LIMIT, MomentsSum, channel_scales, round_jointly, round_nearest
from featcache.engines.session import open_session
from featcache.graph.nodes import Graph, Node
from featcache.graph.qdq import consumers_of, integer_output, opset_of
from featcache.model.quantization import Quantization, QuantParams, along_axis
from featcache.system.threads import one_torch_thread

_POSITIONS_PER_BATCH = 200  # of a feature map, drawn per batch of images for the input moments
_BATCH = 8
_LARGEST_BIAS = 2**30  # half of what int32 holds: the correction comes on top
_TINY = 1e-12
_TRIMMED = 0.2  # of a channel's errors, left out at either end of its mean
_MOST_TRIMMED = 16_384  # errors of a channel that are sorted


@dataclass(frozen=True, slots=True)
class Calibrated:
    """`values`: new weights and biases by initializer name, float32, weights on their integer grid.

    `error`: mean squared error of the graph's output on the images, each feature's over its variance. `answers_error`:
    that of what was asked of these features, over the variance of all answers; NaN where nothing was asked.
    """

    values: Mapping[str, npt.NDArray[np.float32]]
    quantization: Quantization
    error: float
    answers_error: float = math.nan


@one_torch_thread()  # two hardly save time; on a busy machine they wait for each other at every layer
def calibrate(
    model: onnx.ModelProto,
    images: npt.NDArray[np.uint8],
    *,
    nodes: Sequence[str],
    adjustable: frozenset[str],
    limit: int = LIMIT,
    power: float = 1.5,
    answers: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]] | None = None,
) -> Calibrated:
    """Return scales, rounded weights and corrected biases of a float `model` for 8-bit integers.

    `images` (n, height, width, 3) uint8: training images, all held at once. `nodes`: names of the Conv, MatMul and Add
    nodes to compute in integers. `adjustable`: initializers that may be given other values; the others are rounded to
    nearest, and their scales alone are stored. `limit`: the largest integer of a weight. `power`: of the errors that
    ranges minimise. `answers`: features (n, d) → what a head says of them (n, k).
    """
    walk = _Walk(model, images, nodes=frozenset(nodes), adjustable=adjustable, limit=limit, power=power)
    for node in tqdm(model.graph.node, desc="quantize", unit="layer", disable=None):
        walk.step(node)
    output = model.graph.output[0].name
    exact, rough = walk.exact[output], walk.rough[output]
    asked = math.nan if answers is None else _answers_error(answers(exact.numpy()), answers(rough.numpy()))
    quantization = Quantization(tuple(nodes), walk.activations, walk.weights)
    return Calibrated(walk.values, quantization, error_over_variance(exact, rough), asked)


class _Walk:
    """The state of one walk: for each live tensor its float value and its value in the quantized network."""

    def __init__(
        self,
        model: onnx.ModelProto,
        images: npt.NDArray[np.uint8],
        *,
        nodes: frozenset[str],
        adjustable: frozenset[str],
        limit: int,
        power: float,
    ) -> None:
        graph = model.graph
        self.nodes, self.adjustable, self.limit, self.power = nodes, adjustable, limit, power
        self.opset = opset_of(model)
        self.graph = Graph(model)
        self.convolutions = {node.name: node for node in self.graph.nodes if node.kind == "Conv"}
        self.constants = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
        self.exact: dict[str, Tensor] = {graph.input[0].name: torch.from_numpy(images)}
        self.rough: dict[str, Tensor] = dict(self.exact)
        self.unread = {name: len(readers) for name, readers in consumers_of(graph).items()}
        self.stored = _stored_tensors(graph, nodes)
        self.values: dict[str, npt.NDArray[np.float32]] = {}
        self.activations: dict[str, QuantParams] = {}
        self.weights: dict[str, QuantParams] = {}
        self.generator = torch.Generator().manual_seed(0)

    def step(self, node: onnx.NodeProto) -> None:
        """Compute the outputs of `node`, both ways."""
        with torch.inference_mode():
            if node.name in self.nodes and node.op_type == "Conv":
                self._convolve(node)
            elif node.name in self.nodes and node.op_type == "MatMul":
                self._multiply(node)
            else:
                for known in (self.exact, self.rough):
                    results = self._run(node, [self._value(known, name) for name in node.input])
                    known.update(zip(node.output, results, strict=True))
            self._release(node)
            for name in node.output:
                if name in self.stored:
                    least, most = _useful_limits(self.graph.readers(name))
                    self.activations[name] = power_range(self.rough[name], power=self.power, least=least, most=most)
                    self.rough[name] = fake_quantize(self.rough[name], self.activations[name])

    def _value(self, known: Mapping[str, Tensor], name: str) -> Tensor | None:
        return self.constants.get(name, known.get(name))

    def _release(self, node: onnx.NodeProto) -> None:
        for name in node.input:
            self.unread[name] = self.unread.get(name, 0) - 1
            if self.unread[name] == 0:
                self.exact.pop(name, None)
                self.rough.pop(name, None)

    def _convolve(self, node: onnx.NodeProto) -> None:
        source, weight_name = node.input[0], node.input[1]
        bias_name = node.input[2] if len(node.input) > 2 else ""
        weight, bias = self.constants[weight_name], self.constants.get(bias_name)
        shape = Convolution(self.convolutions[node.name])
        wanted = shape(self.exact[source], weight, bias)
        scales = channel_scales(weight, limit=self.limit)
        if bias is not None:  # a bias must fit 32 bits at the scale input · weight, also where all weights are tiny
            scales = torch.maximum(scales, bias.abs() / (_LARGEST_BIAS * self.activations[source].scale[0]))
        if weight_name in self.adjustable:
            moments = MomentsSum()
            for start in range(0, len(wanted), _BATCH):
                moments.add(self._some(shape.patches(self.rough[source][start : start + _BATCH])))
            rounded = round_jointly(weight, scales, moments.result(), limit=self.limit)
            self.values[weight_name] = rounded.numpy()
        else:
            rounded = round_nearest(weight, scales, limit=self.limit)
        got = shape(self.rough[source], rounded, bias)
        if bias is not None and bias_name in self.adjustable:
            correction = usual_error(wanted - got)
            self.values[bias_name] = (bias + correction).numpy()
            got += correction.view(1, -1, 1, 1)
        self.weights[weight_name] = along_axis(scales.tolist(), axis=0)
        self.exact[node.output[0]], self.rough[node.output[0]] = wanted, got

    def _multiply(self, node: onnx.NodeProto) -> None:
        source, weight_name = node.input
        weight = self.constants[weight_name]  # (inputs, outputs)
        scales = channel_scales(weight.T, limit=self.limit)
        if weight_name in self.adjustable:
            moments = MomentsSum()
            for start in range(0, len(self.rough[source]), _BATCH):
                inputs = self.rough[source][start : start + _BATCH]
                moments.add(self._some(inputs.reshape(1, -1, weight.shape[0]).transpose(1, 2)))
            rounded = round_jointly(weight.T.contiguous(), scales, moments.result(), limit=self.limit).T
            self.values[weight_name] = np.ascontiguousarray(rounded.numpy())
        else:
            rounded = round_nearest(weight.T, scales, limit=self.limit).T
        self.weights[weight_name] = along_axis(scales.tolist(), axis=1)
        self.exact[node.output[0]] = self.exact[source] @ weight
        self.rough[node.output[0]] = self.rough[source] @ rounded

    def _some(self, inputs: Tensor) -> Tensor:
        """Return `inputs` (groups, d, positions) at some of the positions, drawn with a fixed seed."""
        limit = _POSITIONS_PER_BATCH * _BATCH
        if inputs.shape[2] <= limit:
            return inputs
        return inputs[:, :, torch.randint(inputs.shape[2], (limit,), generator=self.generator)]

    def _run(self, node: onnx.NodeProto, inputs: Sequence[Tensor | None]) -> list[Tensor]:
        """Return the outputs of one node, computed by torch where that is at hand, else by ONNX Runtime."""
        if node.op_type in ("Add", "Mul") and len(inputs) == 2:
            first, second = inputs
            assert first is not None
            assert second is not None
            return [first + second if node.op_type == "Add" else first * second]
        if node.op_type == "Relu" and inputs[0] is not None:
            return [inputs[0].relu()]
        if node.op_type == "Clip" and inputs[0] is not None:
            low, high = (*inputs[1:], None, None)[:2]
            return [inputs[0].clamp(min=None if low is None else float(low), max=None if high is None else float(high))]
        return run_node(node, inputs, opset=self.opset)


class Convolution:
    """A Conv node as torch computes it; pads may differ from side to side."""

    def __init__(self, node: Node) -> None:
        window = node.window()
        top, left, bottom, right = window.pads
        self.pads = (left, right, top, bottom)
        self.strides, self.dilations, self.kernel = window.strides, window.dilations, window.kernel
        self.groups = int(node.attributes["group"])

    def _padded(self, inputs: Tensor) -> Tensor:
        return functional.pad(inputs, self.pads) if any(self.pads) else inputs

    def __call__(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return what the node gives of `inputs` (n, channels, h, w)."""
        return functional.conv2d(
            self._padded(inputs), weight, bias, stride=self.strides, dilation=self.dilations, groups=self.groups
        )

    def patches(self, inputs: Tensor) -> Tensor:
        """Return what the weights of an output meet, (groups, d, positions), of `inputs` (n, channels, h, w)."""
        if self.kernel == (1, 1) and self.strides == (1, 1):
            columns = self._padded(inputs).flatten(2)
        else:
            columns = functional.unfold(self._padded(inputs), self.kernel, dilation=self.dilations, stride=self.strides)
        n, rows, positions = columns.shape
        return columns.permute(1, 0, 2).reshape(self.groups, rows // self.groups, n * positions)


def error_over_variance(exact: Tensor, rough: Tensor, *, of: Tensor | None = None) -> float:
    """Return the mean squared error of `rough`, each feature's over its variance, averaged over features.

    The variance is that in `of`, where `exact` is too few rows to tell it, else in `exact`.
    """
    variance = (exact if of is None else of).var(dim=0, correction=0)
    constant = 1e-6 * float(variance.max()) + _TINY
    return float(((rough - exact).square().mean(dim=0) / variance.clamp(min=constant)).mean())


def _answers_error(exact: npt.NDArray[np.float32], rough: npt.NDArray[np.float32]) -> float:
    """Return the mean squared error of the answers `rough` (n, k) over the mean variance of the `exact` ones."""
    return float(np.square(rough - exact).mean() / max(float(exact.var(axis=0).mean()), _TINY))


def _useful_limits(readers: Sequence[Node]) -> tuple[float | None, float | None]:
    """Return the values below and above which the one reader of a tensor tells nothing apart; None where it does."""
    if len(readers) != 1:
        return None, None
    reader = readers[0]
    if reader.kind == "HardSwish":
        return -3.0, None
    if reader.kind == "HardSigmoid":
        slope, offset = float(reader.attributes["alpha"]), float(reader.attributes["beta"])
        return -offset / slope, (1 - offset) / slope
    return None, None


def usual_error(difference: Tensor) -> Tensor:
    """Return the mean (channels,) of `difference` (n, channels, h, w) without its largest and smallest fifth.

    A range that clips a few large values makes a few large errors, and a mean follows those: taken back by the bias, it
    would move the many values that were right.
    """
    errors = difference.transpose(0, 1).flatten(1)
    errors = errors[:, :: max(1, errors.shape[1] // _MOST_TRIMMED) | 1].sort(dim=1).values
    left_out = int(_TRIMMED * errors.shape[1])
    return errors[:, left_out : errors.shape[1] - left_out].mean(dim=1)


def run_node(node: onnx.NodeProto, inputs: Sequence[Tensor | None], *, opset: int) -> list[Tensor]:
    """Return the outputs of one ONNX node as ONNX Runtime computes it."""
    arrays = {name: value.numpy() for name, value in zip(node.input, inputs, strict=True) if name and value is not None}
    declared = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), list(value.shape))
        for name, value in arrays.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    graph = helper.make_graph([node], "node", declared, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    session = open_session(model.SerializeToString())
    return [torch.from_numpy(np.asarray(value)) for value in session.run(None, arrays)]


def _stored_tensors(graph: onnx.GraphProto, nodes: frozenset[str]) -> frozenset[str]:
    """Return the tensors that get a scale: what integer nodes read, and what integer convolutions and sums write."""
    consumers, outputs = consumers_of(graph), {value.name for value in graph.output}
    constants = {tensor.name for tensor in graph.initializer}
    tensors: set[str] = set()
    for node in graph.node:
        if node.name not in nodes:
            continue
        tensors.update(name for name in node.input[:2] if name not in constants)
        if node.op_type != "MatMul":  # runtimes multiply integers and hand on floats
            tensors.add(integer_output(node, consumers, outputs))
    return frozenset(tensors)
