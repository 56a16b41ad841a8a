"""ONNX Runtime: the engine of quantized models, and of machines that OpenVINO does not serve."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from featcache.backbone import Backbone, ImageNetwork
from featcache.engines import Engine
from featcache.engines.precision import usable_cores
from featcache.errors import InputError
from featcache.recipe import Precision


class OnnxRuntimeEngine(Engine):
    """One session on the CPU."""

    name = "onnxruntime"

    def __init__(self, model: str | bytes, *, precision: Precision, batch_size: int) -> None:
        self.version = onnxruntime.__version__.partition(".")[0]
        self.precision = precision
        self.batch_size = batch_size
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = usable_cores()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        outputs = self._session.get_outputs()
        self.columns = tuple((output.name, tuple(output.shape[1:])) for output in outputs)

    @classmethod
    def from_file(cls, path: Path, *, precision: str, batch_size: int) -> OnnxRuntimeEngine:
        """Return the ONNX file loaded; ``auto`` means int8 where its graph is quantized, else fp32."""
        import onnx

        graph = onnx.load(path, load_external_data=False).graph
        found: Precision = "int8" if any(node.op_type == "QuantizeLinear" for node in graph.node) else "fp32"
        if precision not in ("auto", found):
            raise InputError(f"the file {str(path)!r} computes in {found}, got precision {precision!r}")
        return cls(str(path), precision=found, batch_size=batch_size)

    @classmethod
    def from_backbone(cls, backbone: Backbone, *, precision: str, batch_size: int) -> OnnxRuntimeEngine:
        """Return `backbone` exported to ONNX in memory and loaded."""
        if precision not in ("auto", "fp32"):
            raise InputError(f"onnxruntime computes a timm backbone in fp32, got precision {precision!r}")
        return cls(_exported(backbone), precision="fp32", batch_size=batch_size)

    def run(self, batch: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], ...]:
        """Return the outputs of one full batch."""
        return tuple(self._session.run(None, {self._input: batch}))

    def close(self) -> None:
        """Release the session."""
        del self._session


def _exported(backbone: Backbone) -> bytes:
    import io

    import torch

    size = backbone.preprocessing
    example = torch.zeros(2, size.height, size.width, 3, dtype=torch.uint8)
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            ImageNetwork(backbone),
            (example,),
            buffer,
            dynamo=False,
            opset_version=18,
            input_names=["image"],
            output_names=list(backbone.outputs),
            dynamic_axes={name: {0: "n"} for name in ("image", *backbone.outputs)},
        )
    return buffer.getvalue()
