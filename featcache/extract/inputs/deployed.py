"""How a deployed model gets its input from bytes: what travels with it, and needs neither torch nor a cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from featcache.recipe import Decoder, InputPreprocessing
from featcache.system.sources.batches import PreparedBatch, Source, prepared_batches


class DeployedInput(ABC):
    """What stands before a deployed network.

    Parameters
    ----------
    tensor : str
        Name of the network's one input.
    noun : str
        What one input is called.
    pipeline : str
        What such a classifier is called on the model hub.
    suffix : str
        Of the files of golden samples.
    usual_size : int
        Numbers in one prepared input of a usual size, by which it is counted how much several of them say.
    preprocessing : InputPreprocessing
        The kind's part of the Recipe.
    assets : mapping
        Name → bytes of the files that it needs beside the network.
    lengths : tuple of int
        Of inputs of an open length, those for a format that has no open ones, the shortest first; none of images.
    recipe_changes : mapping
        What its rows' Recipe says otherwise than that of a cache, which may read inputs more quickly.
    """

    tensor: ClassVar[str]
    noun: ClassVar[str]
    pipeline: ClassVar[str]
    suffix: ClassVar[str]
    usual_size: ClassVar[int]
    preprocessing: InputPreprocessing
    assets: Mapping[str, bytes] = {}
    lengths: tuple[int, ...] = ()
    recipe_changes: ClassVar[Mapping[str, Any]] = {}

    @abstractmethod
    def prepare(self, data: bytes, *, decoder: Decoder | None = None) -> npt.NDArray[Any]:
        """Return an input's bytes as the network takes it, without a batch; `SampleError` for bytes that are none.

        `decoder`: that of a cache's rows, where these are to be compared with, instead of the reference.
        """

    def stack(self, arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """Return what `prepare` gave of several inputs as one batch."""
        return np.stack(arrays)

    def together(self, arrays: Sequence[npt.NDArray[Any]]) -> int:
        """Return how many of the first of `arrays`, one at least, make a batch that is worth it: all of one shape."""
        return len(arrays)

    def batches(self, sources: Sequence[Source], *, failures: dict[int, str]) -> Iterator[PreparedBatch]:
        """Yield all of `sources` prepared, in batches as they suit the network; as `prepared_batches`."""
        return prepared_batches(sources, self.prepare, self.stack, failures=failures)

    @abstractmethod
    def example(self) -> npt.NDArray[Any]:
        """Return a batch of one made-up input, of a usual size, the same one every time."""

    @abstractmethod
    def synthetic(self, count: int) -> tuple[bytes, ...]:
        """Return the bytes of made-up inputs, where real ones are private; the same ones every time."""

    @abstractmethod
    def golden(self, data: bytes) -> bytes:
        """Return the bytes by which a real input travels as a golden sample; `SampleError` for bytes that are none."""

    @abstractmethod
    def tensors(self) -> dict[str, Any]:
        """Return the network's input by its name, JSON values: dtype, layout and shape, ``N`` being open."""

    @abstractmethod
    def document(self) -> dict[str, Any]:
        """Return what ``preprocess.json`` says of the way from bytes to the input, ``steps`` in words among it."""

    @abstractmethod
    def described(self) -> str:
        """Return the input in a line for people."""
