"""The interface of an engine: images in, feature rows out. It knows none of the implementations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal, final

import numpy as np
import numpy.typing as npt

from featcache.errors import InputError
from featcache.recipe import Precision

if TYPE_CHECKING:
    pass

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
