"""OpenVINO IR: ``model.xml`` and ``model.bin``, the fastest runtime on x86 processors."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.errors import FormatError
from featcache.formats.interface import HALVES, Converted, ModelFacts, Runner, Target, classifier_tensors, numbers_of
from featcache.recipe import preprocessing_to_json
from featcache.system.json import canonical_json


class OpenVinoTarget(Target):
    """Convert through OpenVINO's own ONNX reader, which runs in process and reports to nobody (`ovc` has telemetry)."""

    name = "openvino"
    needs = "pip install 'openvino>=2025.2'"

    def available(self) -> str | None:
        """Return why OpenVINO cannot be used here, or None."""
        return None if importlib.util.find_spec("openvino") else "the package openvino is not installed"

    def version(self) -> str:
        """Return OpenVINO's version."""
        return f"openvino {importlib.metadata.version('openvino')}"

    def convert(self, onnx_path: Path, folder: Path, *, facts: ModelFacts) -> Converted:
        """Write ``model.xml`` and ``model.bin`` with float32 weights, labels in `rt_info`."""
        self.require()
        from featcache.engines.openvino_core import openvino_core, save_network

        model = openvino_core().read_model(onnx_path)
        _name_operations(model)
        # where OpenVINO's Model API looks: labels apart by spaces; the exact ones stand under framework/labels
        labels = ["_".join(label.split()) or "_" for label in facts.classes]
        model.set_rt_info(" ".join(labels), ["model_info", "labels"])
        if facts.task != "regression":
            model.set_rt_info("Classification", ["model_info", "model_type"])
            model.set_rt_info(str(facts.task == "multilabel"), ["model_info", "multilabel"])
        preprocessing = canonical_json(preprocessing_to_json(facts.input.preprocessing))
        model.set_rt_info(preprocessing, ["featcache", "preprocessing"])
        if facts.quantized and not facts.dynamic:
            # else it rounds what a float layer with stored integers reads, a head's features, in groups of 32
            model.set_rt_info("0", ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
        xml = folder / "model.xml"
        save_network(model, xml)
        return Converted(
            (xml, folder / "model.bin"), classifier_tensors(facts), numbers_of(facts, integers=None, halves=HALVES)
        )

    def open(self, files: Sequence[Path], *, threads: int) -> Runner:
        """Return the compiled model."""
        self.require()
        return _OpenVinoRunner(files[0], threads)


class _OpenVinoRunner(Runner):
    def __init__(self, xml: Path, threads: int) -> None:
        from featcache.engines.openvino_core import openvino_core

        # float32 is asked for by name: the default silently computes in bf16 where the processor can
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self._name = xml.name
        try:
            compiled = openvino_core().compile_model(xml, "CPU", settings)
            self._logits = compiled.output("logits")
        except RuntimeError as error:
            raise self._refusal(error) from error
        self._request = compiled.create_infer_request()

    def run(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return the logits."""
        try:
            result: npt.NDArray[np.float32] = self._request.infer({0: images})[self._logits]
        except RuntimeError as error:
            raise self._refusal(error) from error
        return np.array(result, dtype=np.float32)

    def _refusal(self, error: RuntimeError) -> FormatError:
        said = str(error).strip().splitlines()[-1]  # the first lines name files of OpenVINO's own sources
        return FormatError(f"{self._name!r} must give logits of an image, OpenVINO says: {said}")

    def close(self) -> None:
        """Drop the request and with it the compiled model."""
        del self._request


def _name_operations(model: Any) -> None:
    """Name operations that OpenVINO numbered by a counter of the whole process after their place in the graph."""
    for position, operation in enumerate(model.get_ordered_ops()):
        if re.fullmatch(rf"{operation.get_type_name()}_\d+", operation.get_friendly_name()):
            operation.set_friendly_name(f"{operation.get_type_name()}/{position}")
