"""torch: the engine of GPUs, and the reference on a processor.

On a GPU the whole graph is captured once for the fixed batch shape (a CUDA graph) in each of two slots with pinned
host buffers of their own, so that one batch travels while the other is computed.
"""

from __future__ import annotations

import copy
import logging
import queue
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from featcache.backbone.backbone import Backbone, ImageNetwork
from featcache.engines.interface import Engine, Features, Images
from featcache.engines.precision import (
    MIN_COSINE,
    check_images,
    lowest_cosine,
    reference_rows,
    refuse_precision,
)
from featcache.system.processor import processor_has_bf16
from featcache.system.threads import one_torch_thread, processor_count

DEFAULT_BATCH_SIZE = 16
DEFAULT_CUDA_BATCH_SIZE = 128
_SLOTS = 2
_WARM_UPS = 3
_logger = logging.getLogger(__name__)


class TorchEngine(Engine):
    """The module itself on the processor, channels last, one thread per call."""

    name = "torch"

    def __init__(self, backbone: Backbone, *, precision: Any, batch_size: int) -> None:
        self.version = torch.__version__.partition(".")[0]
        self.precision = precision
        self.batch_size = batch_size
        self.height, self.width = backbone.preprocessing.height, backbone.preprocessing.width
        self.columns = tuple(zip(backbone.outputs, backbone.output_shapes, strict=True))
        self.workers = processor_count()
        self._network = _prepared(backbone, torch.device("cpu"))

    def _infer(self, batch: Images) -> tuple[Features, ...]:
        with one_torch_thread(), torch.inference_mode(), _autocast("cpu", self.precision):
            outputs = self._network(torch.from_numpy(batch))
        return tuple(output.float().numpy() for output in outputs)

    def _release(self) -> None:
        del self._network


class CudaEngine(Engine):
    """The module on the current CUDA device, channels last, replayed as a CUDA graph."""

    name = "torch"
    on_device = True

    def __init__(self, backbone: Backbone, *, precision: Any, batch_size: int) -> None:
        self.version = torch.__version__.partition(".")[0]
        self.precision = precision
        self.batch_size = batch_size
        self.height, self.width = backbone.preprocessing.height, backbone.preprocessing.width
        self.columns = tuple(zip(backbone.outputs, backbone.output_shapes, strict=True))
        self.workers = _SLOTS
        self._network = _prepared(backbone, torch.device("cuda"))
        self._slots: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        for _ in range(_SLOTS):
            self._slots.put(_Slot(self._network, (batch_size, self.height, self.width, 3), precision))

    def _infer(self, batch: Images) -> tuple[Features, ...]:
        slot = self._slots.get()
        try:
            return slot.run(batch)
        finally:
            self._slots.put(slot)

    def _release(self) -> None:
        self._slots = queue.SimpleQueue()
        del self._network


class _Slot:
    """One captured graph with its input and outputs, on the device and, pinned, on the host."""

    def __init__(self, network: ImageNetwork, shape: tuple[int, ...], precision: str) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._host_input = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        with torch.cuda.stream(self._stream), torch.inference_mode(), _autocast("cuda", precision):
            self._input = torch.zeros(shape, dtype=torch.uint8, device="cuda")
            for _ in range(_WARM_UPS):  # libraries choose their kernels and workspaces before the capture
                network(self._input)
        self._stream.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with (
            torch.inference_mode(),
            # Weights cast by autocast must not be shared between two captures.
            torch.autocast("cuda", dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=False),
            torch.cuda.graph(self._graph, stream=self._stream),
        ):
            self._outputs = tuple(output.float() for output in network(self._input))
        self._host_outputs = tuple(torch.empty(output.shape, pin_memory=True) for output in self._outputs)

    def run(self, batch: Images) -> tuple[Features, ...]:
        self._host_input.numpy()[...] = batch
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            self._input.copy_(self._host_input, non_blocking=True)
            self._graph.replay()
            for host, output in zip(self._host_outputs, self._outputs, strict=True):
                host.copy_(output, non_blocking=True)
        self._stream.synchronize()
        return tuple(np.array(host.numpy()) for host in self._host_outputs)


def open_backbone(backbone: Backbone, *, precision: str, batch_size: int | None) -> Engine:
    """Return `backbone` on the CUDA device where there is one, else on the processor; raises as `open_checked`."""
    if torch.cuda.is_available():
        return open_checked(
            CudaEngine,
            backbone,
            precision=precision,
            batch_size=batch_size or DEFAULT_CUDA_BATCH_SIZE,
            has_bf16=torch.cuda.is_bf16_supported(including_emulation=False),
        )
    return open_checked(
        TorchEngine,
        backbone,
        precision=precision,
        batch_size=batch_size or DEFAULT_BATCH_SIZE,
        has_bf16=processor_has_bf16(),
    )


def open_checked(
    engine_class: Callable[..., Engine],
    backbone: Backbone,
    *,
    precision: str,
    batch_size: int,
    has_bf16: bool,
    least_cosine: float = MIN_COSINE,
) -> Engine:
    """Return `backbone` in an engine of `engine_class`; ``auto`` takes bf16 where it is and the check images agree.

    `has_bf16`: whether the device multiplies bf16 numbers. `least_cosine`: that rows in bf16 must keep to fp32.
    Raises `InputError` for a precision that torch or the device does not have.
    """
    if precision in ("int8", "int8-dynamic"):
        raise refuse_precision(precision, engine="torch", why="it computes a float backbone in fp32 or bf16 only")
    if precision == "bf16" and not has_bf16:
        raise refuse_precision(precision, engine="torch", why="it has no bf16 arithmetic")
    if precision != "auto":
        return engine_class(backbone, precision=precision, batch_size=batch_size)
    if has_bf16:
        engine = engine_class(backbone, precision="bf16", batch_size=batch_size)
        images = check_images(engine.height, engine.width)
        cosine = lowest_cosine(engine.run(images), reference_rows(backbone, images))
        if cosine >= least_cosine:
            return engine
        _logger.info("bf16 keeps a cosine of %.5f only, below %s: fp32 it is", cosine, least_cosine)
        engine.close()
    return engine_class(backbone, precision="fp32", batch_size=batch_size)


def _prepared(backbone: Backbone, device: torch.device) -> ImageNetwork:
    """Return a copy of the whole graph on `device`, its weights channels last."""
    network = ImageNetwork(copy.deepcopy(backbone)).to(device)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def _autocast(device: str, precision: str) -> Any:
    return torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16")
