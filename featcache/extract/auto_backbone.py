"""What ``--backbone auto`` means for a build: a choice for a cache that is made, no change for one that is there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from featcache.backbone.choice import AUTO_BACKBONE, choose_backbone, kept_backbone
from featcache.cache import FeatureCache
from featcache.errors import InputError
from featcache.extract.inputs.registry import IMAGE
from featcache.extract.request import Request


@dataclass(frozen=True, slots=True)
class AutoBackbone:
    """Turns a request for ``auto`` into one for a backbone. `download`: the hub may be asked; `say`: gets the lines."""

    download: bool
    say: Callable[[str], None]

    def check(self, request: Request, *, elsewhere: bool, extractor: bool) -> None:
        """Refuse what ``auto`` cannot be asked with.

        `elsewhere`: whether another machine computes the rows; `extractor`: whether an engine was given. Raises
        `InputError`.
        """
        if request.backbone != AUTO_BACKBONE:
            if self.download:
                raise InputError(
                    f"--download must go with --backbone auto, got {request.backbone or 'no backbone'!r}: name auto, "
                    "or leave --download out (a backbone that is named is fetched without it)"
                )
            return
        tied = {name: getattr(request, name) for name in ("weights", "model_kwargs", "mean", "std")}
        if given := [name for name, value in tied.items() if value is not None]:
            raise InputError(
                f"{', '.join(given)} must go with a backbone that is named, got --backbone auto: name the backbone"
            )
        if extractor:
            raise InputError("--backbone auto must be left out where an extractor is given")
        if elsewhere:
            raise InputError(
                "--backbone auto takes what is at hand on this machine, others compute with --ray: name the backbone"
            )

    def for_new(self, request: Request) -> Request:
        """Return the request of a cache to be made; raises `InputError` for inputs other than images."""
        if request.backbone != AUTO_BACKBONE:
            return request
        if request.input not in (None, IMAGE):
            raise InputError(
                f"--backbone auto must be asked for images, got inputs of kind {request.input!r}, for which nothing "
                "was measured: name one ('featcache backbones' lists what is at hand)"
            )
        choice = choose_backbone(download=self.download, note=self.say)
        self.say(choice.line)
        return dataclasses.replace(request, backbone=choice.backbone.name)

    def for_existing(self, request: Request, cache: FeatureCache) -> Request:
        """Return the request that adopts what `cache` has."""
        if request.backbone != AUTO_BACKBONE:
            return request
        name = cache.request.get("backbone") or cache.recipe.model
        self.say(kept_backbone(name, weights=cache.request.get("weights"), note=self.say))
        return dataclasses.replace(request, backbone=None)
