"""What a model answers for encoded images in torch, through the reference preprocessing: golden samples are made of it.

The reference preprocessing is Pillow's: every device can repeat it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from featcache.errors import InputError
from featcache.images.load import load_image
from featcache.model.golden import Golden, GoldenKind, golden_patterns, golden_photos
from featcache.model.merged import MergedModel
from featcache.recipe import Decoder, Preprocessing

if TYPE_CHECKING:
    from featcache.cache import FeatureCache


def make_golden(
    model: MergedModel, kind: GoldenKind, *, cache: FeatureCache | None = None, dataset: str | None = None
) -> Golden:
    """Return golden images of `kind` with the logits of `model`, through the reference preprocessing (Pillow).

    Raises `InputError` for another kind, and for photos without a cache.
    """
    if kind not in ("photos", "synthetic"):
        raise InputError(f"--golden must be 'photos', 'synthetic' or 'none', got {kind!r}")
    if kind == "photos":
        if cache is None:
            raise InputError("golden photos must come from a cache, none was given: pass --golden synthetic")
        images = golden_photos(cache, dataset=dataset)
    else:
        images = golden_patterns(model.preprocessing.height, model.preprocessing.width)
    return Golden(kind, "torch fp32", images, logits_of_images(model, images))


def logits_of_images(model: MergedModel, images: tuple[bytes, ...]) -> npt.NDArray[np.float32]:
    """Return the logits (n, n_classes) float32 of encoded images, through the reference preprocessing (Pillow)."""
    pixels = load_pixels(images, model.preprocessing)
    with torch.inference_mode():
        return np.asarray(model(torch.from_numpy(pixels))[0].numpy())


def load_pixels(
    images: tuple[bytes, ...], preprocessing: Preprocessing, *, decoder: Decoder = "pillow"
) -> npt.NDArray[np.uint8]:
    """Return encoded images as the model's input (n, height, width, 3) uint8."""
    return np.stack([load_image(data, preprocessing, decoder=decoder) for data in images])
