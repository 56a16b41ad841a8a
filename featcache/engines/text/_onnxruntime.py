"""ONNX Runtime on the processor, for machines without OpenVINO: one session, each batch on its own thread."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

from featcache.engines.interface import Features
from featcache.engines.precision import refuse_precision
from featcache.engines.session import open_session
from featcache.engines.text.buckets import Buckets
from featcache.engines.text.interface import TextEngine, TokenIds
from featcache.system.threads import processor_count

if TYPE_CHECKING:
    from featcache.backbone.text.encoder import TextBackbone

OPSET = 18
INPUTS = ("input_ids", "attention_mask")


class OnnxRuntimeTextEngine(TextEngine):
    """One session of an encoder's graph with batch and length open."""

    name = "onnxruntime"

    def __init__(self, backbone: TextBackbone) -> None:
        self.version = str(onnxruntime.__version__).partition(".")[0]
        self.precision = "fp32"
        self.columns = tuple(zip(backbone.outputs, backbone.output_shapes, strict=True))
        self.workers = processor_count()
        self.buckets = Buckets(backbone.preprocessing.max_length)
        self.pad_id = backbone.pad_id
        self._session = open_session(export_encoder(backbone), threads=1)

    def _infer(self, ids: TokenIds, mask: TokenIds) -> tuple[Features, ...]:
        results = self._session.run(None, dict(zip(INPUTS, (ids, mask), strict=True)))
        return tuple(np.asarray(result, dtype=np.float32) for result in results)

    def _release(self) -> None:
        del self._session


def open_backbone(backbone: TextBackbone, *, precision: str) -> OnnxRuntimeTextEngine:
    """Return `backbone` in ONNX Runtime, in fp32; `InputError` for another precision."""
    if precision not in ("auto", "fp32"):
        raise refuse_precision(precision, engine="onnxruntime", why="it computes a float encoder in fp32 only")
    return OnnxRuntimeTextEngine(backbone)


class PaddedGraphEngine(TextEngine):
    """An ONNX file whose one input is ids with `padding` behind shorter texts, such as `write_onnx` writes."""

    name = "onnxruntime"

    def __init__(self, path: Path, *, max_length: int, padding: int) -> None:
        self.version = str(onnxruntime.__version__).partition(".")[0]
        self.precision = "int8"
        self.workers = processor_count()
        self.buckets = Buckets(max_length)
        self.pad_id = padding
        self._session = open_session(path, threads=1)
        (self._input,) = (value.name for value in self._session.get_inputs())
        self.columns = tuple((value.name, tuple(value.shape[1:])) for value in self._session.get_outputs())

    def _infer(self, ids: TokenIds, mask: TokenIds) -> tuple[Features, ...]:
        results = self._session.run(None, {self._input: ids})
        return tuple(np.asarray(result, dtype=np.float32) for result in results)

    def _release(self) -> None:
        del self._session


def open_padded_graph(path: Path, *, max_length: int, padding: int) -> PaddedGraphEngine:
    """Return the ONNX file at `path` opened, for texts of up to `max_length` tokens."""
    return PaddedGraphEngine(path, max_length=max_length, padding=padding)


def export_encoder(backbone: TextBackbone) -> bytes:
    """Return the ONNX bytes of an encoder: ``input_ids``, ``attention_mask`` int64 (N, L), both open."""
    import torch

    from featcache.engines.text.tracing import example_inputs

    buffer = io.BytesIO()
    axes = {0: "N", 1: "L"}
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the TorchScript exporter is deprecated; it is also quicker
        torch.onnx.export(
            backbone,
            example_inputs(backbone),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=list(backbone.outputs),
            dynamic_axes={**dict.fromkeys(INPUTS, axes), **{name: {0: "N"} for name in backbone.outputs}},
        )
    return buffer.getvalue()
