"""The interface of an engine: inputs in, feature rows out. It knows none of the implementations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self, final

import numpy as np
import numpy.typing as npt

from featcache.errors import InputError
from featcache.recipe import Precision

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8-dynamic", "int8")
Images = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]


class CompiledNetwork(ABC):
    """What every engine is, whatever it takes. Threads may share it; close it, or use it as a context manager.

    `name`, `version` (major) and `precision` stand in the Recipe of what it computes. `columns`: ``(name, shape of one
    row)`` of each output. `workers`: how many threads can be in `run` at once. `on_device`: whether they leave the
    processors free meanwhile (a GPU).
    """

    name: str
    version: str
    precision: Precision
    columns: tuple[tuple[str, tuple[int, ...]], ...]
    workers: int
    on_device: bool = False
    _closed: bool = False

    def _require_open(self) -> None:
        """Raise `InputError` once the engine is closed."""
        if self._closed:
            raise InputError(f"an engine must be open to run, this one ({self.name!r}) was closed: open it again")

    @final
    def close(self) -> None:
        """Release the network; nothing can be run any more. Closing again does nothing."""
        if not self._closed:
            self._closed = True
            self._release()

    @abstractmethod
    def _release(self) -> None:
        """Let go of the network; called once, with no thread in `run`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Engine(CompiledNetwork):
    """A `CompiledNetwork` of images, or of other arrays of one shape.

    `batch_size`: images it takes at a time. `height`, `width`: of an image. An engine of other arrays has an
    `input_shape` and `input_dtype` of its own instead.

    An implementation sets these, computes one full batch in `_infer`, whose rows must not depend on each other, and
    lets go of the network in `_release`. `featcache.testing.engines.EngineContract` tests the rest.

    Examples
    --------
    >>> import numpy as np
    >>> from featcache.engines import Engine
    >>> class MeanColour(Engine):
    ...     name, version, precision, batch_size = "mean", "1", "fp32", 4
    ...     height, width, columns, workers = 8, 8, (("features", (3,)),), 1
    ...     def _infer(self, batch):
    ...         return (batch.mean(axis=(1, 2), dtype=np.float32),)
    ...     def _release(self):
    ...         pass
    >>> with MeanColour() as engine:
    ...     (rows,) = engine.run(np.full((6, 8, 8, 3), 7, dtype=np.uint8))
    >>> rows.shape, float(rows[5, 2])
    ((6, 3), 7.0)
    """

    batch_size: int
    height: int
    width: int
    input_dtype: npt.DTypeLike = np.uint8

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return (self.height, self.width, 3)

    @final
    def run(self, images: npt.NDArray[Any]) -> tuple[Features, ...]:
        """Return, for each column, the rows of `images`.

        Parameters
        ----------
        images : (n, height, width, 3) uint8
            RGB, or arrays of the engine's own shape, of any number n; they are computed `batch_size` at a time, the
            last batch padded.

        Returns
        -------
        tuple of (n, *shape) float32
            One array of the caller's own per column. A row is the same bits whatever its neighbours, order and batch.

        Raises
        ------
        InputError
            For images of another shape or type, and once the engine is closed.
        """
        self._require_open()
        shape, dtype = self.input_shape, np.dtype(self.input_dtype)
        if images.dtype != dtype or images.shape[1:] != shape:
            wanted = ", ".join(map(str, shape))
            raise InputError(f"images must be (n, {wanted}) {dtype}, got {images.shape!r} {images.dtype}")
        if len(images) == self.batch_size:
            return self._infer(np.ascontiguousarray(images))
        results = tuple(np.empty((len(images), *row), dtype=np.float32) for _, row in self.columns)
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            count = len(batch)
            if count < self.batch_size:
                padded = np.zeros((self.batch_size, *shape), dtype=dtype)
                padded[:count] = batch
                batch = padded
            for result, values in zip(results, self._infer(np.ascontiguousarray(batch)), strict=True):
                result[start : start + count] = values[:count]
        return results

    @abstractmethod
    def _infer(self, batch: Images) -> tuple[Features, ...]:
        """Return the outputs, in arrays of the caller's own, of one full contiguous batch."""
