"""Open the engine that computes a text encoder: by name, or the one that suits the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featcache.engines.interface import PRECISIONS
from featcache.engines.text.interface import TextEngine
from featcache.errors import InputError

if TYPE_CHECKING:
    from featcache.backbone.text.encoder import TextBackbone

TEXT_ENGINES = ("openvino", "onnxruntime", "torch")


def open_text_engine(backbone: TextBackbone, *, engine: str = "auto", precision: str = "auto") -> TextEngine:
    """Return a text encoder compiled by an engine.

    Parameters
    ----------
    backbone : TextBackbone
        See `featcache.backbone.text.load.load_text_backbone`.
    engine : {"auto", "openvino", "onnxruntime", "torch"}
        ``auto`` takes torch where there is a CUDA device, else OpenVINO.
    precision : str
        ``fp32``, ``bf16``, ``int8-dynamic`` (OpenVINO: bf16 with INT8 products), or ``auto``: the fastest that the
        processor has and whose rows of check texts keep their cosine to fp32, as for images.

    Returns
    -------
    TextEngine
        To be closed, or used as a context manager.

    Raises
    ------
    InputError
        For an engine or precision that there is not here.
    """
    if precision not in ("auto", *PRECISIONS):
        raise InputError(f"precision must be 'auto' or one of {PRECISIONS!r}, got {precision!r}")
    if engine == "auto":
        import torch

        engine = "torch" if torch.cuda.is_available() else "openvino"
    if engine == "openvino":
        from featcache.engines.text import _openvino

        return _openvino.open_backbone(backbone, precision=precision)
    if engine == "onnxruntime":
        from featcache.engines.text import _onnxruntime

        return _onnxruntime.open_backbone(backbone, precision=precision)
    if engine == "torch":
        from featcache.engines.text import _torch

        return _torch.open_backbone(backbone, precision=precision)
    raise InputError(f"engine must be 'auto' or one of {TEXT_ENGINES!r}, got {engine!r}")
