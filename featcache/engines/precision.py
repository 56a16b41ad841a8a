"""Decide the compute precision: bf16 where the processor has it and the check images say that it costs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featcache.errors import InputError

if TYPE_CHECKING:
    from featcache.backbone.backbone import Backbone

MIN_COSINE = 0.999
MIN_INT8_COSINE = 0.9993  # on check images: photos of other networks are to keep MIN_COSINE


def refuse_precision(precision: str, *, engine: str, why: str) -> InputError:
    """Return the error that says that `engine` cannot compute in `precision` here."""
    return InputError(
        f"precision {precision!r} must be one this machine computes with {engine}, but {why}; "
        "work on a machine that has it, or make another cache with precision='fp32'"
    )


def check_images(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return eight images (8, height, width, 3) uint8 with edges, textures, gradients and flat areas.

    They are arithmetic on coordinates only, the same on every machine.
    """
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    channels = np.arange(3)
    images = []
    for index in range(8):
        turn = index * np.pi / 8
        along = np.cos(turn) * x + np.sin(turn) * y
        across = np.cos(turn) * y - np.sin(turn) * x
        disc = (np.hypot(x - 0.4 * np.cos(3 * turn), y - 0.4 * np.sin(3 * turn)) < 0.25 + 0.05 * index).astype(float)
        boxes = ((np.floor(along * (2 + index)) + np.floor(across * (3 + index // 2))) % 2).astype(float)
        texture = np.sin(40 * along + 9 * np.sin(7 * across)) * np.cos(23 * across + index)
        planes = [
            127
            + 60 * along * (1 if channel != 1 else -1)
            + 45 * disc * (channel - 1)
            + 30 * boxes * np.cos(channel + index)
            + 25 * texture * (channel != index % 3)
            for channel in channels
        ]
        images.append(np.clip(np.rint(np.stack(planes, axis=-1)), 0, 255))
    return np.stack(images).astype(np.uint8)


def lowest_cosine(rows: Sequence[npt.NDArray[Any]], references: Sequence[npt.NDArray[Any]]) -> float:
    """Return the lowest cosine between a row (n, ...) and its reference, over all outputs and rows."""
    lowest = 1.0
    for values, wanted in zip(rows, references, strict=True):
        a = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
        b = np.asarray(wanted, dtype=np.float64).reshape(len(wanted), -1)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        if not np.isfinite(norms).all():
            return -1.0
        # Two rows of zeros are equal; one of them alone is as far off as can be.
        both_zero = (np.linalg.norm(a, axis=1) == 0) & (np.linalg.norm(b, axis=1) == 0)
        cosines = np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny))
        lowest = min(lowest, float(cosines.min()))
    return lowest


def reference_rows(backbone: Backbone, images: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
    """Return the backbone's outputs of `images` computed by torch in fp32, one image at a time."""
    import torch

    from featcache.backbone.backbone import ImageNetwork

    network = ImageNetwork(backbone)
    with torch.inference_mode():
        batches = [network(torch.from_numpy(image[None])) for image in images]
    return [torch.cat([batch[index] for batch in batches]).numpy() for index in range(len(backbone.outputs))]
