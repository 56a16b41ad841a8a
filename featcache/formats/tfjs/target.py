"""TensorFlow.js: ``model.json`` and weights in pieces of 4 MB, a graph model for pages and Node.js.

The files are written from the ONNX graph by `featcache.formats.tfjs.operations`, without TensorFlow, and run in
TensorFlow.js itself, on its WebAssembly backend in Node.js.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path

from featcache.formats.interface import HALVES, Converted, ModelFacts, Runner, Target, numbers_of, single_tensors
from featcache.formats.tools.npm import NodeProgram, NpmPackage
from featcache.formats.tools.program import ProgramRunner
from featcache.system.files import write_atomically

_MODEL = "model.json"
_PIECE_BYTES = 4 << 20  # a browser caches files of this size at the most
_OUTPUTS = ("logits", "probabilities")
_NUMBERS = (
    "float32 that holds the whole numbers of the stored scales: weights are stored as bytes and multiplied as the "
    "integers they are, activations are rounded to theirs"
)


class TfjsTarget(Target):
    """``tf.loadGraphModel`` reads the files; the image is what ``tf.browser.fromPixels`` gives, as a batch of one."""

    name = "tfjs"
    needs = "featcache targets install tfjs, with Node.js on the PATH (Debian: apt-get install nodejs npm)"
    environment = NodeProgram(
        name="tfjs",
        program="run_tfjs.cjs",
        packages=(
            NpmPackage(
                name="@tensorflow/tfjs",
                version="4.22.0",
                integrity="sha512-0TrIrXs6/b7FLhLVNmfh8Sah6JgjBPH4mZ8JGb7NU6WW+cx00qK5BcAZxw7NCzxj6N8MRAIfHq+oNbPUNG5VAg==",
                files=("dist/tf.min.js",),
                megabytes=2,
            ),
            NpmPackage(
                name="@tensorflow/tfjs-backend-wasm",
                version="4.22.0",
                integrity="sha512-/IYhReRIp4jg/wYW0OwbbJZG8ON87mbz0PgkiP3CdcACRSvUN0h8rvC0O3YcDtkTQtFWF/tcXq/KlVDyV49wmA==",
                files=(
                    "dist/tf-backend-wasm.min.js",
                    "dist/tfjs-backend-wasm.wasm",
                    "dist/tfjs-backend-wasm-simd.wasm",
                ),
                megabytes=1,
            ),
        ),
    )

    def available(self) -> str | None:
        """Return why TensorFlow.js cannot be used here, or None: what cannot be run is not written either."""
        return self.environment.reason()

    def version(self) -> str:
        """Return the version of TensorFlow.js and what it computes with."""
        return f"tfjs {self.environment.packages[0].version} (wasm) in Node.js"

    def convert(self, onnx_path: Path, folder: Path, *, facts: ModelFacts) -> Converted:
        """Write ``model.json``, with classes and preprocessing in its metadata, and the pieces of the weights."""
        self.require()
        import onnx

        from featcache.formats.tfjs.operations import convert_graph
        from featcache.graph.passes import fixed_batch

        graph = convert_graph(fixed_batch(onnx.load(onnx_path)), outputs=_OUTPUTS, halves=facts.halves)
        data = b"".join(weight.data() for weight in graph.weights)
        pieces = [data[start : start + _PIECE_BYTES] for start in range(0, len(data), _PIECE_BYTES)]
        names = [f"group1-shard{number}of{len(pieces)}.bin" for number in range(1, len(pieces) + 1)]
        model = {
            "format": "graph-model",
            "generatedBy": f"featcache {importlib.metadata.version('featcache')}",
            "convertedBy": None,
            "signature": {"inputs": graph.inputs, "outputs": graph.outputs},
            "userDefinedMetadata": {
                "name": facts.name,
                "classes": list(facts.classes),
                "task": facts.task,
                "unknown": None if facts.unknown is None else dict(facts.unknown),
                "preprocessing": facts.preprocessing.to_json(),
            },
            "modelTopology": {"node": graph.nodes, "library": {}, "versions": {}},
            "weightsManifest": [{"paths": names, "weights": [weight.manifest() for weight in graph.weights]}],
        }
        text = json.dumps(model, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        contents = {_MODEL: text.encode(), **dict(zip(names, pieces, strict=True))}
        for name, piece in contents.items():
            write_atomically(folder / name, piece)
        tensors = single_tensors(facts)
        tensors["inputs"]["image"].update(dtype="int32", range=[0, 255])
        numbers = numbers_of(facts, integers=_NUMBERS, halves=HALVES)
        return Converted(tuple(folder / name for name in contents), tensors, numbers, takes_scales=False)

    def open(self, files: Sequence[Path], *, threads: int) -> Runner:
        """Return the model in Node.js, on one thread whatever `threads` says, as in a page that is not isolated."""
        self.require()
        runner = ProgramRunner(self.environment, files, threads=1)
        runner.threads = 1
        return runner
