"""timm's evaluation geometry: how large an image is resized, which part is kept, and the two ways to do it.

``pillow`` is timm's transform on Pillow images, pixel for pixel, and needs no torch. ``fast`` is torch's antialiased
resize of uint8 with the channels last, at most 2 grey levels from it and several times faster. Neither crops before it
resizes: that would change the pixels along the border of the crop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from featcache.errors import LargeImageError
from featcache.images.views import View
from featcache.recipe import Preprocessing

MAX_PIXELS = 1 << 27  # 134,217,728: a photo of 108 megapixels fits, and one image takes at most about 1 GB

_TORCH_MODES = ("bilinear", "bicubic")  # the others are resized by Pillow under either decoder


@dataclass(frozen=True, slots=True)
class _Geometry:
    """Take `source` (left, top, right, bottom), resize it to `width` x `height`, keep from `left`, `top` on."""

    source: tuple[int, int, int, int]
    width: int
    height: int
    left: int
    top: int
    flip: bool


def _geometry(width: int, height: int, preprocessing: Preprocessing, view: View | None) -> _Geometry:
    p = preprocessing
    whole = (0, 0, width, height)
    if view is not None or p.crop_mode == "squash":
        source = whole if view is None else view.box(width, height)
        between = source[3] - source[1]  # rows of the image that is resized in width and not yet in height
        if p.width * between > MAX_PIXELS:
            raise LargeImageError(
                f"an image must have at most {MAX_PIXELS} pixels when it is {p.width} wide, this one of "
                f"{width}x{height} would be {p.width}x{between}: too long and thin"
            )
        return _Geometry(source, p.width, p.height, 0, 0, view is not None and view.flip)
    # torchvision's Resize of the short side: the long side is truncated, not rounded
    short, long = min(width, height), max(width, height)
    stretched = int(p.resize * long / short)
    new_width, new_height = (p.resize, stretched) if width <= height else (stretched, p.resize)
    if new_width * new_height > MAX_PIXELS:
        raise LargeImageError(
            f"an image must have at most {MAX_PIXELS} pixels when its short side is {p.resize}, this one of {width}x"
            f"{height} would be {new_width}x{new_height}: too long and thin"
        )
    # torchvision's CenterCrop rounds halves to even
    left, top = round((new_width - p.width) / 2), round((new_height - p.height) / 2)
    return _Geometry(whole, new_width, new_height, left, top, False)


def resize_with_pillow(
    image: Image.Image,
    preprocessing: Preprocessing,
    view: View | None,
    *,
    full_size: tuple[int, int] | None = None,
) -> npt.NDArray[np.uint8]:
    """Return (height, width, 3) uint8 of an upright RGB `image`, read-only. Raises `ImageError` as `resize_crop`.

    `full_size`: of what `image` is a reduced decode of; only without a `view`.
    """
    geometry = _geometry(*(full_size or image.size), preprocessing, view)
    if view is not None and geometry.source != (0, 0, *image.size):
        image = image.crop(geometry.source)
    # One axis after the other: pixels are rounded in between, so the order shows (by 6 levels in photos). Since version
    # 13 Pillow begins with the height where that shrinks much more than the width; before, and in torch, it never does.
    resampling = Image.Resampling[preprocessing.interpolation.upper()]
    for size in ((geometry.width, image.height), (geometry.width, geometry.height)):
        if image.size != size:
            image = image.resize(size, resampling)
    kept = (geometry.left, geometry.top, geometry.left + preprocessing.width, geometry.top + preprocessing.height)
    if kept != (0, 0, *image.size):
        image = image.crop(kept)
    pixels = np.asarray(image)
    return pixels[:, ::-1] if geometry.flip else pixels


def resize_with_torch(
    pixels: npt.NDArray[np.uint8],
    preprocessing: Preprocessing,
    view: View | None,
    *,
    full_size: tuple[int, int] | None = None,
) -> npt.NDArray[np.uint8]:
    """Return (height, width, 3) uint8 of upright RGB `pixels`, perhaps a view of them. Raises `ImageError` likewise."""
    import torch
    from torch.nn import functional

    height, width = pixels.shape[:2]
    full_width, full_height = full_size or (width, height)
    geometry = _geometry(full_width, full_height, preprocessing, view)
    left, top, right, bottom = geometry.source  # of a reduced decode, everything: beyond its end
    pixels = pixels[top:bottom, left:right]
    if pixels.shape[:2] != (geometry.height, geometry.width):
        # torch takes neither negative strides nor read-only memory, and its fast kernel only channels in one piece
        whole = np.require(pixels, dtype=np.uint8, requirements=["C_CONTIGUOUS", "WRITEABLE"])
        channels_last = torch.from_numpy(whole)[None].permute(0, 3, 1, 2)
        resized = functional.interpolate(
            channels_last, (geometry.height, geometry.width), mode=preprocessing.interpolation, antialias=True
        )
        pixels = resized.permute(0, 2, 3, 1)[0].numpy()
    pixels = pixels[
        geometry.top : geometry.top + preprocessing.height, geometry.left : geometry.left + preprocessing.width
    ]
    return pixels[:, ::-1] if geometry.flip else pixels


def torch_resizes(preprocessing: Preprocessing) -> bool:
    """Return whether torch has the antialiased resize of uint8 that `preprocessing` asks for."""
    return preprocessing.interpolation in _TORCH_MODES
