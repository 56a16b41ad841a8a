"""The interface of an input kind: from where inputs lie to what an engine takes. It knows none of the kinds.

Bytes are read in one way whatever they are (`featcache.system.sources`), and are known by their sha256. A kind says
what else there is to know: which places hold it, how its bytes become what a network takes, which engine computes that.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import numpy.typing as npt

from featcache.datasets.listing import Listing, Task, printable
from featcache.engines.interface import CompiledNetwork, Engine, Features
from featcache.errors import InputError
from featcache.extract.computed import ComputedRows, StageClock
from featcache.extract.inputs.deployed import DeployedInput
from featcache.extract.request import Request
from featcache.images.read import ImageFile
from featcache.recipe import InputPreprocessing, Recipe
from featcache.system.sources.batches import Source

_LARGEST_FLOAT16 = 65504.0


@dataclass(frozen=True, slots=True)
class Extractor:
    """An opened engine and the Recipe of the rows it computes."""

    engine: CompiledNetwork
    recipe: Recipe


class Loader(ABC):
    """The inputs of one thread on their way to the engines of several extractors, by number."""

    room: int = 1
    """How many more inputs may be loaded before `ready` is asked."""

    @abstractmethod
    def load(self, data: bytes, digest: bytes, numbers: Sequence[int], clock: StageClock) -> None:
        """Take an input's bytes in, for the extractors `numbers`; `SampleError` where they are none, which is recorded.

        `clock`: stopped as ``decode`` and ``resize`` once these are done.
        """

    @abstractmethod
    def ready(self) -> Iterator[ComputedRows]:
        """Compute what has come together so far that is worth computing, and yield it."""

    @abstractmethod
    def rest(self) -> Iterator[ComputedRows]:
        """Compute all that is left."""


class Input(ABC):
    """A kind of input. An implementation has no state; `featcache.extract.inputs.register_input` adds one.

    Parameters
    ----------
    name : str
        As in Recipes and after ``--input``: that of the kind's `InputPreprocessing`.
    noun : str
        What one is called, in the bars of commands.
    scan_options, recipe_options : tuple of str
        Names of the ``input_options`` that `scan` and `open_extractor` read; all others are refused.
    default_backbone : str or None
        What a new cache takes where none is named.
    shown : {"picture", "text"} or None
        What `show` gives: a JPEG, a text in UTF-8, or nothing that a person could label by looking at it.
    decodes_apart : bool
        Whether tasks of their own decode for actors that have a GPU, in a cluster.

    Examples
    --------
    `tests/extract/test_other_input.py` builds, trains and evaluates on rows of numbers by a kind of its own.
    """

    name: ClassVar[str]
    noun: ClassVar[str]
    scan_options: ClassVar[tuple[str, ...]] = ()
    recipe_options: ClassVar[tuple[str, ...]] = ()
    default_backbone: ClassVar[str | None] = None
    shown: ClassVar[Literal["picture", "text"] | None] = None
    decodes_apart: ClassVar[bool] = False

    @abstractmethod
    def recognizes(self, source: str) -> bool:
        """Return whether the place `source`, a path or URL, holds inputs of this kind."""

    @abstractmethod
    def scan(
        self,
        source: str | os.PathLike[str],
        *,
        task: Task | None = None,
        splits: bool = True,
        known_classes: Collection[str] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Listing:
        """Return the listing, of this kind, of what is at `source`, as `featcache.datasets.scan.scan` for images."""

    def load_backbone(self, request: Request, *, outputs: Sequence[str]) -> Any:
        """Return the frozen module of what is asked for, with these `outputs`, to be merged with a head.

        Raises `InputError` for a kind whose backbones stay where they are.
        """
        raise InputError(f"models of the input kind {self.name!r} must stay with their cache: it says no way to merge")

    @abstractmethod
    def open_extractor(self, request: Request, *, adopt: Recipe | None) -> Extractor:
        """Return engine and Recipe of what is asked for; `adopt`: whose settings to keep where they are left open."""

    def extractor_of_module(self, backbone: Any, recipe: Recipe) -> Extractor:
        """Return what computes the rows of a backbone, changed or not, that is here as a module; `recipe`: its own.

        Raises `InputError` as `load_backbone`.
        """
        raise InputError(f"models of the input kind {self.name!r} must stay with their cache: it says no way to merge")

    def extractor_of_graph(self, path: Path, recipe: Recipe, deployed: DeployedInput) -> Extractor:
        """Return what computes the rows of an ONNX file with integers in it, by ONNX Runtime.

        `recipe`: the backbone's; that of the extractor says who computes. Raises `InputError` as `load_backbone`.
        """
        raise InputError(f"models of the input kind {self.name!r} must stay with their cache: it says no way to merge")

    def open_kept(self, recipe: Recipe) -> CompiledNetwork | None:
        """Return the engine of `recipe` where its compiled network is kept, without the backbone's weights."""
        return None

    def environment(self, request: Request, recipe: Recipe) -> dict[str, Any]:
        """Return what else than the request a Recipe depends on, as JSON values: versions of packages, files' stats."""
        return {}

    def decode(self, data: bytes, recipe: Recipe) -> npt.NDArray[Any]:
        """Return what an engine of one shape takes of an input's bytes.

        Raises `SampleError` for bytes that are none, `NotImplementedError` in a kind that has a `loader` of its own.
        """
        raise NotImplementedError("a kind must have either decode or a loader of its own")

    def loader(self, extractors: Sequence[Extractor], *, burst: int) -> Loader:
        """Return a new loader for one thread; `burst`: inputs computed in one go, at least."""
        return ArrayLoader(self, extractors, burst=burst)

    def prepared_bytes(self, recipes: Sequence[Recipe]) -> int:
        """Return what one input takes as the networks of all `recipes` are given it."""
        return 4096 * len(recipes)

    def named(
        self, inputs: str | os.PathLike[str], options: Mapping[str, Any] | None = None
    ) -> list[tuple[Source, str]]:
        """Return what reads each of `inputs`, a place or whatever else `predict` may be given, and what it is called.

        Raises as `scan`.
        """
        listing = self.scan(inputs, splits=False, options=self.chosen(options, self.scan_options))
        return [(ImageFile(listing.absolute(index)), printable(path)) for index, path in enumerate(listing.paths)]

    def deployed(self, preprocessing: InputPreprocessing, read: Callable[[str], bytes]) -> DeployedInput:
        """Return what stands before a deployed network; `read` gives the bytes of the assets that travel with it.

        Raises `InputError` for a kind whose models stay where they were trained.
        """
        raise InputError(f"models of the input kind {self.name!r} must stay with their cache: it says no way to deploy")

    def show(self, data: bytes, *, side: int) -> tuple[str, bytes]:
        """Return media type and bytes of what a person is shown: a text, or a picture of up to `side` pixels."""
        return "application/octet-stream", data

    def refuse_options(self, options: Mapping[str, Any]) -> None:
        """Raise `InputError` for options that this kind does not have."""
        known = (*self.scan_options, *self.recipe_options)
        odd = [name for name, value in options.items() if name not in known and value is not None]
        if odd:
            having = f"has {', '.join(known)}" if known else "has none"
            raise InputError(f"options of the input kind {self.name!r} must be its own, got {odd[0]!r}: it {having}")

    def chosen(self, options: Mapping[str, Any] | None, names: Sequence[str]) -> dict[str, Any]:
        """Return those of `options` that are given and called one of `names`."""
        return {name: value for name, value in (options or {}).items() if name in names and value is not None}


