"""OpenVINO on the processor: one compiled network for every shape, one stream of one thread per processor."""

from __future__ import annotations

import logging
import queue
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import openvino
from openvino._offline_transformations import apply_moc_transformations

from featcache.engines._dynamic_int8 import quantize_products
from featcache.engines._openvino import (
    LEAST_COSINE,
    Arithmetic,
    openvino_version,
    plugin_settings,
    processor_arithmetic,
)
from featcache.engines.interface import Features
from featcache.engines.openvino_core import openvino_core
from featcache.engines.precision import lowest_cosine, refuse_precision
from featcache.engines.text.buckets import Buckets
from featcache.engines.text.check_texts import check_ids, reference_text_rows
from featcache.engines.text.interface import TextEngine, TokenIds
from featcache.recipe import Precision
from featcache.system.threads import processor_count

if TYPE_CHECKING:
    from featcache.backbone.text.encoder import TextBackbone

_logger = logging.getLogger(__name__)


class OpenVinoTextEngine(TextEngine):
    """An encoder compiled by OpenVINO's processor plug-in."""

    name = "openvino"

    def __init__(self, compiled: openvino.CompiledModel, backbone: TextBackbone, *, precision: Precision) -> None:
        self.version = openvino_version()
        self.precision = precision
        self.columns = tuple(zip(backbone.outputs, backbone.output_shapes, strict=True))
        self.workers = processor_count()
        self.buckets = Buckets(backbone.preprocessing.max_length)
        self.pad_id = backbone.pad_id
        self._compiled = compiled
        self._requests: queue.SimpleQueue[openvino.InferRequest] = queue.SimpleQueue()
        for _ in range(self.workers):
            self._requests.put(compiled.create_infer_request())

    def _infer(self, ids: TokenIds, mask: TokenIds) -> tuple[Features, ...]:
        request = self._requests.get()
        try:
            request.set_input_tensor(0, openvino.Tensor(ids, shared_memory=True))
            request.set_input_tensor(1, openvino.Tensor(mask, shared_memory=True))
            request.infer()
            return tuple(
                np.array(request.get_output_tensor(index).data, dtype=np.float32) for index in range(len(self.columns))
            )
        finally:
            self._requests.put(request)

    def _release(self) -> None:
        self._requests = queue.SimpleQueue()
        del self._compiled


def open_backbone(
    backbone: TextBackbone,
    *,
    precision: str,
    arithmetic: Arithmetic | None = None,
    least_cosine: Mapping[str, float] = LEAST_COSINE,
) -> OpenVinoTextEngine:
    """Return `backbone` compiled; ``auto`` takes the fastest precision whose check rows keep `least_cosine` to fp32.

    `arithmetic`: what the processor has, by default this one. Raises `InputError` for a precision that it lacks.
    """
    has = arithmetic or processor_arithmetic()
    if precision == "int8":
        raise refuse_precision(precision, engine="openvino", why="a float encoder is not quantized")
    if precision == "bf16" and not has.bf16:
        raise refuse_precision(precision, engine="openvino", why="its processor has neither AVX512-BF16 nor AMX")
    if precision == "int8-dynamic" and not has.dynamic_int8:
        raise refuse_precision(precision, engine="openvino", why="its processor has not both VNNI and AVX512-BF16")
    model = _convert(backbone)
    for tried in has.fastest_first if precision == "auto" else (cast("Precision", precision),):
        engine = _compile(model.clone(), backbone, tried)
        if tried == "fp32" or precision != "auto":
            break
        ids = check_ids(backbone)
        cosine = lowest_cosine(engine.run(ids), reference_text_rows(backbone, ids))
        if cosine >= least_cosine[tried]:
            break
        _logger.info("%s keeps a cosine of %.5f only, below %s", tried, cosine, least_cosine[tried])
        engine.close()
    return engine


def _compile(model: openvino.Model, backbone: TextBackbone, precision: Precision) -> OpenVinoTextEngine:
    if precision == "int8-dynamic":
        quantize_products(model)
    compiled = openvino_core().compile_model(model, "CPU", plugin_settings(precision))
    return OpenVinoTextEngine(compiled, backbone, precision=precision)


def _convert(backbone: TextBackbone) -> openvino.Model:
    """Return the graph with batch and length open, as the front end makes it of TorchScript."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    from featcache.engines.text.tracing import example_inputs, traced

    scripted = traced(backbone)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decoder = TorchScriptPythonDecoder(scripted, example_input=example_inputs(backbone))
    front_end: Any = FrontEndManager().load_by_framework("pytorch")
    model: openvino.Model = front_end.convert(front_end.load(decoder))
    model.reshape({source: [-1, -1] for source in model.inputs})
    apply_moc_transformations(model, cf=True)  # operations are fused while their constants can still be told apart
    return model
