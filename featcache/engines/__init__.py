"""Run a backbone fast: one small interface, one file per engine.

    engine = open_engine(backbone)                 # OpenVINO on a processor, torch on a GPU
    (features,) = engine.run(images)               # (n, height, width, 3) uint8 → (n, num_features) float32

Normalisation is inside the graph and the batch has one fixed shape, the last one being padded: on one machine and
version a row is bit for bit the same whatever stands next to it, wherever it stands, in whatever order.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import numpy as np
import numpy.typing as npt

from featcache.errors import InputError
from featcache.recipe import Precision, Preprocessing, Recipe

if TYPE_CHECKING:
    from featcache.backbone import Backbone

EngineName = Literal["openvino", "onnxruntime", "torch"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8-dynamic", "int8")
Images = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]

ENGINE_NAMES: tuple[EngineName, ...] = ("openvino", "onnxruntime", "torch")


class Engine(ABC):
    """A compiled network. Threads may share it; close it, or use it as a context manager.

    `name`, `version` (major) and `precision` stand in the Recipe of what it computes. `batch_size`: images it takes at
    a time. `height`, `width`: of an image. `columns`: ``(name, shape of one row)`` of each output. `workers`: how many
    threads can be in `run` at once. `on_device`: whether they leave the processors free meanwhile (a GPU).
    """

    name: EngineName
    version: str
    precision: Precision
    batch_size: int
    height: int
    width: int
    columns: tuple[tuple[str, tuple[int, ...]], ...]
    workers: int
    on_device: bool = False

    @final
    def run(self, images: Images) -> tuple[Features, ...]:
        """Return, for each column, float32 (n, *shape) of `images` (n, height, width, 3) uint8 RGB, any n."""
        if images.dtype != np.uint8 or images.shape[1:] != (self.height, self.width, 3):
            raise InputError(
                f"images must be (n, {self.height}, {self.width}, 3) uint8, got {images.shape!r} {images.dtype}"
            )
        if len(images) == self.batch_size:
            return self._infer(np.ascontiguousarray(images))
        results = tuple(np.empty((len(images), *shape), dtype=np.float32) for _, shape in self.columns)
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            count = len(batch)
            if count < self.batch_size:
                padded = np.zeros((self.batch_size, self.height, self.width, 3), dtype=np.uint8)
                padded[:count] = batch
                batch = padded
            for result, values in zip(results, self._infer(np.ascontiguousarray(batch)), strict=True):
                result[start : start + count] = values[:count]
        return results

    @abstractmethod
    def _infer(self, batch: Images) -> tuple[Features, ...]:
        """Return the outputs, in arrays of the caller's own, of one full contiguous batch."""

    @abstractmethod
    def close(self) -> None:
        """Release the network."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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


def processor_count() -> int:
    """Return how many processors this process may use: its affinity, and the quota of its container."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            count = min(count, max(1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        pass  # no such control group: the affinity is all there is
    return count


def identity(source: Backbone | Recipe) -> dict[str, Any]:
    """Return what determines a network's graph besides engine and precision, as JSON values, for the cache's key."""
    return {
        "model": source.model if isinstance(source, Recipe) else source.model_name,
        "model_kwargs": dict(source.model_kwargs),
        "weights_sha256": source.weights_sha256,
        "outputs": list(source.outputs),
        "input": [
            source.preprocessing.height,
            source.preprocessing.width,
            list(source.preprocessing.mean),
            list(source.preprocessing.std),
        ],
    }
