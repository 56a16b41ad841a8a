"""Core ML: ``model.mlpackage`` for Apple's devices. It converts anywhere; only macOS can run it.

Elsewhere the saved program and its weights are read back and computed by `featcache.formats.coreml.mil`, and the
inputs, outputs and labels of the saved description are checked.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import json
import logging
import platform
import tempfile
import uuid
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from featcache.errors import VerificationError
from featcache.formats.interface import Converted, ModelFacts, Runner, Target, numbers_of, single_tensors
from featcache.system.files import write_atomically

_PACKAGE = "model.mlpackage"
_SPEC, _WEIGHTS = "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"
_LABEL, _SCORES = "label", "probabilities"
_DEPLOYMENT = "iOS16"
_NUMBERS = (
    "weights INT8, symmetric, a scale per output channel as coremltools chooses it over the values of the stored "
    "integers; activations are not rounded"
)
# of an operation, what it computes; the last four are of weights stored as INT8
_ATTRIBUTES = ("name", "val", "quantized_data", "axis", "scale", "zero_point")
_LEAST_NUMBERS = 512  # of a tensor that is stored as INT8: below, its scales would take as much as they save


class CoreMlTarget(Target):
    """Made from the ONNX graph's operations as torch's with coremltools, in float32 as every format here.

    The input is an image, so Core ML itself scales a photo's pixels; mean and deviation per channel are in the model.
    """

    name = "coreml"
    needs = "featcache targets install coreml, or pip install 'featcache[coreml]'"
    packages = ("coremltools==9.0",)

    def available(self) -> str | None:
        """Return why coremltools cannot be used here, or None."""
        return None if importlib.util.find_spec("coremltools") else "the package coremltools is not installed"

    def executable(self) -> str | None:
        """Return why the files are not run here, or None on macOS."""
        if platform.system() != "Darwin":
            return f"Core ML runs on macOS and iOS only, this is {platform.system()}"
        return self.available()

    def version(self) -> str:
        """Return the version of coremltools."""
        return f"coremltools {importlib.metadata.version('coremltools')}"

    def convert(self, onnx_path: Path, folder: Path, *, facts: ModelFacts) -> Converted:
        """Write the package, check what its description says, and return its files."""
        self.require()
        import onnx

        from featcache.formats.planar import trace_planar
        from featcache.graph.passes import write_single

        with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # coremltools and torch's tracer warn of each other's versions
            tools = _tools()
            single = write_single(onnx_path, Path(scratch) / "single.onnx")
            traced, shape = trace_planar(single, image_shape=facts.image_shape, outputs=("logits", _SCORES))
            nodes = onnx.load(single).graph.node
            exclusive = any(node.op_type == "Softmax" and _SCORES in node.output for node in nodes)
            named = {"outputs": [tools.TensorType(name=name) for name in ("logits", _SCORES)]}
            config = tools.ClassifierConfig(list(facts.classes), predicted_feature_name=_LABEL)
            with _quietly():
                model = tools.convert(
                    traced,
                    inputs=[tools.ImageType(name="image", shape=shape, color_layout=tools.colorlayout.RGB)],
                    **({"classifier_config": config} if exclusive else named),
                    compute_precision=tools.precision.FLOAT32,
                    minimum_deployment_target=tools.target.iOS16,
                    convert_to="mlprogram",
                )
            if facts.quantized:
                model = _store_integers(tools, model)
            spec = model.get_spec()
            if exclusive:
                _rename_outputs(tools, spec)
            _describe(spec, facts)
            weights = Path(model.weights_dir) / "weight.bin"
            data = weights.read_bytes()
        _check(spec, facts, exclusive=exclusive)
        package = folder / _PACKAGE
        contents = {
            "Manifest.json": json.dumps(_manifest(), indent=4).encode(),
            _SPEC: spec.SerializeToString(deterministic=True),
            _WEIGHTS: data,
        }
        for name, value in contents.items():
            (package / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(package / name, value)
        files = tuple(package / name for name in contents)
        return Converted(
            files, _tensors(facts), numbers_of(facts, integers=_NUMBERS, dynamic=_NUMBERS), takes_scales=False
        )

    def open(self, files: Sequence[Path], *, threads: int) -> Runner:
        """Return the model on macOS."""
        self.require()
        return _CoreMlRunner(files[0].parent)

    def reference_runner(self, files: Sequence[Path], *, threads: int) -> Runner | None:
        """Return the saved program computed by torch."""
        if self.available() is not None:
            return None
        from featcache.formats.coreml.mil import MilRunner

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _tools()
            return MilRunner(files[0].parent / _SPEC, files[0].parent / Path(_WEIGHTS).parent)


def _tensors(facts: ModelFacts) -> dict[str, Any]:
    """Return an image in; logits and, where classes exclude each other, a label and a score per label out."""
    tensors = single_tensors(facts)
    tensors["inputs"]["image"].update(dtype="image, 8 bits a channel", layout="Core ML image")
    tensors["outputs"][_SCORES] = {"dtype": "dictionary of label to float"}
    tensors["outputs"][_LABEL] = {"dtype": "string"}
    return {**tensors, "least_system": _DEPLOYMENT}


class _CoreMlRunner(Runner):
    def __init__(self, package: Path) -> None:
        self._model = _tools().models.MLModel(str(package))

    def run(self, images: Any) -> Any:
        """Return the logits."""
        import numpy as np
        from PIL import Image

        rows = [self._model.predict({"image": Image.fromarray(image)})["logits"] for image in images]
        return np.concatenate([np.asarray(row, dtype=np.float32).reshape(1, -1) for row in rows])

    def close(self) -> None:
        """Drop the model."""
        del self._model


def _tools() -> Any:
    """Return coremltools, its remarks on what a machine without macOS lacks kept to itself."""
    with _quietly():
        import coremltools
    return coremltools


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep coremltools' remarks and the progress bars that it draws to itself; errors are raised as ever."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _store_integers(tools: Any, model: Any) -> Any:
    """Return `model` with the weights of convolutions and matrix products as INT8 and a scale per output channel.

    They are what the stored integers stand for, up to 64; coremltools rounds them anew, to integers up to 127.
    """
    optimize = tools.optimize.coreml
    config = optimize.OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype="int8", granularity="per_channel", weight_threshold=_LEAST_NUMBERS
    )
    with _quietly():
        return optimize.linear_quantize_weights(model, optimize.OptimizationConfig(global_config=config))


def _rename_outputs(tools: Any, spec: Any) -> None:
    """Give the outputs their names; coremltools numbers them."""
    scores = spec.description.predictedProbabilitiesName
    (logits,) = [entry.name for entry in spec.description.output if entry.name not in (scores, _LABEL)]
    tools.utils.rename_feature(spec, logits, "logits")
    tools.utils.rename_feature(spec, scores, _SCORES)
    spec.description.predictedProbabilitiesName = _SCORES


def _describe(spec: Any, facts: ModelFacts) -> None:
    """Say what a person reads in Xcode, and take out the date of the conversion."""
    spec.description.metadata.shortDescription = f"{len(facts.classes)} classes on {facts.name}"
    # where the classes do not exclude each other there is no classifier to hold the labels: Xcode shows them from here
    spec.description.metadata.userDefined["classes"] = json.dumps(list(facts.classes), ensure_ascii=False)
    noted = spec.description.metadata.userDefined
    for key in [key for key in noted if "date" in key]:
        del noted[key]
    for function in spec.mlProgram.functions.values():
        for block in function.block_specializations.values():
            # coremltools numbers some constants by a counter of the whole process
            counted = [o.name for op in block.operations for o in op.outputs if o.name.startswith("const_")]
            names = {name: f"constant_{number}" for number, name in enumerate(counted)}
            for operation in block.operations:
                for output in operation.outputs:
                    output.name = names.get(output.name, output.name)
                for source in operation.inputs.values():
                    for argument in source.arguments:
                        if argument.name:
                            argument.name = names.get(argument.name, argument.name)
                texts = operation.attributes["name"].immediateValue.tensor.strings.values
                texts[:] = [names.get(text, text) for text in texts]
                # where in the source each operation came from: paths of this machine
                for key in [key for key in operation.attributes if key not in _ATTRIBUTES]:
                    del operation.attributes[key]


def _check(spec: Any, facts: ModelFacts, *, exclusive: bool) -> None:
    """Raise `VerificationError` unless the description has the promised input, outputs and labels."""
    height, width, _ = facts.image_shape
    (image,) = spec.description.input
    size = (image.name, image.type.imageType.height, image.type.imageType.width)
    outputs = {entry.name for entry in spec.description.output}
    labels = _labels(spec) if exclusive else facts.classes
    names = {"logits", _SCORES, _LABEL} if exclusive else {"logits", _SCORES}
    promised = (("image", height, width), names, facts.classes)
    if (size, outputs, labels) != promised:
        raise VerificationError(
            f"the Core ML file must have the input, outputs and labels {promised!r}, it has {(size, outputs, labels)!r}"
        )


def _labels(spec: Any) -> tuple[str, ...]:
    """Return the labels of the saved program's last operation, in the order of the logits."""
    (function,) = spec.mlProgram.functions.values()
    (block,) = function.block_specializations.values()
    (classify,) = [operation for operation in block.operations if operation.type == "classify"]
    (binding,) = classify.inputs["classes"].arguments
    constants = {operation.outputs[0].name: operation for operation in block.operations if operation.type == "const"}
    value = constants[binding.name].attributes["val"] if binding.name else binding.value
    return tuple(entry.immediateValue.tensor.strings.values[0] for entry in value.immediateValue.list.values)


def _manifest() -> dict[str, Any]:
    """Return the package's list of contents, with identifiers that do not change from one export to the next."""
    spec, weights = (str(uuid.uuid5(uuid.NAMESPACE_URL, f"featcache/{name}")) for name in (_SPEC, _WEIGHTS))
    author = "com.apple.CoreML"
    return {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            spec: {
                "author": author,
                "description": "CoreML Model Specification",
                "name": "model.mlmodel",
                "path": "com.apple.CoreML/model.mlmodel",
            },
            weights: {
                "author": author,
                "description": "CoreML Model Weights",
                "name": "weights",
                "path": "com.apple.CoreML/weights",
            },
        },
        "rootModelIdentifier": spec,
    }
