"""Open the engine that computes a backbone: by name, or the one that suits the machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.engines.interface import PRECISIONS, Engine
from featcache.engines.registry import find_engine
from featcache.errors import InputError
from featcache.recipe import Preprocessing, Recipe

if TYPE_CHECKING:
    from featcache.backbone.backbone import Backbone


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

    Parameters
    ----------
    network : Backbone or path
        A `Backbone`, or an ONNX file with one image input: uint8 (N, H, W, 3), or float (N, 3, H, W) or (N, H, W, 3),
        which then is normalised as `preprocessing` says.
    engine : str
        ``openvino``, ``onnxruntime``, ``torch``, or one that `register_engine` added. ``auto`` takes torch where there
        is a CUDA device, else OpenVINO; ONNX Runtime for an ONNX file.
    precision : str
        ``fp32``, ``bf16``, ``int8-dynamic`` (OpenVINO, transformers: bf16 with INT8 products), or ``auto``: the fastest
        that the processor has and whose rows of the check images keep their cosine to fp32, for ``int8-dynamic`` at
        least 0.9993, for ``bf16`` 0.999.
    batch_size : int, optional
        Images computed at a time; by default the engine's own choice.
    outputs : sequence of str, optional
        Which of an ONNX file's outputs to keep, by default all.
    preprocessing : Preprocessing, optional
        Of an ONNX file with a float input, or with open sides.
    cached : bool
        Keep the compiled network in the user's cache directory, so that the next start is quick.

    Returns
    -------
    Engine
        To be closed, or used as a context manager.

    Raises
    ------
    InputError
        For an engine, precision or batch size that this machine or network does not have.
    MissingError
        Where there is no file at `network`.
    FormatError
        Where the file is no ONNX file.

    Examples
    --------
    >>> import numpy as np
    >>> from featcache import load_backbone
    >>> from featcache.engines import open_engine
    >>> backbone = load_backbone("test_resnet", weights="random:0")
    >>> with open_engine(backbone, engine="torch", precision="fp32", batch_size=2) as engine:
    ...     (rows,) = engine.run(np.zeros((3, engine.height, engine.width, 3), dtype=np.uint8))
    >>> rows.shape, rows.dtype
    ((3, 96), dtype('float32'))
    """
    if precision not in ("auto", *PRECISIONS):
        raise InputError(f"precision must be 'auto' or one of {PRECISIONS!r}, got {precision!r}")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size!r}")
    if engine != "auto":
        find_engine(engine)
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
    return find_engine(engine).open_backbone(network, precision=precision, batch_size=batch_size, cached=cached)


def open_cached_engine(recipe: Recipe) -> Engine | None:
    """Return the engine of `recipe` from the user's cache of compiled networks, or None where it is not in there.

    Neither torch nor timm is imported, nor are weights read: this is the quick start of a build that adds to a cache.
    Raises `InputError` where no engine has the name in `recipe`.
    """
    if recipe.model_digest is not None:
        return None
    open_recipe = find_engine(recipe.engine).open_recipe
    return None if open_recipe is None else open_recipe(recipe)
