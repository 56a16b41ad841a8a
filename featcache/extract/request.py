"""What a user asks a cache to hold, the Recipe that leads to, and the engine that computes it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from featcache.backbone.embedded import EMBEDDED_BACKBONE
from featcache.engines.registry import find_engine
from featcache.errors import InputError
from featcache.recipe import Recipe
from featcache.system.json import canonical_json

if TYPE_CHECKING:
    from featcache.engines import Engine

DEFAULT_BACKBONE = EMBEDDED_BACKBONE


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks a cache to hold; None means "as the cache has it", or the default for a new one.

    `backbone`: timm name or ``hf-hub:`` id. `weights`: a ``.safetensors`` file, ``random:SEED``, or None for the hub.
    `mean`, `std`: per channel, instead of the backbone's own. `outputs`: names of what to store. `views`: stored views
    per image, `view_seed` seeding all but the plain one. `decoder`: ``fast`` or ``pillow``. `engine`: ``openvino``,
    ``onnxruntime``, ``torch``; `precision`: ``fp32``, ``bf16``, …; `dtype`: ``float16`` or ``float32``.
    """

    backbone: str | None = None
    weights: str | None = None
    model_kwargs: Mapping[str, Any] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    outputs: tuple[str, ...] | None = None
    views: int | None = None
    view_seed: int | None = None
    decoder: str | None = None
    dct_scaling: bool | None = None
    engine: str | None = None
    precision: str | None = None
    dtype: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, a weights file as its absolute path."""
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        if self.weights is not None and not self.weights.startswith("random:"):
            values["weights"] = os.path.abspath(self.weights)
        return {name: value for name, value in values.items() if value is not None}

    def adopting(self, stored: Mapping[str, Any]) -> Request:
        """Return this request with what it leaves open taken from a cache's stored one.

        Naming another backbone leaves nothing of the stored backbone's weights and options to adopt.
        """
        mine = self.to_json()
        tied = {"weights", "model_kwargs", "mean", "std", "outputs"}
        if "backbone" in mine and mine["backbone"] != stored.get("backbone"):
            stored = {name: value for name, value in stored.items() if name not in tied}
        return Request.from_json({**stored, **mine})

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Request:
        """Return the request that `to_json` wrote."""
        tuples = {name: tuple(values[name]) for name in ("mean", "std", "outputs") if name in values}
        return cls(**{**values, **tuples})


@dataclass(frozen=True, slots=True)
class Extractor:
    """An opened engine and the Recipe of the rows it computes."""

    engine: Engine
    recipe: Recipe


class OpenExtractor(Protocol):
    """What opens the engine of a request: `open_extractor`, here or elsewhere."""

    def __call__(self, request: Request, *, adopt: Recipe | None) -> Extractor:
        """Return the engine and Recipe of `request`; `adopt`: whose engine, precision, … to keep if left open."""


def resolved_under(request: Request, recipe: Recipe) -> dict[str, Any]:
    """Return `request` and what else its Recipe depends on: package versions, the weights file's stat."""
    environment: dict[str, Any] = {"timm": importlib.metadata.version("timm")}
    package = find_engine(recipe.engine).package
    environment[package] = importlib.metadata.version(package)
    values = request.to_json()
    weights = values.get("weights")
    if weights is not None and not weights.startswith("random:"):
        try:
            status = os.stat(weights)
        except OSError:
            environment["weights_file"] = None  # the full path will say what is wrong with it
        else:
            # An edit of the same size with its mtime put back still moves the ctime.
            environment["weights_file"] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    memo: dict[str, Any] = json.loads(canonical_json({"request": values, "environment": environment}))
    return memo


def reopen_extractor(stored: Mapping[str, Any], recipe: Recipe) -> Extractor:
    """Return the engine of a cache's `recipe`, known to be what its `stored` request leads to.

    A network compiled before is opened as it was kept: that reads no weights and imports neither torch nor timm, which
    would cost more than the rows of a few new images.
    """
    from featcache.engines import open_cached_engine

    engine = open_cached_engine(recipe)
    if engine is not None:
        return Extractor(engine, recipe)
    return open_extractor(Request.from_json(stored), adopt=recipe)


def open_extractor(request: Request, *, adopt: Recipe | None = None) -> Extractor:
    """Return the engine and Recipe of what is asked for; `adopt`: whose engine, precision, … to keep if left open.

    Raises `InputError` where no backbone is named, and as `load_backbone` and `open_engine` do.
    """
    from featcache.backbone.load import load_backbone
    from featcache.engines import open_engine

    if request.backbone is None:
        raise InputError("a backbone must be named: --backbone NAME")
    backbone = load_backbone(
        request.backbone,
        weights=request.weights,
        model_kwargs=request.model_kwargs,
        mean=request.mean,
        std=request.std,
        outputs=request.outputs or ("features",),
    )
    engine = open_engine(
        backbone,
        engine=request.engine or (adopt.engine if adopt else "auto"),
        precision=request.precision or (adopt.precision if adopt else "auto"),
    )
    recipe = Recipe(
        model=backbone.model_name,
        model_kwargs=backbone.model_kwargs,
        model_digest=None,
        weights_sha256=backbone.weights_sha256,
        outputs=backbone.outputs,
        preprocessing=backbone.preprocessing,
        decoder=request.decoder or (adopt.decoder if adopt else "fast"),  # type: ignore[arg-type]
        dct_scaling=first_given(request.dct_scaling, adopt and adopt.dct_scaling, False),
        orientation="exif",
        views=first_given(request.views, adopt and adopt.views, 1),
        view_seed=first_given(request.view_seed, adopt and adopt.view_seed, 0),
        engine=engine.name,
        engine_version=engine.version,
        precision=engine.precision,
        dtype=request.dtype or (adopt.dtype if adopt else "float16"),  # type: ignore[arg-type]
        weights=backbone.weights_label,
    )
    if recipe.dct_scaling and adopt is None:
        from featcache.engines.precision import reference_rows
        from featcache.extract.dct_scaling import require_dct_scaling

        reference = partial(reference_rows, backbone)
        require_dct_scaling(engine, reference, recipe.preprocessing, decoder=recipe.decoder)
    return Extractor(engine, recipe)


def first_given(*values: Any) -> Any:
    """Return the first of `values` that is not None."""
    return next(value for value in values if value is not None)
