"""OpenVINO on the processor: one stream of one thread per processor, so that callers decode and infer in turn.

The network comes from torch's TorchScript through OpenVINO's own front end. ``openvino.convert_model`` is not used: it
sends telemetry.
"""

from __future__ import annotations

import logging
import math
import queue
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from xml.etree import ElementTree

import numpy as np
import openvino
from openvino import properties
from openvino._offline_transformations import apply_moc_transformations

from featcache.engines._dynamic_int8 import GROUP_SIZE, product_share, quantize_products
from featcache.engines._network_cache import entry_path, identity, load_entry, save_entry
from featcache.engines.interface import Engine, Features, Images
from featcache.engines.openvino_core import openvino_core, save_network
from featcache.engines.precision import (
    MIN_COSINE,
    MIN_INT8_COSINE,
    check_images,
    lowest_cosine,
    reference_rows,
    refuse_precision,
)
from featcache.errors import BackboneError
from featcache.recipe import Precision, Recipe
from featcache.system.processor import processor_has_int8
from featcache.system.threads import processor_count

if TYPE_CHECKING:
    from featcache.backbone.backbone import Backbone

_LARGEST_BATCH_SIZE = 16
_CACHED_BYTES = 12 << 20
_EXACT_CONVOLUTIONS = (0, 3)
_TYPES: dict[str, openvino.Type] = {
    "fp32": openvino.Type.f32,
    "bf16": openvino.Type.bf16,
    "int8-dynamic": openvino.Type.bf16,  # what is no product of matrices
}
LEAST_COSINE: Mapping[str, float] = {"fp32": 0.0, "bf16": MIN_COSINE, "int8-dynamic": MIN_INT8_COSINE}
_LEAST_PRODUCT_SHARE = 0.5
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

    def export(self) -> bytes:
        """Return the compiled network in OpenVINO's own form, bound to its version and the processor."""
        return bytes(self._compiled.export_model().getvalue())

    def _release(self) -> None:
        self._requests = queue.SimpleQueue()
        del self._compiled


def openvino_version() -> str:
    """Return the major version, e.g. ``2026``."""
    return str(openvino.get_version()).partition(".")[0]


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """What OpenVINO multiplies natively on a processor: bf16 numbers, INT8 numbers."""

    bf16: bool
    int8: bool

    @property
    def dynamic_int8(self) -> bool:
        """Whether it has both, as ``int8-dynamic`` needs: what is no product of matrices is computed in bf16."""
        return self.bf16 and self.int8

    @property
    def fastest_first(self) -> tuple[Precision, ...]:
        """The precisions it computes fast, the fastest first; fp32 is always among them."""
        return (
            *(("int8-dynamic",) if self.dynamic_int8 else ()),
            *(("bf16",) if self.bf16 else ()),
            "fp32",
        )


def processor_arithmetic() -> Arithmetic:
    """Return what this processor has."""
    capabilities = openvino_core().get_property("CPU", properties.device.capabilities)
    return Arithmetic(bf16="BF16" in capabilities, int8=processor_has_int8())


