"""MindSpore Lite: ``model.ms`` for its runtime on devices, ``model.mindir`` for the one on servers.

Its converter reads ONNX of opset 11; the graph is written anew in that. Files of version 2.0 are for readers of that
version: MindSpore the framework has another MindIR, the ``mindspore`` format.
"""

from __future__ import annotations

import tempfile
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featcache.errors import FormatError
from featcache.formats.interface import FLOATS_FOR_INTEGERS, Converted, ModelFacts, numbers_of
from featcache.formats.mindspore.ms_file import StoredWeight, put_integers
from featcache.formats.tools.environments import Environment
from featcache.formats.tools.program import EnvironmentTarget, Program, describe_for_program
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


class _LiteTarget(EnvironmentTarget):
    """A file of MindSpore Lite's converter, run with its Python runtime. `file_kind`: the converter's word for it."""

    environment = _ENVIRONMENT
    reader = "MindSpore Lite 2.0"
    file_kind: str
    # its kernels differ from torch's by 4e-5 on logits of small vision transformers, by 1e-6 on convolutional ones
    tolerance = 1e-3

    def tensors(self, facts: ModelFacts) -> dict[str, Any]:
        """Return the reference form for one image at a time, logits only, and the reader the file is for."""
        tensors = super().tensors(facts)
        del tensors["outputs"]["probabilities"]
        return {**tensors, "reader": self.reader}

    def convert(self, onnx_path: Path, folder: Path, *, facts: ModelFacts) -> Converted:
        """Have the converter write the file."""
        self.require()
        from featcache.graph.passes import write_single

        with tempfile.TemporaryDirectory() as scratch:
            single = write_single(onnx_path, Path(scratch) / "single.onnx")
            old = write_opset(single, Path(scratch) / "old.onnx")
            numbers: str | None
            if facts.quantized:
                files, numbers = self.write_quantized(single, old, folder, facts=facts)
            else:
                files, numbers = self.write(old, folder, facts=facts), numbers_of(facts, integers=None)
        return Converted(files, self.tensors(facts), numbers, takes_scales=False)

    def write(
        self, graph: Path, folder: Path, *, facts: ModelFacts, integers_above: int | None = None
    ) -> tuple[Path, ...]:
        """Have the converter write the file of `graph`, weights of more numbers than `integers_above` as integers."""
        described = {**describe_for_program(facts), "kind": self.file_kind, "integers_above": integers_above}
        with Program(self.environment) as program:
            names = program.call("convert", graph=str(graph), folder=str(folder.resolve()), facts=described)
        return tuple(folder / name for name in names)

    @abstractmethod
    def write_quantized(
        self, single: Path, old: Path, folder: Path, *, facts: ModelFacts
    ) -> tuple[tuple[Path, ...], str]:
        """Write the file of a quantized model and return it with what it computes in.

        `single`: the quantized graph for one image; `old`: the same in the opset that the converter reads, of floats.
        """


class MsliteTarget(_LiteTarget):
    """``.ms``; of an INT8 model it holds the stored integers of the weights, where the runtime's kernels open those.

    The runtime makes floats of them and computes in floats.
    """

    name = "mslite"
    file_kind = "ms"

    def write_quantized(
        self, single: Path, old: Path, folder: Path, *, facts: ModelFacts
    ) -> tuple[tuple[Path, ...], str]:
        """Write the file with the stored integers in it, or one of floats and why."""
        pointwise = write_pointwise(old, old.with_name("pointwise.onnx"))
        plan = plan_integers(single, pointwise)
        if plan.most_skipped > _MOST_SKIPPED or plan.share < _LEAST_SHARE:
            reason = "the runtime cannot open integer weights of convolutions larger than one pixel"
            return self.write(old, folder, facts=facts), _floats(reason)
        files = self.write(pointwise, folder, facts=facts, integers_above=plan.most_skipped)
        try:
            data, count = put_integers(files[0].read_bytes(), plan.weights)
        except FormatError as error:
            return self.write(old, folder, facts=facts), _floats(str(error))
        write_atomically(files[0], data)
        return files, (
            f"{100 * count // plan.all_weights} % of the weights are the stored INT8 with their scales, which "
            "the runtime makes floats when it opens the file; the other weights, and activations, are float32"
        )


class MindirTarget(_LiteTarget):
    """``.mindir`` of MindSpore Lite; always of floats.

    The converter can round weights in it too, but anew: the stored integers have no fixed places in this format.
    """

    name = "mindir"
    file_kind = "mindir"

    def write_quantized(
        self, single: Path, old: Path, folder: Path, *, facts: ModelFacts
    ) -> tuple[tuple[Path, ...], str]:
        """Write the file of floats."""
        reason = "in this format the converter rounds weights anew instead of taking the stored integers"
        return self.write(old, folder, facts=facts), _floats(reason)


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
    from featcache.formats.mindspore.pointwise import openable
    from featcache.graph.nodes import Graph

    stored = {}
    for node in Graph.load(single).nodes:
        constant = node.stored() if node.kind == "DequantizeLinear" else None
        if constant is not None and constant.values.dtype == np.int8:
            axis = node.attributes["axis"]
            integers = np.moveaxis(constant.values, axis, 0)
            integers = integers.reshape(len(integers), -1)
            scales = np.broadcast_to(constant.scale.reshape(-1), len(integers))
            floats = np.moveaxis(constant.real(), axis, 0)
            stored[floats.tobytes()] = (integers, scales)
    weights, skipped, total = {}, 0, 0
    for node in Graph.load(written).nodes:
        weight = node.constant(1) if node.kind in ("Conv", "Gemm", "MatMul") else None
        if weight is None:
            continue
        match = stored.get(np.ascontiguousarray(weight).tobytes())
        total += weight.size
        if match is not None and openable(node, weight.shape):
            weights[node.inputs[1]] = StoredWeight(match[0].reshape(weight.shape), match[1])
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
    return f"{FLOATS_FOR_INTEGERS}; {reason}"


def write_opset(single: Path, path: Path) -> Path:
    """Write the graph at `single` (batch of one) to `path` in opset 11 for MindSpore Lite 2.0, and return that.

    HardSwish became an operation of its own in opset 14, which the converter does not know. LayerNormalization did in
    17: it knows that one, but takes no notice of its epsilon, so it is handed the sums and the root of before. Raises
    `FormatError` where the image's size is not fixed.
    """
    import onnx
    import torch

    from featcache.graph.nodes import Graph
    from featcache.graph.passes import describe, simplify
    from featcache.graph.torch_graph import TorchGraph

    graph = Graph.load(single)

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = TorchGraph(graph, outputs=("logits",), integers="none")

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.network(image)[0]  # type: ignore[no-any-return]

    shape = graph.shape(graph.inputs[0])
    if shape is None:
        raise FormatError(f"the graph must be for one image of a fixed size, {single.name!r} is not")
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
