"""Which engine computes a backbone, and in which precision: the one place that knows them all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.errors import InputError
from featcache.recipe import Preprocessing, Recipe

if TYPE_CHECKING:
    from featcache.backbone.backbone import Backbone

from featcache.engines.interface import ENGINE_NAMES, PRECISIONS, Engine


def open_engine(
    network: Backbone | str | Path,
    *,
    engine: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    outputs: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    cached: bool = True,
) -> Engine:
    """Return `network` compiled by an engine.

    `network`: a `Backbone`, or the path of an ONNX file with one image input: uint8 (N, H, W, 3), or float (N, 3, H, W)
    or (N, H, W, 3), which then is normalised as `preprocessing` says. `outputs`: which of an ONNX file's outputs to
    keep, by default all. `engine`: ``auto`` takes torch where there is a CUDA device, else OpenVINO; ONNX Runtime for
    an ONNX file. `precision`: ``auto`` takes the fastest that the processor has and whose rows of the check images keep
    their cosine to fp32: ``int8-dynamic`` (OpenVINO, transformers: bf16 with INT8 products) at least 0.9993, ``bf16``
    at least 0.999. `batch_size`: the engine's own default where None. `cached`: keep the compiled network in the user's
    cache directory, so that the next start is quick.

    Raises `InputError` for an engine or precision this machine or network does not have.
    """
    if engine not in ("auto", *ENGINE_NAMES):
        raise InputError(f"engine must be 'auto' or one of {ENGINE_NAMES!r}, got {engine!r}")
    if precision not in ("auto", *PRECISIONS):
        raise InputError(f"precision must be 'auto' or one of {PRECISIONS!r}, got {precision!r}")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size!r}")
    if isinstance(network, (str, Path)):
        if engine not in ("auto", "onnxruntime"):
            raise InputError(f"an ONNX file must be run by onnxruntime, got engine={engine!r}")
        from featcache.engines._onnxruntime import open_onnx_file

        return open_onnx_file(
            Path(network), precision=precision, batch_size=batch_size, outputs=outputs, preprocessing=preprocessing
        )
    if outputs is not None or preprocessing is not None:
        raise InputError("outputs and preprocessing belong to the Backbone; they may be given for an ONNX file only")
    if engine == "auto":
        import torch

        engine = "torch" if torch.cuda.is_available() else "openvino"
    if engine == "openvino":
        from featcache.engines import _openvino

        return _openvino.open_backbone(network, precision=precision, batch_size=batch_size, cached=cached)
    if engine == "onnxruntime":
        from featcache.engines import _onnxruntime

        return _onnxruntime.open_backbone(network, precision=precision, batch_size=batch_size, cached=cached)
    from featcache.engines import _torch

    return _torch.open_backbone(network, precision=precision, batch_size=batch_size)


def open_cached_engine(recipe: Recipe) -> Engine | None:
    """Return the engine of `recipe` from the user's cache of compiled networks, or None where it is not in there.

    Neither torch nor timm is imported, nor are weights read: this is the quick start of a build that adds to a cache.
    """
    if recipe.model_digest is not None:
        return None
    if recipe.engine == "openvino":
        from featcache.engines import _openvino

        return _openvino.open_recipe(recipe)
    if recipe.engine == "onnxruntime":
        from featcache.engines import _onnxruntime

        return _onnxruntime.open_recipe(recipe)
    return None