def open_backbone(
    backbone: Backbone,
    *,
    precision: str,
    batch_size: int | None,
    cached: bool,
    arithmetic: Arithmetic | None = None,
    least_cosine: Mapping[str, float] = LEAST_COSINE,
) -> OpenVinoEngine:
    """Return `backbone` compiled; see `featcache.engines.open_engine`, also for what is raised.

    `arithmetic`: what the processor has, by default this one. `least_cosine`: that the rows of the check images must
    keep to fp32 for ``auto`` to take a precision.
    """
    from featcache.backbone.backbone import weights_digest

    has = arithmetic or processor_arithmetic()

    if precision == "int8":
        raise refuse_precision(precision, engine="openvino", why="a float backbone is not quantized")
    if precision == "bf16" and not has.bf16:
        raise refuse_precision(precision, engine="openvino", why="its processor has neither AVX512-BF16 nor AMX")
    if precision == "int8-dynamic" and not has.dynamic_int8:
        raise refuse_precision(precision, engine="openvino", why="its processor has not both VNNI and AVX512-BF16")
    # Surgery changes a network without changing its name: only an untouched one is what its name says.
    cached = cached and backbone.model_digest is None and weights_digest(backbone.network) == backbone.weights_sha256
    auto = precision == "auto"
    candidates = has.fastest_first if auto else (cast("Precision", precision),)
    paths = {tried: entry_path(_key(identity(backbone), tried, batch_size)) for tried in candidates}
    for path in paths.values() if cached else ():
        entry = load_entry(path)
        if entry is not None and (entry[0]["chosen"] or not auto):
            return _import(*entry)
    graph = _Graph.of(backbone, batch_size=batch_size)
    for tried in candidates:
        if tried == "int8-dynamic" and graph.product_share < _LEAST_PRODUCT_SHARE:
            if not auto:
                raise refuse_precision(tried, engine="openvino", why="few of its multiplications are matrix products")
            continue
        engine, cosine = graph.compile_checked(tried, backbone, least_cosine=least_cosine[tried])
        if cosine >= least_cosine[tried] or not auto:
            break
        _logger.info("%s keeps a cosine of %.5f only, below %s", tried, cosine, least_cosine[tried])
        engine.close()
    if cached:
        header = {"columns": engine.columns, "precision": tried, "chosen": auto}
        save_entry(paths[tried], header, engine.export())
    return engine


def open_recipe(recipe: Recipe) -> OpenVinoEngine | None:
    """Return the engine of `recipe` from the cache of compiled networks, or None."""
    if recipe.engine_version != openvino_version() or recipe.precision not in processor_arithmetic().fastest_first:
        return None
    entry = load_entry(entry_path(_key(identity(recipe), recipe.precision, None)))
    return None if entry is None else _import(*entry)


@dataclass(frozen=True, slots=True)
class _Graph:
    """The whole graph in OpenVINO's own files, uint8 images in, of a fixed batch size, optimised but in fp32.

    Without a `batch_size`, it is what the processor's caches hold (`_cached_batch_size`).
    """

    xml: bytes
    weights: openvino.Tensor
    columns: tuple[tuple[str, tuple[int, ...]], ...]
    product_share: float

    @classmethod
    def of(cls, backbone: Backbone, *, batch_size: int | None) -> _Graph:
        model = _convert(backbone)
        _set_batch_size(model, backbone, batch_size or _cached_batch_size(model))
        shapes = [tuple(int(size) for size in output.shape)[1:] for output in model.outputs]
        # Operations are fused here, since marks on them (`compile`) would be lost when they are fused later.
        apply_moc_transformations(model, cf=True)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.xml"
            save_network(model, path)
            weights = np.fromfile(path.with_suffix(".bin"), dtype=np.uint8)
            columns = tuple(zip(backbone.outputs, shapes, strict=True))
            return cls(path.read_bytes(), openvino.Tensor(weights), columns, product_share(model))

    def compile_checked(
        self, precision: Precision, backbone: Backbone, *, least_cosine: float
    ) -> tuple[OpenVinoEngine, float]:
        """Return the network compiled and the lowest cosine of its rows on the check images to fp32.

        Where bf16 throughout does not keep `least_cosine`, the first convolutions stay in fp32: the channels of a first
        depthwise convolution can be nearly constant with a huge scale behind them, which turns its rounding into most
        of the error.
        """
        if precision == "fp32":
            return self.compile(precision), 1.0
        size = backbone.preprocessing
        images = check_images(size.height, size.width)
        wanted = reference_rows(backbone, images)
        for exact_convolutions in _EXACT_CONVOLUTIONS if precision == "bf16" else (0,):
            engine = self.compile(precision, exact_convolutions=exact_convolutions)
            cosine = lowest_cosine(engine.run(images), wanted)
            _logger.info("%s with %d convolutions in fp32: cosine %.6f", precision, exact_convolutions, cosine)
            if cosine >= least_cosine:
                break
        return engine, cosine

    def compile(self, precision: Precision, *, exact_convolutions: int = 0) -> OpenVinoEngine:
        """Return the network compiled, everything up to that many convolutions in fp32 whatever the precision."""
        xml = self.xml
        if exact_convolutions:
            root = ElementTree.fromstring(xml)
            seen = 0
            for layer in root.iterfind("layers/layer"):
                seen += layer.get("type") in ("Convolution", "GroupConvolution")
                if seen > exact_convolutions:
                    break
                if layer.get("type") not in ("Const", "Parameter", "Result"):
                    marks = layer.find("rt_info")
                    if marks is None:
                        marks = ElementTree.Element("rt_info")
                        layer.insert(0 if layer.find("data") is None else 1, marks)
                    ElementTree.SubElement(marks, "attribute", {"name": "precise", "version": "0"})
            xml = ElementTree.tostring(root)
        core = openvino_core()
        model = core.read_model(xml, self.weights)
        if precision == "int8-dynamic":
            quantize_products(model)
        compiled = core.compile_model(model, "CPU", plugin_settings(precision))
        return OpenVinoEngine(compiled, columns=self.columns, precision=precision, streams=processor_count())


