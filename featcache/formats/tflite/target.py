"""TensorFlow Lite (LiteRT): ``model.tflite`` with labels inside, for Android and microcomputers.

The file is written from the ONNX graph by `featcache.formats.tflite.operations`, without a converter, and run in
LiteRT's own interpreter.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.errors import InputError, VerificationError
from featcache.extract.inputs.deployed_texts import NO_TOKEN, DeployedTexts
from featcache.formats.interface import HALVES, Converted, ModelFacts, Runner, Target, numbers_of, single_tensors
from featcache.system.files import write_atomically

_MODEL = "model.tflite"
_SIGNATURE = "serving_default"  # the name that converters of TensorFlow models give the only one
_LENGTH = "tokens_"  # and a number: the name of the graph of texts of that length
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

        proto, lengths = onnx.load(onnx_path), facts.input.lengths
        fixed = {f"{_LENGTH}{length}": fixed_batch(proto, tokens=length) for length in lengths}
        fixed = fixed or {_SIGNATURE: fixed_batch(proto)}
        graphs = {name: convert_graph(single, outputs=_OUTPUTS, halves=facts.halves) for name, single in fixed.items()}
        size = None if lengths else facts.image_shape[:2]
        metadata = metadata_bytes(
            name=facts.name,
            tensor=facts.input.tensor,
            description=(
                f"numbers of tokens, {NO_TOKEN} behind them, made as preprocess.json says"
                if size is None
                else f"RGB, {size[1]} x {size[0]} pixels, bytes 0 to 255, made as preprocess.json says"
            ),
            image_size=size,
            outputs=_OUTPUTS,
        )
        maker = f"featcache {importlib.metadata.version('featcache')}"
        data = file_bytes(graphs, description=maker, metadata={NAME: metadata})
        write_atomically(folder / _MODEL, data + attached_labels(labels_text(facts.classes)))
        numbers = numbers_of(facts, integers=_NUMBERS, halves=HALVES)
        return Converted((folder / _MODEL,), _tensors(facts), numbers)

    def open(self, files: Sequence[Path], *, threads: int) -> Runner:
        """Return the interpreter, with the XNNPACK kernels that are its default."""
        self.require()
        return _opened(files[0], threads)


def open_plain(path: Path, *, threads: int) -> Runner:
    """Return the interpreter with its own kernels alone, as where XNNPACK is not built in."""
    return _opened(path, threads, delegate=False)


def _tensors(facts: ModelFacts) -> dict[str, Any]:
    """Return one input's tensors; of an open length, those of each signature's fixed one."""
    tensors = single_tensors(facts)
    lengths = facts.input.lengths
    if lengths:
        entry = tensors["inputs"][facts.input.tensor]
        entry.update(
            dtype="int32", shape=[1, "L"], signatures={f"{_LENGTH}{length}": [1, length] for length in lengths}
        )
    return tensors


def _opened(path: Path, threads: int, *, delegate: bool = True) -> Runner:
    """Return the runner of a file with one graph, or with one for each of several lengths."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kernels = OpResolverType.AUTO if delegate else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        interpreter = Interpreter(str(path), num_threads=threads, experimental_op_resolver_type=kernels)
        signatures = {
            name: entry["outputs"]
            for name, entry in interpreter.get_signature_list().items()
            if name.startswith(_LENGTH)
        }
        for outputs in signatures.values():
            _require_logits(path, outputs)
        return _LengthsRunner(interpreter, list(signatures)) if signatures else _TfliteRunner(interpreter, path)
    except (ValueError, RuntimeError) as error:
        raise VerificationError(f"LiteRT must load {path.name!r}, it says: {str(error).splitlines()[0]}") from error


def _require_logits(path: Path, outputs: Collection[str]) -> None:
    if "logits" not in outputs:
        raise VerificationError(f"{path.name!r} must have the output 'logits', it has {sorted(outputs)!r:.100}")


class _LengthsRunner(Runner):
    """A text is run by the graph of the shortest length that it fits in."""

    def __init__(self, interpreter: Any, names: Sequence[str]) -> None:
        self._interpreter = interpreter
        lengths = sorted(int(name.removeprefix(_LENGTH)) for name in names)
        self._runners = {length: interpreter.get_signature_runner(f"{_LENGTH}{length}") for length in lengths}

    def run(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return the logits of ids (n, length), -1 behind the shorter ones."""
        rows = []
        for ids in images:
            tokens = ids[ids != NO_TOKEN]
            length = next((length for length in self._runners if len(tokens) <= length), None)
            if length is None:
                raise InputError(f"a text must have at most {max(self._runners)} tokens, got {len(tokens)}")
            padded = np.full((1, length), NO_TOKEN, dtype=np.int32)
            padded[0, : len(tokens)] = tokens
            rows.append(self._runners[length](**{DeployedTexts.tensor: padded})["logits"][0].copy())
        return np.stack(rows)

    def close(self) -> None:
        """Drop the interpreter."""
        self._runners.clear()
        del self._interpreter


class _TfliteRunner(Runner):
    def __init__(self, interpreter: Any, path: Path) -> None:
        self._interpreter = interpreter
        interpreter.allocate_tensors()
        self._input = interpreter.get_input_details()[0]["index"]
        outputs = {entry["name"]: entry["index"] for entry in interpreter.get_output_details()}
        _require_logits(path, outputs)
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