class ArrayLoader(Loader):
    """Inputs that `Input.decode` turns into arrays of one shape, for an `Engine`, in whole batches."""

    def __init__(self, kind: Input, extractors: Sequence[Extractor], *, burst: int) -> None:
        self._kind, self._extractors = kind, extractors
        self._arrays: list[list[npt.NDArray[Any]]] = [[] for _ in extractors]
        self._keys: list[list[bytes]] = [[] for _ in extractors]
        sizes = [cast("Engine", extractor.engine).batch_size for extractor in extractors]
        self._capacities = [-(-burst // size) * size for size in sizes]
        self.room = min(self._capacities)

    def load(self, data: bytes, digest: bytes, numbers: Sequence[int], clock: StageClock) -> None:
        """Decode the input for each extractor."""
        arrays = [self._kind.decode(data, self._extractors[number].recipe) for number in numbers]
        clock.stop("decode")
        for number, array in zip(numbers, arrays, strict=True):
            self._arrays[number].append(array)
            self._keys[number].append(digest)

    def ready(self) -> Iterator[ComputedRows]:
        """Compute what is full."""
        for number, capacity in enumerate(self._capacities):
            if len(self._keys[number]) >= capacity:
                yield self._compute(number)
        self.room = min(capacity - len(keys) for capacity, keys in zip(self._capacities, self._keys, strict=True))

    def rest(self) -> Iterator[ComputedRows]:
        """Compute the batches that are partly full."""
        for number, keys in enumerate(self._keys):
            if keys:
                yield self._compute(number)

    def _compute(self, number: int) -> ComputedRows:
        extractor, arrays, keys = self._extractors[number], self._arrays[number], self._keys[number]
        values = cast("Engine", extractor.engine).run(np.stack(arrays))
        rows = ComputedRows(number, key_rows(keys), columns_of(extractor, values))
        self._arrays[number], self._keys[number] = [], []
        return rows


def precision_here(recipe: Recipe) -> str:
    """Return the precision to compute a changed network in: floats where the recipe says so, else what suits it here.

    Another network, or another machine, may not have the fast precision that the cache was computed in.
    """
    return "fp32" if recipe.precision == "fp32" else "auto"


def computed_by(recipe: Recipe, engine: CompiledNetwork) -> Recipe:
    """Return `recipe` of rows that `engine` computes."""
    return replace(recipe, engine=engine.name, engine_version=engine.version, precision=engine.precision)


def key_rows(digests: Sequence[bytes]) -> npt.NDArray[np.uint8]:
    """Return digests as keys (n, 32)."""
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(len(digests), 32)


def columns_of(extractor: Extractor, values: Sequence[Features]) -> dict[str, npt.NDArray[Any]]:
    """Return, by the name of each column, the rows of `values`, those of all views of an input one after another.

    Raises `InputError` for a feature that is not finite, or beyond float16.
    """
    from featcache.cache.cache import column_name

    recipe = extractor.recipe
    columns = {}
    for (name, shape), outputs in zip(extractor.engine.columns, values, strict=True):
        rows = outputs.reshape(-1, recipe.views, *shape)
        _check_range(name, rows, recipe)
        for view in range(recipe.views):
            columns[column_name(name, view)] = rows[:, view].astype(recipe.dtype)
    return columns


def _check_range(name: str, rows: Features, recipe: Recipe) -> None:
    largest = float(np.abs(rows).max())  # NaN where any is
    if not math.isfinite(largest):
        raise InputError(
            f"output {name!r} must be finite, {recipe.model!r} with weights {recipe.weights!r} gives {largest}: "
            "check the weights, or compute with precision='fp32'"
        )
    if recipe.dtype == "float16" and largest > _LARGEST_FLOAT16:
        raise InputError(
            f"output {name!r} must fit into float16 (up to {_LARGEST_FLOAT16:g}), got {largest:g}; "
            "build another cache with --dtype float32"
        )