def _convert(backbone: Backbone) -> openvino.Model:
    """Return the whole graph for one image as the front end makes it of TorchScript."""
    import torch
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    from featcache.backbone.backbone import ImageNetwork

    network = ImageNetwork(backbone)
    height, width = backbone.preprocessing.height, backbone.preprocessing.width
    example = torch.zeros(1, height, width, 3, dtype=torch.uint8)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and shapes are meant to become constants
        scripted = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
        decoder = TorchScriptPythonDecoder(scripted, example_input=example)
    front_end = FrontEndManager().load_by_framework("pytorch")
    model = front_end.convert(front_end.load(decoder))
    model.reshape({model.input(0): [1, height, width, 3]})
    return model


def _cached_batch_size(model: openvino.Model) -> int:
    """Return how many images of a one-image `model` to compute at once, a power of two up to 16.

    A layer's output is read by the next layer at once, and from memory where it is larger than the caches. The bound is
    the same on every machine, since rows may depend on it.
    """
    largest = max(
        2 * math.prod(output.shape)
        for operation in model.get_ordered_ops()
        if operation.get_type_name() != "Constant"
        for output in operation.outputs()
        if output.partial_shape.is_static
    )
    most = min(_LARGEST_BATCH_SIZE, max(1, _CACHED_BYTES // largest))
    return 1 << (int(most).bit_length() - 1)


def _set_batch_size(model: openvino.Model, backbone: Backbone, batch_size: int) -> None:
    """Reshape a one-image `model`; raise `BackboneError` where its outputs do not follow."""
    model.reshape({model.input(0): [batch_size, *model.input(0).shape[1:]]})
    if any(output.partial_shape.is_dynamic or output.shape[0] != batch_size for output in model.outputs):
        shapes = [str(output.partial_shape) for output in model.outputs]
        raise BackboneError(
            f"every output of {backbone.model_name!r} must have one row per image in OpenVINO's graph, got {shapes!r}; "
            "use engine='torch'"
        )


def plugin_settings(precision: str) -> dict[str, Any]:
    """Return the plug-in's settings: a stream of one thread for each processor, computing in `precision`."""
    count = processor_count()
    return {
        properties.hint.inference_precision: _TYPES[precision],
        properties.num_streams: count,
        properties.inference_num_threads: count,
        properties.hint.enable_cpu_pinning: False,
        properties.hint.enable_hyper_threading: True,
        properties.hint.dynamic_quantization_group_size: GROUP_SIZE if precision == "int8-dynamic" else 0,
    }


def _import(header: dict[str, Any], payload: bytes) -> OpenVinoEngine:
    compiled = openvino_core().import_model(payload, "CPU", plugin_settings(header["precision"]))
    return OpenVinoEngine(compiled, columns=header["columns"], precision=header["precision"], streams=processor_count())


def _key(network: dict[str, Any], precision: str, batch_size: int | None) -> dict[str, Any]:
    core = openvino_core()
    return {
        **network,
        "engine": "openvino",
        "version": str(openvino.get_version()),
        "processor": str(core.get_property("CPU", properties.device.full_name)),
        "capabilities": sorted(core.get_property("CPU", properties.device.capabilities)),
        "precision": precision,
        "batch_size": batch_size,
    }
