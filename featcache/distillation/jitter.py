"""Changes of colour and sharpness on the student's side, each image its own: functions of a seeded generator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def jitter(images: Tensor, strength: float, *, scale: Tensor, offset: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (b, 3, h, w) of 0 to 255 normalised, with sharpness, contrast, brightness and side drawn for each.

    Sharpness x + s·(x − blur(x)) with s in [−1, 3]·strength, for every second image: photos scaled down are sharp,
    small ones scaled up are soft, and the student is to read both alike. Half of the images are mirrored.
    """
    b = len(images)
    drawn = torch.rand(4, b, 1, 1, 1, generator=generator).to(images.device)
    mean = images[:, :, ::4, ::4].mean(dim=(1, 2, 3), keepdim=True)
    contrast = 1 + (2 * drawn[1] - 1) * strength
    brightness = (2 * drawn[2] - 1) * strength * 100
    half = b // 2
    sharpness = 1 + (drawn[0, :half] * 4 - 1) * strength
    blurred = functional.avg_pool2d(images[:half], 3, stride=1, padding=1, count_include_pad=False)
    images = torch.cat([torch.lerp(blurred, images[:half], sharpness), images[half:]])
    images = torch.addcmul((mean * (1 - contrast) + brightness) * scale - offset, images, contrast * scale)
    mirrored = torch.nonzero(drawn[3].flatten() < 0.5).flatten()
    images[mirrored] = images[mirrored].flip(3)
    return images
