"""MindSpore Lite: ``model.ms`` for its runtime on devices, ``model.mindir`` for the one on servers.

Its converter reads ONNX of opset 11; the graph is written anew in that. Files of version 2.0 are for readers of that
version: MindSpore the framework has another MindIR, the ``mindspore`` format.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featcache.errors import FormatError
from featcache.formats.interface import ModelFacts
from featcache.formats.mindspore.ms_file import StoredWeight, put_integers
from featcache.formats.tools.environments import Environment
from featcache.formats.tools.program import EnvironmentTarget
from featcache.system.files import write_atomically

_ENVIRONMENT = Environment(
    name="mslite",
    program="run_mslite.py",
    requirements="mslite.txt",
    reports="mindspore-lite",
    megabytes=560,
    python="3.7",
    machines=("x86_64", "aarch64"),
)
_OPSET = 11


_MOST_SKIPPED = 65535  # numbers of a weight that the converter can be told to leave in floats
_LEAST_SHARE = 0.5  # of the weights as integers: below, the file is left in floats


class MsliteTarget(EnvironmentTarget):
    """``.ms``, run with MindSpore Lite's Python runtime.

    Of an INT8 model it holds the stored integers of the weights, where its kernels open those; the runtime makes floats
    of them and computes in floats. Which weights these are is known of the last model converted.
    """

    name = "mslite"
    environment = _ENVIRONMENT
    kind = "ms"
    # its kernels differ from torch's by 4e-5 on logits of small vision transformers, by 1e-6 on convolutional ones
    tolerance = 1e-3

    def __init__(self) -> None:
        self._plan: IntegerPlan | None = None
        self._numbers: str | None = None

    def tensors(self, facts: ModelFacts) -> dict[str, Any]:
        """Return the reference form for one image at a time, logits only, and the reader the file is for."""
        tensors = super().tensors(facts)
        del tensors["outputs"]["probabilities"]
        tensors["reader"] = "MindSpore Lite 2.0"
        if facts.quantized and self._numbers is not None:
            tensors["numbers"] = self._numbers
        return tensors

    def facts(self, facts: ModelFacts) -> dict[str, Any]:
        """Return what the program is told, with the kind of file and which weights become integers."""
        least = None if self._plan is None else self._plan.most_skipped
        return {**super().facts(facts), "kind": self.kind, "integers_above": least}

    def graph(self, onnx_path: Path, scratch: Path) -> Path:
        """Return the graph in the old opset that the converter reads."""
        single = super().graph(onnx_path, scratch)
        old = write_opset(single, scratch / "old.onnx")
        if self._plan is None:
            return old
        return write_pointwise(old, scratch / "pointwise.onnx")

    def convert(self, onnx_path: Path, folder: Path, *, facts: ModelFacts) -> tuple[Path, ...]:
        """Have the converter write the file; of an INT8 model, put the stored integers into it."""
        self._plan, self._numbers = None, None
        if facts.quantized:
            self.require()
            self._plan, self._numbers = self._planned(onnx_path)
        files = super().convert(onnx_path, folder, facts=facts)
        if self._plan is None:
            return files
        try:
            data, count = put_integers(files[0].read_bytes(), self._plan.weights)
        except FormatError as error:
            self._plan, self._numbers = None, _floats(str(error))
            return super().convert(onnx_path, folder, facts=facts)
        write_atomically(files[0], data)
        self._numbers = (
            f"{100 * count // self._plan.all_weights} % of the weights are the stored INT8 with their scales, which "
            "the runtime makes floats when it opens the file; the other weights, and activations, are float32"
        )
        return files

    def _planned(self, onnx_path: Path) -> tuple[IntegerPlan | None, str | None]:
        """Return which weights of the quantized ONNX file become integers, or None and what to say of that."""
        with tempfile.TemporaryDirectory() as scratch:
            single = super().graph(onnx_path, Path(scratch))
            old = write_opset(single, Path(scratch) / "old.onnx")
            plan = plan_integers(single, write_pointwise(old, Path(scratch) / "pointwise.onnx"))
        if plan.most_skipped > _MOST_SKIPPED or plan.share < _LEAST_SHARE:
            return None, _floats("the runtime cannot open integer weights of convolutions larger than one pixel")
        return plan, None


class MindirTarget(MsliteTarget):
    """``.mindir`` of MindSpore Lite, run with its Python runtime; always of floats.

    The converter can round weights in it too, but anew: the stored integers have no fixed places in this format.
    """

    name = "mindir"
    kind = "mindir"

    def _planned(self, onnx_path: Path) -> tuple[IntegerPlan | None, str | None]:
        return None, _floats("in this format the converter rounds weights anew instead of taking the stored integers")


@dataclass(frozen=True, slots=True)
class IntegerPlan:
    """The stored weights by their name in the file's graph, and the most numbers that a weight left in floats has.

    `share`: of all weights, how many of these are larger than that. `all_weights`: how many numbers all are.
    """

    weights: Mapping[str, StoredWeight]
    most_skipped: int
    share: float
    all_weights: int


def plan_integers(single: Path, written: Path) -> IntegerPlan:
    """Return which weights of the graph at `written` can be the integers that the quantized one at `single` stores.

    A weight is known again by the floats that its integers stand for. The converter chooses by size alone, so all that
    must stay in floats bound the size from below.
    """
    import onnx
    from onnx import numpy_helper

    from featcache.formats.mindspore.pointwise import openable

    graph = onnx.load(single).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    stored = {}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and constants.get(node.input[0], np.empty(0)).dtype == np.int8:
            axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 1)
            integers = np.moveaxis(constants[node.input[0]], axis, 0)
            integers = integers.reshape(len(integers), -1)
            scales = np.broadcast_to(constants[node.input[1]], len(integers))
            floats = (integers.astype(np.float64) * scales[:, None]).astype(np.float32)
            stored[floats.tobytes()] = (integers, scales)
    graph = onnx.load(written).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights, skipped, total = {}, 0, 0
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in constants:
            continue
        weight = constants[node.input[1]]
        found = stored.get(np.ascontiguousarray(weight).tobytes())
        total += weight.size
        if found is not None and openable(node, weight.shape):
            weights[node.input[1]] = StoredWeight(found[0].reshape(weight.shape), found[1])
        else:
            skipped = max(skipped, weight.size)
    kept = sum(entry.integers.size for entry in weights.values() if entry.integers.size > skipped)
    return IntegerPlan(weights, skipped, kept / max(total, 1), total)


def write_pointwise(old: Path, path: Path) -> Path:
    """Write the graph at `old` with products as convolutions of one pixel to `path`, and return that."""
    import onnx

    from featcache.formats.mindspore.pointwise import to_pointwise
    from featcache.graph.passes import describe

    proto = onnx.load(old)
    to_pointwise(proto)
    describe(proto, {})
    write_atomically(path, proto.SerializeToString(deterministic=True))
    return path


def _floats(reason: str) -> str:
    return f"float32: weights are what their integers stand for, activations are not rounded; {reason}"


def write_opset(single: Path, path: Path) -> Path:
    """Write the graph at `single` (batch of one) to `path` in opset 11 for MindSpore Lite 2.0, and return that.

    HardSwish became an operation of its own in opset 14, which the converter does not know. LayerNormalization did in
    17: it knows that one, but takes no notice of its epsilon, so it is handed the sums and the root of before.
    """
    import onnx
    import torch

    from featcache.formats.drivers.torch_graph import TorchGraph
    from featcache.graph.passes import describe, simplify

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = TorchGraph(str(single), outputs=("logits",), integers="none")

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.network(image)[0]  # type: ignore[no-any-return]

    source = onnx.load(single).graph
    shape = [dim.dim_value for dim in source.input[0].type.tensor_type.shape.dim]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=UserWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        torch.onnx.export(
            Logits().eval(), (torch.zeros(shape, dtype=torch.uint8),), path, dynamo=False, opset_version=_OPSET,
            input_names=["image"], output_names=["logits"],
        )  # fmt: skip
    proto = simplify(onnx.load(path))
    for node in proto.graph.node:
        if node.op_type == "MaxPool":  # dilations of 1, which is no dilation, are refused when they are written out
            for entry in [entry for entry in node.attribute if entry.name == "dilations" and set(entry.ints) == {1}]:
                node.attribute.remove(entry)
    describe(proto, {})
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return path
