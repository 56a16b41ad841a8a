"""The interface of one device format. It knows none of the implementations.

A target turns the classifier's ONNX file (uint8 image in, logits and probabilities out) into its own files, and opens
such files in the runtime that will execute them on the device, so that what is exported is also what is measured.
Nothing here, nor in opening a file, loads torch.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.errors import DependencyError
from featcache.extract.inputs.deployed import DeployedInput
from featcache.formats.tools.environments import Installation
from featcache.heads.agreement import RELATIVE_TOLERANCE
from featcache.recipe import Preprocessing

FLOATS_FOR_INTEGERS = "float32: weights are what their integers stand for, activations are not rounded"
FLOATS_FOR_HALVES = "float32: weights are what their float16 numbers stand for"
WEIGHTS_ONLY = "weights INT8 with a scale per output, made float32 to compute with; activations are not rounded"
DYNAMIC = "weights INT8 with a scale per output; activations INT8 with a scale per row, found at run time"
HALVES = "weights float16, made float32 to compute with"
_WARM_UP = 5


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What every device file needs to know of the model beside its graph.

    Parameters
    ----------
    name
        For people, e.g. timm's model name.
    classes
        Label of each logit, in order.
    input
        What stands before the graph: how bytes become its input.
    lineage
        JSON values that say where the model came from (recipe, weights, head, compression).
    quantized
        Whether the graph holds QuantizeLinear/DequantizeLinear pairs.
    halves
        Whether its weights are numbers of half precision, to be stored so where the format can.
    dynamic
        Of a quantized graph, whether its weights alone are, so that a format that can may round the rows they are
        multiplied with at run time.
    task
        ``classification``, ``multilabel`` or ``regression``.
    unknown
        The rule for images of no known class as JSON values, None without one.

    Examples
    --------
    >>> from featcache import Preprocessing
    >>> from featcache.extract.inputs.deployed_images import DeployedImages
    >>> size = Preprocessing(224, 224, 256, "bicubic", "center", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    >>> ModelFacts("mobilenetv2_100", ("cat", "dog"), DeployedImages(size), {}, quantized=False).image_shape
    (224, 224, 3)
    """

    name: str
    classes: tuple[str, ...]
    input: DeployedInput
    lineage: Mapping[str, Any]
    quantized: bool
    halves: bool = False
    dynamic: bool = False
    task: str = "classification"
    unknown: Mapping[str, Any] | None = None

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the input; `NotImplementedError` where the inputs are of another kind."""
        if not isinstance(self.input.preprocessing, Preprocessing):
            raise NotImplementedError(f"it holds classifiers of images, this one is of {self.input.noun}s")
        return self.input.preprocessing

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, 3) of one input image; `NotImplementedError` as `preprocessing`."""
        return (self.preprocessing.height, self.preprocessing.width, 3)


@dataclass(frozen=True, slots=True)
class Converted:
    """What `Target.convert` made of one model.

    `files`: what was written, the one to open first. `tensors`: ``inputs`` and ``outputs`` by name, with dtype, layout
    and shape, and what else a reader must know, as JSON values. `numbers`: of a quantized model or one in half
    precision, for people, what the file holds or computes in where that is not the reference's. `takes_scales`: whether
    it computes a quantized model in integers with the stored scales; else in floats.
    """

    files: tuple[Path, ...]
    tensors: Mapping[str, Any]
    numbers: str | None = None
    takes_scales: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return the format's entry in ``preprocess.json``."""
        tensors = {name: self.tensors[name] for name in ("inputs", "outputs")}
        numbers = {} if self.numbers is None else {"numbers": self.numbers}
        return {**tensors, **numbers, **{key: value for key, value in self.tensors.items() if key not in tensors}}


