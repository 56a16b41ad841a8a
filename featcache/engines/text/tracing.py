"""An encoder as TorchScript with batch and length open: the form that every engine is made from."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from featcache.backbone.text.encoder import TextBackbone


def example_inputs(backbone: TextBackbone) -> tuple[Tensor, Tensor]:
    """Return ids and mask of two short texts, one of them padded: no shape in them may become a constant."""
    ids = torch.full((2, 7), backbone.pad_id)
    ids[0, :], ids[1, :3] = torch.arange(1, 8), torch.arange(2, 5)
    mask = torch.tensor([[1] * 7, [1] * 3 + [0] * 4])
    return ids.clamp(max=int(backbone.network.config.vocab_size) - 1), mask  # type: ignore[union-attr, arg-type]


def traced(backbone: TextBackbone) -> Any:
    """Return the encoder traced; the mask is part of the graph even where nothing is padded.

    transformers leaves a mask of ones out when it runs as Python: the same text would then have other bits beside a
    shorter one.
    """
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; what becomes a constant is tested
        return torch.jit.trace(backbone, example_inputs(backbone), check_trace=False)  # type: ignore[no-untyped-call]
