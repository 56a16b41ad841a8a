"""What is seen of an image, and how that becomes pixels: caches and students that agree in this see the same."""

from __future__ import annotations

from dataclasses import dataclass

from featcache.images.load import reduced_side
from featcache.recipe import Decoder, Preprocessing, Recipe


@dataclass(frozen=True, slots=True)
class ViewSpec:
    """Views of an image as pixels. `views`: the index of each, 0 being the plain view; `view_seed` draws the others.

    `dct_scaling`: whether the plain view of a large JPEG is decoded at a reduced scale.
    """

    preprocessing: Preprocessing
    views: tuple[int, ...]
    view_seed: int
    decoder: Decoder
    dct_scaling: bool = False

    @classmethod
    def of(cls, recipe: Recipe) -> ViewSpec:
        """Return how the rows of `recipe` see an image."""
        return cls(
            recipe.image_preprocessing, tuple(range(recipe.views)), recipe.view_seed, recipe.decoder, recipe.dct_scaling
        )

    def min_side(self, view: int) -> int | None:
        """Return the side a reduced decode must keep for view `view`; None for a full decode (as `load_image` does)."""
        return reduced_side(self.preprocessing) if self.dct_scaling and view == 0 else None