class Runner(ABC):
    """A device file, loaded in its own runtime; use as a context manager.

    `described`: what computes, where that is more or other than the format's own runtime. `threads`: how many it
    computes with, where it cannot have the number it was opened with. `concurrent`: whether several threads may be in
    `run` at once; else it is not thread-safe.

    Examples
    --------
    >>> class Brightness(Runner):
    ...     def run(self, images):
    ...         mean = images.mean(axis=(1, 2, 3), dtype=np.float32)
    ...         return np.stack([-mean, mean], axis=1)
    ...     def close(self):
    ...         pass
    >>> with Brightness() as runner:
    ...     runner.run(np.full((1, 8, 8, 3), 3, dtype=np.uint8)).tolist()
    [[-3.0, 3.0]]
    """

    described: str | None = None
    threads: int | None = None
    concurrent: bool = False

    @abstractmethod
    def run(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return the logits (n, n_classes) float32 of `images` (n, height, width, 3) uint8 RGB, n ≥ 1.

        Of a model of texts the ids (n, length) int64, -1 behind the shorter ones.
        """

    @abstractmethod
    def close(self) -> None:
        """Release what the runtime holds."""

    def run_files(self, sources: Sequence[Callable[[], bytes]]) -> npt.NDArray[np.float32] | None:
        """Return the logits (n, n_classes) of encoded images through the format's own decoding and resizing.

        A row of NaN is an image that it cannot decode. None: it has none of its own, the bundle's is used.
        """
        return None

    def resident_bytes(self) -> int | None:
        """Return by how much the memory of the process that computes grew at most since before it opened the file.

        None: it is this process (`featcache.formats.memory` asks a fresh one), or cannot be told.
        """
        return None

    def time(self, image: npt.NDArray[Any], *, seconds: float, least: int) -> list[float]:
        """Return milliseconds of single runs of `image` (1, height, width, 3) over `seconds`, `least` of them or more.

        A runtime in another process measures there, so that the way to it does not count.
        """
        for _ in range(_WARM_UP):
            self.run(image)
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < least or time.perf_counter() < end:
            start = time.perf_counter()
            self.run(image)
            times.append((time.perf_counter() - start) * 1e3)
        return times

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Target(ABC):
    """One device format. It holds no state: what a conversion found out stands in the `Converted` that it returns.

    `name`: its word on the command line. `needs`: how to get its tools. `packages`: what pip installs into the running
    environment; `environment`: where the tools live that cannot be there. A format has one of the two, or neither where
    featcache's own dependencies do. `tolerance`: how far the logits of a float file may be from torch's, as a share of
    their spread (`featcache.heads.agreement.logit_tolerance`). `featcache.testing.formats.TargetContract` tests what
    every target must do.

    Examples
    --------
    >>> from featcache.formats import find_target
    >>> target = find_target("onnx")
    >>> target.available() is None, target.executable() is None
    (True, True)
    """

    name: str
    needs: str
    packages: tuple[str, ...] = ()
    environment: Installation | None = None
    tolerance: float = RELATIVE_TOLERANCE

    @abstractmethod
    def available(self) -> str | None:
        """Return None where this machine can convert, else the reason why not and what to install."""

    def executable(self) -> str | None:
        """Return None where this machine can also run the files, else the reason why they stay unexecuted."""
        return self.available()

    @abstractmethod
    def convert(self, onnx_path: Path, folder: Path, *, facts: ModelFacts) -> Converted:
        """Write the format's files from an ONNX file and return what they are.

        Parameters
        ----------
        onnx_path
            The classifier: ``image`` (N, height, width, 3) uint8 in, ``logits`` and ``probabilities`` out. The same
            file gives the same bytes.
        folder
            Where to write; it exists.
        facts
            What the file says of the model beside its graph.

        Raises
        ------
        DependencyError
            Where `available` gives a reason.
        VerificationError, NotImplementedError
            Where the format cannot hold this network.
        """

    @abstractmethod
    def open(self, files: Sequence[Path], *, threads: int) -> Runner:
        """Return the loaded model that `convert` wrote, computing in float32 with `threads` threads."""

    def reference_runner(self, files: Sequence[Path], *, threads: int) -> Runner | None:
        """Return the files' own program and weights in another interpreter, where this machine cannot run them.

        What it computes is compared like a runtime's; the files still count as not executed. None: there is no such.
        """
        return None

    @abstractmethod
    def version(self) -> str:
        """Return the name and version of the runtime that `open` uses."""

    def require(self) -> None:
        """Raise `DependencyError` where the target's tools are not installed."""
        reason = self.available()
        if reason is not None:
            raise DependencyError(f"format {self.name!r} needs its tools installed, got: {reason}; {self.needs}")


def numbers_of(
    facts: ModelFacts, *, integers: str | None, halves: str = FLOATS_FOR_HALVES, dynamic: str = WEIGHTS_ONLY
) -> str | None:
    """Return `Converted.numbers`: what a format says of such a model, None of one in floats.

    `integers`: with stored scales. `halves`: weights of half precision. `dynamic`: integer weights alone.
    """
    if facts.dynamic:
        return dynamic
    if facts.quantized:
        return integers
    return halves if facts.halves else None


def single_tensors(facts: ModelFacts) -> dict[str, Any]:
    """Return `classifier_tensors` for one image at a time."""
    tensors = classifier_tensors(facts)
    for entry in (*tensors["inputs"].values(), *tensors["outputs"].values()):
        entry["shape"] = [1, *entry["shape"][1:]]
    return tensors


def classifier_tensors(facts: ModelFacts) -> dict[str, Any]:
    """Return the tensors of the reference form: the kind's own in, float32 logits and probabilities out."""
    outputs = {name: {"dtype": "float32", "shape": ["N", len(facts.classes)]} for name in ("logits", "probabilities")}
    return {"inputs": facts.input.tensors(), "outputs": outputs}
