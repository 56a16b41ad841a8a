"""TensorRT: an ONNX file in the form its parser takes, and the command that builds an engine on the device.

An engine is built for one graphics processor and one TensorRT: it is made on the device, not here. Its parser takes
integers with a zero point of 0 only (onnx-tensorrt, docs/operators.md), so stored scales become symmetric ones, each
covering the range of the stored one.
"""

from __future__ import annotations

import importlib.metadata
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featcache.errors import VerificationError
from featcache.formats.interface import HALVES, Converted, ModelFacts, Runner, Target, classifier_tensors, numbers_of
from featcache.system.files import write_atomically

if TYPE_CHECKING:
    import onnx

_FILES = ("model.tensorrt.onnx", "build_engine.sh")
_LARGEST_BATCH = 32
_NUMBERS = "symmetric INT8 over the stored ranges; biases float32"
# of the operations in onnx-tensorrt's list, those a classifier can hold
_SUPPORTED = frozenset({
    "Abs", "Add", "AveragePool", "BatchNormalization", "Cast", "Ceil", "Clip", "Concat", "Constant",
    "ConstantOfShape", "Conv", "DequantizeLinear", "Div", "Elu", "Equal", "Erf", "Exp", "Expand", "Flatten",
    "Floor", "Gather", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish", "Identity",
    "InstanceNormalization", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "MatMul", "Max", "MaxPool",
    "Min", "Mul", "Neg", "PRelu", "Pad", "Pow", "QuantizeLinear", "ReduceL2", "ReduceMax", "ReduceMean",
    "ReduceSum", "Relu", "Reshape", "Resize", "Selu", "Shape", "Sigmoid", "Slice", "Softmax", "Softplus",
    "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Tile", "Transpose", "Unsqueeze", "Where",
})  # fmt: skip


class TensorRtTarget(Target):
    """The file is ONNX: ONNX Runtime computes it here, which says nothing of TensorRT's own kernels."""

    name = "tensorrt"
    needs = "nothing to convert; on the device: TensorRT's trtexec"

    def available(self) -> str | None:
        """Return None: writing the file needs nothing beyond featcache's own packages."""
        return None

    def executable(self) -> str | None:
        """Return why the engine is not built and run here."""
        return "an engine is built by TensorRT on the graphics processor that runs it: build_engine.sh does it there"

    def version(self) -> str:
        """Return what computes the file here."""
        return f"onnxruntime {importlib.metadata.version('onnxruntime')}"

    def convert(self, onnx_path: Path, folder: Path, *, facts: ModelFacts) -> Converted:
        """Write the ONNX file and the command; `VerificationError` for an operation that TensorRT lacks."""
        import onnx

        proto = onnx.load(onnx_path)
        symmetric(proto)
        onnx.checker.check_model(proto)
        foreign = sorted({node.op_type for node in proto.graph.node} - _SUPPORTED)
        if foreign:
            raise VerificationError(f"TensorRT must know every operation of the graph, it lacks {foreign!r}")
        write_atomically(folder / _FILES[0], proto.SerializeToString(deterministic=True))
        write_atomically(folder / _FILES[1], _command(facts).encode())
        return Converted(
            tuple(folder / name for name in _FILES),
            classifier_tensors(facts),
            numbers_of(facts, integers=_NUMBERS, halves=HALVES),
        )

    def open(self, files: Sequence[Path], *, threads: int) -> Runner:
        """Return the graph in ONNX Runtime: engines are not part of a bundle."""
        return self.reference_runner(files, threads=threads)

    def reference_runner(self, files: Sequence[Path], *, threads: int) -> Runner:
        """Return the graph as it is written, in ONNX Runtime."""
        from featcache.formats.onnx import open_unoptimised

        runner = open_unoptimised(files[0], threads=threads)
        runner.described = "the saved ONNX graph, computed by ONNX Runtime"
        return runner


def symmetric(proto: onnx.ModelProto) -> None:
    """Make, in place, every QuantizeLinear/DequantizeLinear of `proto` signed 8-bit with a zero point of 0.

    An unsigned or shifted range keeps its larger end; biases stored as 32-bit integers become the floats they stand
    for, which TensorRT rounds itself.
    """
    import onnx
    from onnx import numpy_helper

    graph = proto.graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            kept.append(node)
            continue
        scale, zero = (numpy_helper.to_array(values[name]) for name in node.input[1:3])
        stored = values.get(node.input[0])
        if stored is not None and stored.data_type == onnx.TensorProto.INT32:
            floats = (numpy_helper.to_array(stored).astype(np.float64) * scale).astype(np.float32)
            graph.initializer.append(numpy_helper.from_array(floats, node.output[0]))
            continue
        kept.append(node)
        if zero.dtype == np.int8 and not zero.any():
            continue
        limits = np.iinfo(zero.dtype)
        ends = np.array([limits.min, limits.max], dtype=np.float64) - float(zero.reshape(()))
        widened = np.float32(np.abs(ends).max() * float(scale.reshape(())) / 127)
        names = [f"{node.input[1]}/symmetric", f"{node.input[2]}/symmetric"]
        changed: list[npt.NDArray[Any]] = [np.array(widened), np.array(0, dtype=np.int8)]
        for name, value in zip(names, changed, strict=True):
            if name not in values:
                values[name] = numpy_helper.from_array(value, name)
                graph.initializer.append(values[name])
        node.input[1:3] = names
    del graph.node[:]
    graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    initializers = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(initializers)


def _command(facts: ModelFacts) -> str:
    height, width, channels = facts.image_shape
    options = [f"--onnx={_FILES[0]}", "--saveEngine=model.engine", "--fp16"]
    if facts.quantized:
        options.append("--int8")
    for key, batch in (("min", 1), ("opt", 1), ("max", _LARGEST_BATCH)):
        options.append(f"--{key}Shapes=image:{batch}x{height}x{width}x{channels}")
    joined = " \\\n  ".join(shlex.quote(option) for option in options)
    header = "#!/bin/sh\n# Run on the device, with TensorRT's trtexec on the PATH.\n"
    return f'{header}cd "$(dirname "$0")" && trtexec \\\n  {joined}\n'
