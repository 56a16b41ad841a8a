"""Open the engine of a request or of a cache's Recipe, whatever its rows are of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from featcache.extract.inputs.interface import Extractor
from featcache.extract.inputs.registry import IMAGE, find_input
from featcache.extract.request import Request
from featcache.recipe import Recipe
from featcache.system.json import canonical_json, parse_json


class OpenExtractor(Protocol):
    """What opens the engine of a request: `open_extractor`, here or elsewhere."""

    def __call__(self, request: Request, *, adopt: Recipe | None) -> Extractor:
        """Return the engine and Recipe of `request`; `adopt`: whose engine, precision, … to keep if left open."""


def open_extractor(request: Request, *, adopt: Recipe | None = None) -> Extractor:
    """Return the engine and Recipe of what is asked for; `adopt`: whose engine, precision, … to keep if left open.

    Raises `InputError` where no backbone is named, and as the input kind's `open_extractor`.
    """
    kind = find_input(request.input or IMAGE)
    kind.refuse_options(request.input_options or {})
    return kind.open_extractor(request, adopt=adopt)


def reopen_extractor(stored: Mapping[str, Any], recipe: Recipe) -> Extractor:
    """Return the engine of a cache's `recipe`, known to be what its `stored` request leads to.

    A network compiled before is opened as it was kept: that reads no weights and imports neither torch nor timm, which
    would cost more than the rows of a few new inputs.
    """
    engine = find_input(recipe.input).open_kept(recipe)
    if engine is not None:
        return Extractor(engine, recipe)
    return open_extractor(Request.from_json(stored), adopt=recipe)


def resolved_under(request: Request, recipe: Recipe) -> dict[str, Any]:
    """Return `request` and what else its Recipe depends on: package versions, the weights file's stat."""
    environment = find_input(recipe.input).environment(request, recipe)
    memo: dict[str, Any] = parse_json(canonical_json({"request": request.to_json(), "environment": environment}))
    return memo
