"""Engines run a backbone fast: one small interface, one file per runtime.

An engine takes uint8 images and returns float32 outputs; normalisation is part of its graph. Its batch has a fixed
shape, so that a row is bit-equal whatever its neighbours in the batch were.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from featcache.errors import InputError
from featcache.recipe import Precision

if TYPE_CHECKING:
    from featcache.backbone import Backbone

DEFAULT_BATCH_SIZE = 32
ENGINES = ("openvino", "onnxruntime", "torch")


class Engine(ABC):
    """A loaded network. `name`, `version` (major) and `precision` stand in the Recipe; not thread-safe.

    `batch_size`: rows of one run. `columns`: (output name, shape of one row) in the order `run` returns them.
    """

    name: str
    version: str
    precision: Precision
    batch_size: int
    columns: tuple[tuple[str, tuple[int, ...]], ...]

    @abstractmethod
    def run(self, batch: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], ...]:
        """Return one float32 array (batch_size, *shape) per output of `batch` (batch_size, height, width, 3) uint8.

        The arrays are the caller's until the next run.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the network."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_engine(
    network: Backbone | str | Path,
    *,
    engine: str = "auto",
    precision: str = "auto",
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> Engine:
    """Return `network` loaded in an engine.

    `network`: a `Backbone`, or an ONNX file whose input ``image`` is uint8 (N, height, width, 3). `engine`: ``auto``
    takes torch where there is a CUDA device, else OpenVINO (ONNX Runtime for an ONNX file). `precision`: ``auto`` takes
    bf16 where the processor computes in it and check images show a row cosine of at least 0.999 to fp32.

    Raises `InputError` for an unknown engine or a precision this machine cannot run.
    """
    if engine not in ("auto", *ENGINES):
        raise InputError(f"engine must be one of {('auto', *ENGINES)!r}, got {engine!r}")
    if isinstance(network, str | Path):
        from featcache.engines._onnxruntime import OnnxRuntimeEngine

        if engine not in ("auto", "onnxruntime"):
            raise InputError(f"an ONNX file is run by 'onnxruntime', got engine {engine!r}")
        return OnnxRuntimeEngine.from_file(Path(network), precision=precision, batch_size=batch_size)
    if engine == "auto":
        import torch

        engine = "torch" if torch.cuda.is_available() else "openvino"
    if engine == "openvino":
        from featcache.engines._openvino import OpenVinoEngine

        return OpenVinoEngine(network, precision=precision, batch_size=batch_size)
    if engine == "onnxruntime":
        from featcache.engines._onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine.from_backbone(network, precision=precision, batch_size=batch_size)
    from featcache.engines._torch import TorchEngine

    return TorchEngine(network, precision=precision, batch_size=batch_size)
