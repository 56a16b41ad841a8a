"""TensorFlow Lite (LiteRT): ``model.tflite`` with labels inside, for Android and microcomputers.

The file is written from the ONNX graph by `featcache.formats.tflite.operations`, without a converter, and run in
LiteRT's own interpreter.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featcache.errors import VerificationError
from featcache.formats.interface import HALVES, Converted, ModelFacts, Runner, Target, numbers_of, single_tensors
from featcache.system.files import write_atomically

_MODEL = "model.tflite"
_OUTPUTS = ("logits", "probabilities")
_RUNTIME = "ai-edge-litert"
_NUMBERS = (
    "int8 with the stored scales (zero points 128 lower where those are of uint8), per output channel for weights; "
    "float32 where the ONNX graph computes in it"
)


class TfliteTarget(Target):
    """An INT8 model is integers in the file too: what the ONNX graph computes in such, LiteRT does."""

    name = "tflite"
    needs = "featcache targets install tflite, or pip install 'featcache[tflite]'"
    packages = (f"{_RUNTIME}==2.3.0",)

    def available(self) -> str | None:
        """Return why LiteRT cannot be used here, or None: what cannot be run is not written either."""
        runtime = importlib.util.find_spec("ai_edge_litert")
        return f"the package {_RUNTIME} is not installed" if runtime is None else None

    def version(self) -> str:
        """Return LiteRT's version."""
        return f"{_RUNTIME} {importlib.metadata.version(_RUNTIME)}"

    def convert(self, onnx_path: Path, folder: Path, *, facts: ModelFacts) -> Converted:
        """Write ``model.tflite``, with metadata and labels."""
        self.require()
        import onnx

        from featcache.formats.labels import labels_text
        from featcache.formats.tflite.file import file_bytes
        from featcache.formats.tflite.metadata import NAME, attached_labels, metadata_bytes
        from featcache.formats.tflite.operations import convert_graph
        from featcache.graph.passes import fixed_batch

        graph = convert_graph(fixed_batch(onnx.load(onnx_path)), outputs=_OUTPUTS, halves=facts.halves)
        height, width, _ = facts.image_shape
        metadata = metadata_bytes(
            name=facts.name,
            description=f"RGB, {width} x {height} pixels, bytes 0 to 255, made as preprocess.json says",
            height=height,
            width=width,
            outputs=_OUTPUTS,
        )
        maker = f"featcache {importlib.metadata.version('featcache')}"
        data = file_bytes(graph, description=maker, metadata={NAME: metadata})
        write_atomically(folder / _MODEL, data + attached_labels(labels_text(facts.classes)))
        return Converted((folder / _MODEL,), single_tensors(facts), numbers_of(facts, integers=_NUMBERS, halves=HALVES))

    def open(self, files: Sequence[Path], *, threads: int) -> Runner:
        """Return the interpreter, with the XNNPACK kernels that are its default."""
        self.require()
        return _TfliteRunner(files[0], threads)


def open_plain(path: Path, *, threads: int) -> Runner:
    """Return the interpreter with its own kernels alone, as where XNNPACK is not built in."""
    return _TfliteRunner(path, threads, delegate=False)


class _TfliteRunner(Runner):
    def __init__(self, path: Path, threads: int, *, delegate: bool = True) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        kernels = OpResolverType.AUTO if delegate else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        try:
            self._interpreter = Interpreter(str(path), num_threads=threads, experimental_op_resolver_type=kernels)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise VerificationError(f"LiteRT must load {path.name!r}, it says: {str(error).splitlines()[0]}") from error
        self._input = self._interpreter.get_input_details()[0]["index"]
        outputs = {entry["name"]: entry["index"] for entry in self._interpreter.get_output_details()}
        if "logits" not in outputs:
            raise VerificationError(f"{path.name!r} must have the output 'logits', it has {sorted(outputs)!r:.100}")
        self._output = outputs["logits"]

    def run(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the logits."""
        rows = []
        for image in images:
            self._interpreter.set_tensor(self._input, image[None])
            self._interpreter.invoke()
            rows.append(self._interpreter.get_tensor(self._output)[0])
        return np.stack(rows)

    def close(self) -> None:
        """Drop the interpreter."""
        del self._interpreter
