"""Walk a float ONNX graph once, carrying for each tensor what it is and what the quantized network makes of it.

At each layer the quantized network's own inputs are at hand, so that its weights are rounded for them, its bias takes
back the usual error that arrived (Nagel et al. 2019, bias correction), and its output's range fits what it will hold.
Only the tensors still to be read are kept. It works on any graph: whatever is not computed in integers is run by ONNX
Runtime, node by node. Inputs of several shapes, as texts are, are walked side by side, a batch for each shape: nothing
that is put behind a shorter one is ever looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


Batches = list[Tensor]  # what a tensor of the graph is for each batch of inputs


@one_torch_thread()  # two hardly save time; on a busy machine they wait for each other at every layer
def calibrate(
    model: onnx.ModelProto,
    inputs: Sequence[npt.NDArray[Any]],
    *,
    nodes: Sequence[str],
    adjustable: frozenset[str],
    tables: Sequence[str] = (),
    limit: int = LIMIT,
    power: float = 1.5,
    answers: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]] | None = None,
) -> Calibrated:
    """Return scales, rounded weights and corrected biases of a float `model` for 8-bit integers.

    `inputs`: training inputs as the graph takes them, a batch (n, …) of each shape, all held at once. `nodes`: names of
    the Conv, MatMul and Add nodes to compute in integers. `adjustable`: initializers that may be given other values;
    the others are rounded to nearest, and their scales alone are stored. `tables`: those whose rows are looked up,
    stored as integers as well. `limit`: the largest integer of a weight. `power`: of the errors that ranges minimise.
    `answers`: features (n, d) → what a head says of them (n, k).
    """
    walk = _Walk(
        model, inputs, nodes=frozenset(nodes), adjustable=adjustable, tables=frozenset(tables), limit=limit, power=power
    )
    for node in tqdm(model.graph.node, desc="quantize", unit="layer", disable=None):
        walk.step(node)
    output = model.graph.output[0].name
    exact, rough = torch.cat(walk.exact[output]), torch.cat(walk.rough[output])
    asked = math.nan if answers is None else _answers_error(answers(exact.numpy()), answers(rough.numpy()))
    quantization = Quantization(tuple(nodes), walk.activations, walk.weights)
    return Calibrated(walk.values, quantization, error_over_variance(exact, rough), asked)


class _Walk:
    """The state of one walk: for each live tensor its float value and its value in the quantized network."""

    def __init__(
        self,
        model: onnx.ModelProto,
        inputs: Sequence[npt.NDArray[Any]],
        *,
        nodes: frozenset[str],
        adjustable: frozenset[str],
        tables: frozenset[str],
        limit: int,
        power: float,
    ) -> None:
        graph = model.graph
        self.nodes, self.adjustable, self.tables, self.limit, self.power = nodes, adjustable, tables, limit, power
        self.opset = opset_of(model)
        self.graph = Graph(model)
        self.layers = {node.name: node for node in self.graph.nodes if node.name in nodes}
        self.constants = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
        self.exact: dict[str, Batches] = {graph.input[0].name: [torch.from_numpy(batch) for batch in inputs]}
        self.rough: dict[str, Batches] = dict(self.exact)
        self.count = len(inputs)
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
            elif node.op_type == "Gather" and node.input[0] in self.tables:
                self._look_up(node)
            else:
                self._carry(node)
            self._release(node)
            for name in node.output:
                if name in self.stored:
                    least, most = _useful_limits(self.graph.readers(name))
                    params = power_range(self.rough[name], power=self.power, least=least, most=most)
                    self.activations[name] = params
                    self.rough[name] = [fake_quantize(values, params) for values in self.rough[name]]

    def _carry(self, node: onnx.NodeProto) -> None:
        """Compute `node` as it is, of what arrives: once, where nothing of that was rounded."""
        self.exact.update(zip(node.output, self._run(node, self.exact), strict=True))
        untouched = all(self.rough.get(name) is self.exact.get(name) for name in node.input)
        results = [self.exact[name] for name in node.output] if untouched else self._run(node, self.rough)
        self.rough.update(zip(node.output, results, strict=True))

    def _value(self, known: Mapping[str, Batches], name: str, number: int) -> Tensor | None:
        """Return what tensor `name` is for batch `number`; None for an input that is left out."""
        return known[name][number] if name in known else self.constants.get(name)

    def _release(self, node: onnx.NodeProto) -> None:
        for name in node.input:
            self.unread[name] = self.unread.get(name, 0) - 1
            if self.unread[name] == 0:
                self.exact.pop(name, None)
                self.rough.pop(name, None)

    def _look_up(self, node: onnx.NodeProto) -> None:
        name = node.input[0]
        table = self.constants[name]
        scales = channel_scales(table.T)
        self.weights[name] = along_axis(scales.tolist(), axis=1)
        rounded = round_nearest(table.T, scales).T
        places = self.exact[node.input[1]]
        self.exact[node.output[0]] = [table[batch] for batch in places]
        self.rough[node.output[0]] = [rounded[batch] for batch in places]

    def _convolve(self, node: onnx.NodeProto) -> None:
        source, weight_name = node.input[0], node.input[1]
        layer = self.layers[node.name]
        bias_name = bias_of(self.graph, layer)
        weight, bias = self.constants[weight_name], self.constants.get(bias_name)
        shape = Convolution(layer)
        wanted = [shape(batch, weight, bias) for batch in self.exact[source]]
        scales = channel_scales(weight, limit=self.limit)
        if bias is not None:  # a bias must fit 32 bits at the scale input · weight, also where all weights are tiny
            scales = torch.maximum(scales, bias.abs() / (_LARGEST_BIAS * self.activations[source].scale[0]))
        if weight_name in self.adjustable:
            moments = MomentsSum()
            for inputs in self._parts(source):
                moments.add(self._some(shape.patches(inputs)))
            rounded = round_jointly(weight, scales, moments.result(), limit=self.limit)
            self.values[weight_name] = rounded.numpy()
        else:
            rounded = round_nearest(weight, scales, limit=self.limit)
        got = [shape(batch, rounded, bias) for batch in self.rough[source]]
        got = self._corrected(bias_name, wanted, got, channels=1)
        self.weights[weight_name] = along_axis(scales.tolist(), axis=0)
        self.exact[node.output[0]], self.rough[node.output[0]] = wanted, got

    def _multiply(self, node: onnx.NodeProto) -> None:
        source, weight_name = node.input
        weight = self.constants[weight_name]  # (inputs, outputs)
        scales = channel_scales(weight.T, limit=self.limit)
        if weight_name in self.adjustable:
            moments = MomentsSum()
            for inputs in self._parts(source):
                moments.add(self._some(inputs.reshape(1, -1, weight.shape[0]).transpose(1, 2)))
            rounded = round_jointly(weight.T.contiguous(), scales, moments.result(), limit=self.limit).T
            self.values[weight_name] = np.ascontiguousarray(rounded.numpy())
        else:
            rounded = round_nearest(weight.T, scales, limit=self.limit).T
        self.weights[weight_name] = along_axis(scales.tolist(), axis=1)
        wanted = [batch @ weight for batch in self.exact[source]]
        got = [batch @ rounded for batch in self.rough[source]]
        got = self._corrected(bias_of(self.graph, self.layers[node.name]), wanted, got, channels=-1)
        self.exact[node.output[0]], self.rough[node.output[0]] = wanted, got

    def _corrected(self, bias: str, wanted: Batches, got: Batches, *, channels: int) -> Batches:
        """Return `got`, channels along that axis, without its usual error, which `bias` takes back if it may.

        Of a product, whose bias is added by the one node that reads it, it is taken back before the sum already.
        """
        if bias not in self.adjustable:
            return got
        error = usual_error(wanted, got, channels=channels)
        self.values[bias] = (self.constants[bias] + error).numpy()
        return shifted(got, error, channels=channels)

    def _parts(self, name: str) -> Iterator[Tensor]:
        """Yield what the quantized network makes of a tensor, of a few inputs at a time."""
        for batch in self.rough[name]:
            yield from torch.split(batch, _BATCH)

    def _some(self, inputs: Tensor) -> Tensor:
        """Return `inputs` (groups, d, positions) at some of the positions, drawn with a fixed seed."""
        limit = _POSITIONS_PER_BATCH * _BATCH
        if inputs.shape[2] <= limit:
            return inputs
        return inputs[:, :, torch.randint(inputs.shape[2], (limit,), generator=self.generator)]

    def _run(self, node: onnx.NodeProto, known: Mapping[str, Batches]) -> list[Batches]:
        """Return the outputs of one node, computed by torch where that is at hand, else by ONNX Runtime."""
        rows = [[self._value(known, name, number) for name in node.input] for number in range(self.count)]
        compute = _in_torch(node)
        if compute is not None:
            return [[compute(*row) for row in rows]]
        return run_node(node, rows, opset=self.opset)


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


def usual_error(wanted: Batches, got: Batches, *, channels: int) -> Tensor:
    """Return the mean of `wanted` less `got` for each channel, of that axis, without its largest and smallest fifth.

    A range that clips a few large values makes a few large errors, and a mean follows those: taken back by the bias, it
    would move the many values that were right.
    """
    each = [(one - other).movedim(channels, 0).flatten(1) for one, other in zip(wanted, got, strict=True)]
    errors = torch.cat(each, dim=1)
    errors = errors[:, :: max(1, errors.shape[1] // _MOST_TRIMMED) | 1].sort(dim=1).values
    left_out = int(_TRIMMED * errors.shape[1])
    return errors[:, left_out : errors.shape[1] - left_out].mean(dim=1)


def shifted(batches: Batches, by: Tensor, *, channels: int) -> Batches:
    """Return `batches` with each channel, of that axis, moved by its value in `by` (channels,)."""
    shape = [1] * batches[0].ndim
    shape[channels] = -1
    return [batch + by.view(shape) for batch in batches]


def bias_of(graph: Graph, layer: Node) -> str:
    """Return the name of the constant that a convolution, or a product's one reader, adds; "" where there is none."""
    if layer.kind == "Conv":
        return layer.inputs[2] if layer.has(2) else ""
    reader = graph.only_reader(layer.output)
    if reader is None or reader.kind != "Add":
        return ""
    (other,) = [name for name in reader.inputs if name != layer.output] or [""]
    weight = graph.constants[layer.inputs[1]]
    return other if other in graph.constants and graph.constants[other].shape == weight.shape[1:] else ""


