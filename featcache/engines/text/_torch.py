"""torch: the engine of GPUs, and the reference on a processor."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from featcache.engines.interface import Features
from featcache.engines.precision import MIN_COSINE, lowest_cosine, refuse_precision
from featcache.engines.text.buckets import TOKENS_PER_BATCH, Buckets
from featcache.engines.text.check_texts import check_ids, reference_text_rows
from featcache.engines.text.interface import TextEngine, TokenIds
from featcache.engines.text.tracing import traced
from featcache.recipe import Precision
from featcache.system.processor import processor_has_bf16
from featcache.system.threads import one_torch_thread, processor_count

if TYPE_CHECKING:
    from featcache.backbone.text.encoder import TextBackbone

CUDA_TOKENS_PER_BATCH = 1 << 15


class TorchTextEngine(TextEngine):
    """The traced module, on the processor one thread per batch, or on the current CUDA device."""

    name = "torch"

    def __init__(self, backbone: TextBackbone, *, precision: Precision, device: str) -> None:
        self.version = torch.__version__.partition(".")[0]
        self.precision = precision
        self.columns = tuple(zip(backbone.outputs, backbone.output_shapes, strict=True))
        self.workers = processor_count() if device == "cpu" else 1
        tokens = TOKENS_PER_BATCH if device == "cpu" else CUDA_TOKENS_PER_BATCH
        self.buckets = Buckets(backbone.preprocessing.max_length, tokens)
        self.pad_id = backbone.pad_id
        self._device = device
        source = copy.deepcopy(backbone)
        if precision == "bf16":
            source = source.to(torch.bfloat16)
        self._network: Any = traced(source).to(device)

    def _infer(self, ids: TokenIds, mask: TokenIds) -> tuple[Features, ...]:
        with one_torch_thread(), torch.inference_mode():
            outputs = self._network(torch.from_numpy(ids).to(self._device), torch.from_numpy(mask).to(self._device))
        return tuple(output.float().cpu().numpy() for output in outputs)

    def _release(self) -> None:
        del self._network


def open_backbone(backbone: TextBackbone, *, precision: str, least_cosine: float = MIN_COSINE) -> TorchTextEngine:
    """Return `backbone` on the CUDA device where there is one, else on the processor.

    ``auto`` takes bf16 where the device multiplies it and the check texts keep `least_cosine` to fp32. Raises
    `InputError` for a precision that torch or the device does not have.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False) if device == "cuda" else processor_has_bf16()
    if precision in ("int8", "int8-dynamic"):
        raise refuse_precision(precision, engine="torch", why="it computes a float encoder in fp32 or bf16 only")
    if precision == "bf16" and not has_bf16:
        raise refuse_precision(precision, engine="torch", why="it has no bf16 arithmetic")
    if precision != "auto":
        return TorchTextEngine(backbone, precision="bf16" if precision == "bf16" else "fp32", device=device)
    if has_bf16:
        engine = TorchTextEngine(backbone, precision="bf16", device=device)
        ids = check_ids(backbone)
        if lowest_cosine(engine.run(ids), reference_text_rows(backbone, ids)) >= least_cosine:
            return engine
        engine.close()
    return TorchTextEngine(backbone, precision="fp32", device=device)
