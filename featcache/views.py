"""Augmented views of an image: which part of it is seen, and whether mirrored, drawn with integers only.

A view is a random resized crop and a mirror (Szegedy et al. 2015, section 6). It depends on the view seed, the sha256
of the image's bytes and the view's index alone, and no floating-point number or random state takes part, so that
every machine, process and order of work sees the same pixels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import isqrt

from featcache.errors import InputError

_ONE = 1 << 32  # the whole, of which every drawn number is a fraction


@dataclass(frozen=True, slots=True)
class View:
    """One drawn view; the numbers are uniform in [0, 2³²) and mean fractions of 2³².

    `area`: the share of the image that is seen, from a quarter to all of it. `aspect`: the crop's width over height,
    from 3/4 to 4/3, as likely narrow as wide. `left`, `top`: where the crop lies in the room that is left.
    `flip`: whether the crop is mirrored left to right after it was resized.
    """

    area: int
    aspect: int
    left: int
    top: int
    flip: bool

    def __post_init__(self) -> None:
        numbers = (self.area, self.aspect, self.left, self.top)
        if min(numbers) < 0 or max(numbers) >= _ONE:
            raise InputError(f"the numbers of a view must be in [0, 2**32), got {numbers!r}: use draw_view")

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return the crop (left, top, right, bottom) in pixels of an upright image of `width` x `height` pixels.

        It is at least 1 x 1 and inside the image; a side longer than the image's is cut to it.
        """
        area = width * height * (_ONE + 3 * self.area) // (4 * _ONE)
        # 3/4 .. 4/3, symmetric about 1: the upper half of the numbers is 1 .. 4/3, the lower half their inverses.
        half = _ONE >> 1
        fraction = self.aspect % half
        long, short = 3 * half + fraction, 3 * half
        if self.aspect < half:
            long, short = short, long
        crop_width = min(width, max(1, isqrt(area * long // short)))
        crop_height = min(height, max(1, isqrt(area * short // long)))
        left = (width - crop_width + 1) * self.left >> 32
        top = (height - crop_height + 1) * self.top >> 32
        return left, top, left + crop_width, top + crop_height


def draw_view(view_seed: int, digest: bytes, index: int) -> View | None:
    """Return view `index` of the image whose bytes have this sha256 `digest`; None for index 0, the plain view.

    Raises `InputError` for a negative index or a digest that is not 32 bytes long.
    """
    if index < 0:
        raise InputError(f"the index of a view must be at least 0 (the plain view), got {index!r}")
    if len(digest) != 32:
        raise InputError(f"the digest of an image must be the 32 bytes of its sha256, got {len(digest)} bytes")
    if index == 0:
        return None
    drawn = hashlib.sha256(f"featcache view {view_seed} {index} ".encode() + digest).digest()
    area, aspect, left, top, flip = (int.from_bytes(drawn[at : at + 4], "big") for at in range(0, 20, 4))
    return View(area, aspect, left, top, flip=bool(flip & 1))