def _in_torch(node: onnx.NodeProto) -> Callable[..., Tensor] | None:
    """Return how torch computes a node of the usual kinds, whose every input is there; None for others."""
    if node.op_type == "Add":
        return torch.add
    if node.op_type == "Mul":
        return torch.mul
    if node.op_type == "Relu":
        return torch.relu
    if node.op_type == "Clip":
        return _clip
    return None


def _clip(values: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return values.clamp(min=None if low is None else float(low), max=None if high is None else float(high))


def run_node(node: onnx.NodeProto, rows: Sequence[Sequence[Tensor | None]], *, opset: int) -> list[Batches]:
    """Return the outputs of one ONNX node, each for every batch, as ONNX Runtime computes them.

    `rows`: for each batch what the node reads, None for an input that is left out.
    """
    arrays = [
        {name: value.numpy() for name, value in zip(node.input, row, strict=True) if value is not None} for row in rows
    ]
    declared = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(value.dtype), _common_shape([feed[name] for feed in arrays])
        )
        for name, value in arrays[0].items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    graph = helper.make_graph([node], "node", declared, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    session = open_session(model.SerializeToString())
    results = [[torch.from_numpy(np.asarray(value)) for value in session.run(None, feed)] for feed in arrays]
    return [list(values) for values in zip(*results, strict=True)]


def _common_shape(values: Sequence[npt.NDArray[Any]]) -> list[int | None]:
    """Return the sizes of all `values` along each axis, None where these differ."""
    return [sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*(v.shape for v in values), strict=True)]


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
