"""What a model answers for encoded inputs in torch, by the reference preprocessing: golden samples are made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from featcache.errors import InputError
from featcache.images.load import load_image
from featcache.model.golden import GOLDEN_COUNT, Golden, GoldenKind, golden_inputs
from featcache.model.merged import MergedModel
from featcache.recipe import Decoder, Preprocessing

if TYPE_CHECKING:
    from featcache.cache import FeatureCache


def make_golden(
    model: MergedModel, kind: GoldenKind, *, cache: FeatureCache | None = None, dataset: str | None = None
) -> Golden:
    """Return golden samples of `kind` with the logits of `model`, through the reference preprocessing.

    Raises `InputError` for another kind, and for photos (or texts) of a data set without a cache.
    """
    if kind not in ("photos", "synthetic"):
        raise InputError(f"--golden must be 'photos', 'synthetic' or 'none', got {kind!r}")
    deployed = model.input
    if kind == "photos":
        if cache is None:
            raise InputError("golden photos must come from a cache, none was given: pass --golden synthetic")
        samples = golden_inputs(cache, deployed, dataset=dataset)
    else:
        samples = deployed.synthetic(GOLDEN_COUNT)
    return Golden(kind, "torch fp32", samples, logits_of_images(model, samples), deployed.suffix)


def logits_of_images(model: MergedModel, samples: tuple[bytes, ...]) -> npt.NDArray[np.float32]:
    """Return the logits (n, n_classes) float32 of encoded inputs, through the reference preprocessing."""
    deployed = model.input
    batch: npt.NDArray[Any] = deployed.stack([deployed.prepare(data) for data in samples])
    with torch.inference_mode():
        return np.asarray(model(torch.from_numpy(batch))[0].numpy())


def load_pixels(
    images: tuple[bytes, ...], preprocessing: Preprocessing, *, decoder: Decoder = "pillow"
) -> npt.NDArray[np.uint8]:
    """Return encoded images as the model's input (n, height, width, 3) uint8."""
    return np.stack([load_image(data, preprocessing, decoder=decoder) for data in images])
