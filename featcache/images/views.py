"""Augmented views of an image: which part of it is seen, and whether mirrored.

A view is drawn from sha256 with integers and correctly rounded decimals only, so that it is the same on any machine.
The distribution is that of the random-resized-crop used to train image classifiers (Szegedy et al. 2015, as in
torchvision and timm): 0.08 to 1 of the area, aspect ratio 3/4 to 4/3 with a uniform logarithm, mirrored half the time.
"""

from __future__ import annotations

import decimal
import hashlib
from dataclasses import dataclass
from math import isqrt

from featcache.errors import InputError

AREA = (decimal.Decimal("0.08"), decimal.Decimal(1))
ASPECT = (decimal.Decimal(3) / 4, decimal.Decimal(4) / 3)
TRIES = 10

_ONE = 1 << 32  # fractions are integers in units of 2^-32
_CONTEXT = decimal.Context(prec=30, rounding=decimal.ROUND_HALF_EVEN)


@dataclass(frozen=True, slots=True)
class View:
    """A random resized crop and a mirror, for images of any size. Numbers are integers in units of 2⁻³².

    `shapes`: tries of (share of the image's area, width over height); the first that fits into the image is taken.
    `left`, `top`: where the crop lies, as a share of the room it has. `flip`: mirror left and right after the resize.
    """

    shapes: tuple[tuple[int, int], ...]
    left: int
    top: int
    flip: bool

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return the crop (left, top, right, bottom) in pixels of an upright image of `width` x `height` pixels.

        Where no try fits (a very long image), it is the largest centred crop of an allowed aspect. Raises `InputError`
        for an image without a pixel.
        """
        if width < 1 or height < 1:
            raise InputError(f"an image must be at least 1x1 pixels, got {width!r}x{height!r}")
        for area, aspect in self.shapes:
            crop_width = _rounded_root(width * height * area * aspect, _ONE * _ONE)
            crop_height = _rounded_root(width * height * area, aspect)
            if 0 < crop_width <= width and 0 < crop_height <= height:
                x = (width - crop_width + 1) * self.left >> 32
                y = (height - crop_height + 1) * self.top >> 32
                return x, y, x + crop_width, y + crop_height
        crop_width = min(width, max(1, (8 * height + 3) // 6))  # height x 4/3, rounded
        crop_height = min(height, max(1, (8 * width + 3) // 6))
        x, y = (width - crop_width) // 2, (height - crop_height) // 2
        return x, y, x + crop_width, y + crop_height


def draw_view(view_seed: int, digest: bytes, index: int) -> View | None:
    """Return view `index` of the image whose bytes have the sha256 `digest`; None for view 0, the plain one.

    Raises `InputError` for an index below 0.
    """
    if index < 0:
        raise InputError(f"the index of a view must be at least 0 (the plain view), got {index!r}")
    if index == 0:
        return None
    words = _words(b"featcache view 1\0%d\0%d\0%s" % (view_seed, index, digest), 2 * TRIES + 3)
    low, high = (_CONTEXT.ln(bound) for bound in ASPECT)
    shapes = []
    for area_word, aspect_word in zip(words[0 : 2 * TRIES : 2], words[1 : 2 * TRIES : 2], strict=True):
        area = _between(*AREA, area_word)
        aspect = _CONTEXT.exp(_between(low, high, aspect_word))
        shapes.append((_units(area), _units(aspect)))
    left, top, flip = words[2 * TRIES :]
    return View(tuple(shapes), left, top, flip=flip < _ONE // 2)


def _words(seed: bytes, count: int) -> list[int]:
    """Return `count` numbers of 32 bits from sha256(seed ‖ 0), sha256(seed ‖ 1), …"""
    blocks = b"".join(hashlib.sha256(seed + bytes([i])).digest() for i in range((count + 7) // 8))
    return [int.from_bytes(blocks[i : i + 4], "big") for i in range(0, 4 * count, 4)]


def _between(low: decimal.Decimal, high: decimal.Decimal, word: int) -> decimal.Decimal:
    share = _CONTEXT.divide(decimal.Decimal(word), decimal.Decimal(_ONE))
    return _CONTEXT.add(low, _CONTEXT.multiply(_CONTEXT.subtract(high, low), share))


def _units(value: decimal.Decimal) -> int:
    return int(_CONTEXT.to_integral_value(_CONTEXT.multiply(value, decimal.Decimal(_ONE))))


def _rounded_root(numerator: int, denominator: int) -> int:
    """Return the square root of a fraction, rounded to the nearest integer."""
    return (isqrt(4 * numerator // denominator) + 1) // 2
