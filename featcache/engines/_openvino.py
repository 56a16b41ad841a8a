"""OpenVINO on the processor: one stream of one thread per processor, so that callers decode and infer in turn.

The network comes from torch's TorchScript through OpenVINO's own front end. ``openvino.convert_model`` is not used: it
sends telemetry.
"""

from __future__ import annotations

import logging
import queue
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino
from openvino import properties

from featcache.engines import Engine, Features, Images, identity, processor_count
from featcache.engines._network_cache import entry_path, load_entry, save_entry
from featcache.engines._precision import MIN_COSINE, check_images, lowest_cosine, reference_rows, refuse_precision
from featcache.errors import BackboneError
from featcache.recipe import Precision, Recipe

if TYPE_CHECKING:
    from featcache.backbone import Backbone

DEFAULT_BATCH_SIZE = 16
_TYPES: dict[str, openvino.Type] = {"fp32": openvino.Type.f32, "bf16": openvino.Type.bf16}
_logger = logging.getLogger(__name__)


class OpenVinoEngine(Engine):
    """A network compiled by OpenVINO's processor plug-in."""

    name = "openvino"

    def __init__(self, compiled: openvino.CompiledModel, *, columns: Any, precision: Precision, streams: int) -> None:
        self.version = openvino_version()
        self.precision = precision
        self.batch_size, self.height, self.width, _ = (int(size) for size in compiled.input(0).shape)
        self.columns = tuple((str(name), tuple(int(size) for size in shape)) for name, shape in columns)
        self.workers = streams
        self._compiled = compiled
        self._requests: queue.SimpleQueue[openvino.InferRequest] = queue.SimpleQueue()
        for _ in range(streams):
            self._requests.put(compiled.create_infer_request())

    def _infer(self, batch: Images) -> tuple[Features, ...]:
        request = self._requests.get()
        try:
            request.set_input_tensor(openvino.Tensor(batch, shared_memory=True))
            request.infer()
            return tuple(
                np.array(request.get_output_tensor(index).data, dtype=np.float32) for index in range(len(self.columns))
            )
        finally:
            self._requests.put(request)

    def close(self) -> None:
        """Release the network; nothing may be run any more."""
        self._requests = queue.SimpleQueue()
        del self._compiled


def openvino_version() -> str:
    """Return the major version, e.g. ``2026``."""
    return str(openvino.get_version()).partition(".")[0]


def open_backbone(backbone: Backbone, *, precision: str, batch_size: int | None, cached: bool) -> OpenVinoEngine:
    """Return `backbone` compiled; see `featcache.engines.open_engine`."""
    from featcache.backbone import weights_digest

    batch_size = batch_size or DEFAULT_BATCH_SIZE
    has_bf16 = _has_bf16()
    if precision == "int8":
        raise refuse_precision(precision, engine="openvino", why="a float backbone is not quantized")
    if precision == "bf16" and not has_bf16:
        raise refuse_precision(precision, engine="openvino", why="its processor has neither AVX512-BF16 nor AMX")
    # Surgery changes a network without changing its name: only an untouched one is what its name says.
    cached = cached and backbone.model_digest is None and weights_digest(backbone.network) == backbone.weights_sha256
    if precision == "auto":
        precision = "bf16" if has_bf16 else "fp32"
        checking = has_bf16
    else:
        checking = False
    key = _key(identity(backbone), precision, batch_size)
    entry = load_entry(entry_path(key)) if cached else None
    if entry is not None and (not checking or entry[0].get("cosine") is not None):
        if not checking or entry[0]["cosine"] >= MIN_COSINE:
            return _import(entry[0], entry[1])
        return open_backbone(backbone, precision="fp32", batch_size=batch_size, cached=cached)
    model = convert(backbone, batch_size=batch_size)
    columns = list(zip(backbone.outputs, [list(output.shape)[1:] for output in model.outputs], strict=True))
    engine = _compile(model, columns, precision)
    cosine = None
    if checking:
        images = check_images(engine.height, engine.width)
        cosine = lowest_cosine(engine.run(images), reference_rows(backbone, images))
    header = {"columns": columns, "precision": precision, "batch_size": batch_size, "cosine": cosine}
    if cached:
        # Exporting works on a network that has run; the file is OpenVINO's own, bound to its version and processor.
        save_entry(entry_path(key), header, engine._compiled.export_model().getvalue())
    if cosine is not None and cosine < MIN_COSINE:
        _logger.info("bf16 keeps a cosine of %.5f only, below %s: fp32 it is", cosine, MIN_COSINE)
        engine.close()
        return open_backbone(backbone, precision="fp32", batch_size=batch_size, cached=cached)
    return engine


def open_recipe(recipe: Recipe) -> OpenVinoEngine | None:
    """Return the engine of `recipe` from the cache of compiled networks, or None."""
    if recipe.engine_version != openvino_version() or (recipe.precision == "bf16" and not _has_bf16()):
        return None
    entry = load_entry(entry_path(_key(identity(recipe), recipe.precision, DEFAULT_BATCH_SIZE)))
    return None if entry is None else _import(*entry)


def convert(backbone: Backbone, *, batch_size: int) -> openvino.Model:
    """Return the whole graph, uint8 images in, of a fixed batch size, unoptimised, in fp32."""
    import torch
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    from featcache.backbone import ImageNetwork

    network = ImageNetwork(backbone)
    height, width = backbone.preprocessing.height, backbone.preprocessing.width
    example = torch.zeros(1, height, width, 3, dtype=torch.uint8)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and shapes are meant to become constants
        scripted = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
        decoder = TorchScriptPythonDecoder(scripted, example_input=example)
    front_end = FrontEndManager().load_by_framework("pytorch")
    model = front_end.convert(front_end.load(decoder))
    model.reshape({model.input(0): [batch_size, height, width, 3]})
    if any(output.partial_shape.is_dynamic or output.shape[0] != batch_size for output in model.outputs):
        shapes = [str(output.partial_shape) for output in model.outputs]
        raise BackboneError(
            f"every output of {backbone.model_name!r} must have one row per image in OpenVINO's graph, got {shapes!r}; "
            "use engine='torch'"
        )
    return model


def _configuration(precision: str) -> dict[str, Any]:
    count = processor_count()
    return {
        properties.hint.inference_precision: _TYPES[precision],
        properties.num_streams: count,
        properties.inference_num_threads: count,
        properties.hint.enable_cpu_pinning: False,
        properties.hint.enable_hyper_threading: True,
    }


def _compile(model: openvino.Model, columns: Any, precision: str) -> OpenVinoEngine:
    compiled = openvino.Core().compile_model(model, "CPU", _configuration(precision))
    return OpenVinoEngine(compiled, columns=columns, precision=precision, streams=processor_count())  # type: ignore[arg-type]


def _import(header: dict[str, Any], payload: bytes) -> OpenVinoEngine:
    compiled = openvino.Core().import_model(payload, "CPU", _configuration(header["precision"]))
    return OpenVinoEngine(compiled, columns=header["columns"], precision=header["precision"], streams=processor_count())


def _has_bf16() -> bool:
    return "BF16" in openvino.Core().get_property("CPU", properties.device.capabilities)


def _key(network: dict[str, Any], precision: str, batch_size: int) -> dict[str, Any]:
    core = openvino.Core()
    return {
        **network,
        "engine": "openvino",
        "version": str(openvino.get_version()),
        "processor": str(core.get_property("CPU", properties.device.full_name)),
        "capabilities": sorted(core.get_property("CPU", properties.device.capabilities)),
        "precision": precision,
        "batch_size": batch_size,
    }
