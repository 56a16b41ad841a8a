"""Small pictures of images, for people."""

from __future__ import annotations

import io

from featcache.images.load import decode


def thumbnail(data: bytes, *, side: int, quality: int = 85) -> bytes:
    """Return the encoded image `data` as a JPEG of at most `side` pixels, upright. Raises `ImageError`."""
    from PIL import Image

    image = Image.fromarray(decode(data, min_side=side))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
