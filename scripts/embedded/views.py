"""Views of packed photos: crops that a teacher has answered, and what a student's copy of them is changed by.

A crop is four numbers, so that the same one can be shown to the teachers large and to the student small. Everything
runs on whole batches, on the processor or a GPU.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional


def crop_boxes(photos: int, views: int, seed: int, *, least: float = 0.35) -> np.ndarray:
    """Return (views, photos, 4) float32 boxes: centre x, centre y, width and height, in shares of the photo.

    View 0 is the whole photo; the others cover a share of its area drawn from [`least`, 1], 3:4 to 4:3 (Szegedy et al.
    2015, arXiv 1409.4842).
    """
    draw = np.random.default_rng(seed)
    area = draw.uniform(least, 1.0, (views, photos))
    ratio = np.exp(draw.uniform(np.log(3 / 4), np.log(4 / 3), (views, photos)))
    width, height = np.minimum(np.sqrt(area * ratio), 1.0), np.minimum(np.sqrt(area / ratio), 1.0)
    x, y = (draw.uniform(size / 2, 1 - size / 2) for size in (width, height))
    boxes = np.stack([x, y, width, height], axis=-1).astype(np.float32)
    boxes[0] = (0.5, 0.5, 1.0, 1.0)
    return boxes


def cut(pixels: torch.Tensor, boxes: torch.Tensor, side: int, *, mirrored: torch.Tensor | None = None) -> torch.Tensor:
    """Return the boxes of photos as (n, 3, side, side) float32 in [-1, 1], channels last in memory.

    `pixels`: (n, height, width, 3) uint8. `mirrored`: (n,) bool. Bilinear: the photos are smaller than the views.
    """
    images = pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
    x, y, width, height = boxes.unbind(1)
    if mirrored is not None:
        width = torch.where(mirrored, -width, width)
    zero = torch.zeros_like(x)
    moves = torch.stack([width, zero, 2 * x - 1, zero, height, 2 * y - 1], dim=1).view(-1, 2, 3)
    grid = functional.affine_grid(moves, [len(images), 3, side, side], align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def recolour(images: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Return the images with brightness, contrast and saturation scaled by up to 1 ± `strength` each, in [-1, 1]."""
    scale = torch.rand(3, len(images), 1, 1, 1, generator=generator).mul_(2).sub_(1).mul_(strength).add_(1)
    brightness, contrast, saturation = scale.to(images.device)
    images = (images + 1) * brightness - 1
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * saturation
    middle = images.mean((1, 2, 3), keepdim=True)
    return (middle + (images - middle) * contrast).clamp_(-1, 1)


def cutmix(images: torch.Tensor, share: float, generator: torch.Generator) -> tuple[torch.Tensor, float]:
    """Return a batch each of whose images has a rectangle of the one after it, and the share that is its own.

    Yun et al. 2019, arXiv 1905.04899; one rectangle a batch, for `share` of the batches, else the images and 1.
    """
    if torch.rand((), generator=generator) >= share:
        return images, 1.0
    side = images.shape[-1]
    cover = torch.rand((), generator=generator).item() ** 0.5
    length = max(1, min(side - 1, round(side * cover)))
    top, left = torch.randint(0, side - length + 1, (2,), generator=generator).tolist()
    mixed = images.clone()
    mixed[..., top : top + length, left : left + length] = images.roll(-1, 0)[
        ..., top : top + length, left : left + length
    ]
    return mixed, 1.0 - (length / side) ** 2
