"""From encoded bytes to the network's pixels: decode, turn upright, resize, crop.

Two decoders. ``pillow`` is the reference: Pillow's pixels through timm's evaluation transform, bit for bit, without
torch. ``fast`` reads JPEG with simplejpeg, bit for bit the same pixels, and resizes with torch, at most 2 grey levels
away. A JPEG that simplejpeg does not read without a warning, and every other format, is read by Pillow in both. So an
image that fails in one fails in the other, for the same reason.

What becomes of an image, by either decoder:

| image | outcome |
|---|---|
| JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, AVIF, JPEG 2000, QOI, TGA | read; the content decides, not the extension |
| wrong extension (a PNG named .jpg) | read |
| not an image (a text file named .jpg), HEIC | fails |
| empty | fails |
| truncated, also where it was padded to its size again | fails, even where only the end mark is missing |
| PNG with large texts or colour profile | read: these are left out unread, but for an orientation up to 1 MB |
| damaged JPEG data that libjpeg repairs (a flipped bit) | read, with the damage visible, as every viewer does |
| more than 134,217,728 pixels (2²⁷; 108-megapixel photos fit) | fails before a pixel is decoded |
| a JPEG of more than 100 scans | fails before a pixel is decoded |
| 30,000 pixels wide | read; fails where the resize before the crop would exceed 2²⁷ pixels (a 65,000x1 strip) |
| 1x1 | read: one colour |
| grey, black and white, palette | read as RGB |
| 16-bit and 12-bit grey, 16 bits per colour channel | the highest 8 bits are kept |
| 16-bit grey without a value above 4095 | the highest 8 of 12 bits are kept: a 12-bit camera wrote it |
| 16 bits per colour channel without a value above 4095 | fails, unless it is black: of the 12 bits 4 could be kept |
| grey of 32 bits or floats | fails: no range is stated |
| alpha, transparent palette entry | laid over white, as on a page; an opaque image keeps its colours |
| CMYK, YCCK | converted by Pillow's formula; colour profiles are not applied, here or anywhere |
| animated (GIF, WebP, PNG, AVIF), several pages (TIFF, MPO) | the first frame; of a PNG, its default image |
| EXIF or XMP orientation | turned upright, as by Pillow's ``exif_transpose`` |
| damaged EXIF | read as upright |
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from featcache.errors import InputError
from featcache.images.jpeg import JpegHeader, read_jpeg_header
from featcache.images.orientation import turn_pixels
from featcache.images.pillow_decode import open_jpeg, open_other, too_large
from featcache.images.resize import MAX_PIXELS, resize_with_pillow, resize_with_torch, torch_resizes
from featcache.images.views import View
from featcache.recipe import Decoder, Preprocessing

if TYPE_CHECKING:
    from PIL.Image import Image

_JPEG_SIGNATURE = b"\xff\xd8\xff"
_REDUCED_MARGIN = 2.5
_KEPT_BYTES = 64 << 20  # a buffer larger than this, for a photo over 22 megapixels, is not kept for the next image


def load_image(
    data: bytes,
    preprocessing: Preprocessing,
    *,
    decoder: Decoder = "fast",
    dct_scaling: bool = False,
    view: View | None = None,
    out: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[np.uint8]:
    """Return the network's input of an encoded image. Releases the interpreter lock while it decodes and resizes.

    Parameters
    ----------
    data : bytes
        Of an image file; its content decides what it is (see the module).
    preprocessing : Preprocessing
        Size, resize and crop; `mean` and `std` are not applied.
    decoder : {"fast", "pillow"}
        ``pillow`` is the reference, ``fast`` at most 2 grey levels from it.
    dct_scaling : bool
        Decode a large JPEG at 1/2, 1/4 or 1/8, the smallest that keeps the short side as long as `reduced_side` says;
        it changes the pixels and applies to the plain view only.
    view : View, optional
        An augmented view instead of the plain one.
    out : (height, width, 3) uint8, optional
        Where to write the pixels.

    Returns
    -------
    (height, width, 3) uint8
        RGB, upright; `out` where it was given.

    Raises
    ------
    ImageError
        With the reason in one line.
    InputError
        For an unknown decoder, or an `out` of another shape.

    Examples
    --------
    >>> from pathlib import Path
    >>> from featcache.images.load import load_image
    >>> from featcache.recipe import Preprocessing
    >>> size = Preprocessing(32, 32, 36, "bicubic", "center", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    >>> pixels = load_image(Path("photos/cat/00.jpg").read_bytes(), size)
    >>> pixels.shape, pixels.dtype
    ((32, 32, 3), dtype('uint8'))
    >>> load_image(b"no image", size)
    Traceback (most recent call last):
    featcache.errors.ImageError: not an image file, or damaged in its first bytes, or in a format that is not read
    """
    min_side = reduced_side(preprocessing) if dct_scaling and view is None else None
    full_size = None if min_side is None else upright_size(data)
    if decoder == "pillow":
        return _put(resize_with_pillow(_open(data, min_side), preprocessing, view, full_size=full_size), out)
    return resize_crop(
        decode(data, decoder=decoder, min_side=min_side, reuse=True),
        preprocessing,
        decoder=decoder,
        view=view,
        full_size=full_size,
        out=out,
    )


def reduced_side(preprocessing: Preprocessing) -> int:
    """Return the short side in pixels that a DCT-scaled image must keep: two and a half times what it is resized to.

    A reduced decode filters by blocks of 8x8, not as the antialiased resize does. The more is left to the resize the
    less it shows, and the coefficients are read in any case: 1/4 takes little longer than 1/8.
    """
    if preprocessing.crop_mode == "squash":
        return math.ceil(_REDUCED_MARGIN * max(preprocessing.height, preprocessing.width))
    return math.ceil(_REDUCED_MARGIN * preprocessing.resize)


def upright_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) of a JPEG in full and upright, None for any other format. Raises `ImageError`."""
    if not data.startswith(_JPEG_SIGNATURE):
        return None
    header = read_jpeg_header(data)
    return (header.height, header.width) if header.orientation >= 5 else (header.width, header.height)


def decode(
    data: bytes, *, decoder: Decoder = "fast", min_side: int | None = None, reuse: bool = False
) -> npt.NDArray[np.uint8]:
    """Return the pixels (h, w, 3) uint8 RGB of an encoded image, upright; equal bit for bit in both decoders.

    `min_side`: decode a JPEG at the largest reduction of 1/2, 1/4, 1/8 that keeps its short side at least this long.
    `reuse`: the result lies in a buffer of this thread and is valid until its next decode with `reuse`; that spares
    fresh memory. Perhaps a view with strides, perhaps
    read-only. Raises `ImageError`, and `InputError` for an unknown decoder.
    """
    if decoder not in ("fast", "pillow"):
        raise InputError(f"decoder must be 'fast' or 'pillow', got {decoder!r}")
    if decoder == "fast" and data.startswith(_JPEG_SIGNATURE):
        header = _checked_header(data)
        if header.plain:
            pixels = _decode_with_simplejpeg(data, header, _reduction(header, min_side), reuse=reuse)
            if pixels is not None:
                return turn_pixels(pixels, header.orientation)
    return np.asarray(_open(data, min_side))


def resize_crop(
    pixels: npt.NDArray[np.uint8],
    preprocessing: Preprocessing,
    *,
    decoder: Decoder = "fast",
    view: View | None = None,
    full_size: tuple[int, int] | None = None,
    out: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[np.uint8]:
    """Return upright RGB `pixels` (h, w, 3) resized and cropped to (height, width, 3) uint8, in `out` where given.

    `full_size`: (width, height) of the image that `pixels` are a reduced decode of; they are resized to what it would
    be, since their own sides, rounded up, can come out a pixel longer and move the crop by half of one.
    Interpolations other than bilinear and bicubic are resized by Pillow under either decoder. Raises `ImageError` where
    the image is so thin that the resize before the crop would exceed the limit of pixels.
    """
    if decoder == "fast" and torch_resizes(preprocessing):
        return _put(resize_with_torch(pixels, preprocessing, view, full_size=full_size), out)
    from PIL import Image

    return _put(resize_with_pillow(Image.fromarray(pixels), preprocessing, view, full_size=full_size), out)


def _open(data: bytes, min_side: int | None) -> Image:
    if data.startswith(_JPEG_SIGNATURE):
        header = _checked_header(data)
        return open_jpeg(data, header, reduction=_reduction(header, min_side))
    return open_other(data)


def _checked_header(data: bytes) -> JpegHeader:
    header = read_jpeg_header(data)
    if header.width * header.height > MAX_PIXELS:
        raise too_large(header.width, header.height)
    return header


def _reduction(header: JpegHeader, min_side: int | None) -> int:
    short = min(header.width, header.height)
    return next((scale for scale in (8, 4, 2) if min_side is not None and short >= scale * min_side), 1)


_thread = threading.local()


def _decode_with_simplejpeg(
    data: bytes, header: JpegHeader, reduction: int, *, reuse: bool
) -> npt.NDArray[np.uint8] | None:
    """Return the pixels as stored, before orientation; None where libjpeg is not content with every byte."""
    import simplejpeg

    height, width = -(-header.height // reduction), -(-header.width // reduction)
    buffer = _buffer(height * width * 3) if reuse else np.empty(height * width * 3, dtype=np.uint8)
    try:
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data,
            "RGB",
            min_height=height if reduction > 1 else 0,
            min_width=width if reduction > 1 else 0,
            min_factor=reduction,
            buffer=buffer,
        )
    except ValueError:
        return None
    if pixels.shape != (height, width, 3):
        return None
    kept_width, kept_height = header.reduced_size(reduction)
    return pixels[:kept_height, :kept_width]


def _buffer(size: int) -> npt.NDArray[np.uint8]:
    """Return `size` bytes that this thread used before, which are mapped already."""
    kept: npt.NDArray[np.uint8] | None = getattr(_thread, "buffer", None)
    if kept is None or len(kept) < size:
        kept = np.empty(max(size, 1 << 20), dtype=np.uint8)
        if size <= _KEPT_BYTES:
            _thread.buffer = kept
    return kept[:size]


def _put(pixels: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8] | None) -> npt.NDArray[np.uint8]:
    """Return `pixels` copied into `out`, or else into an array of their own: they may lie in a thread's buffer."""
    if out is None:
        return np.array(pixels, order="C")
    if out.shape != pixels.shape or out.dtype != np.uint8:
        raise InputError(f"out must be {pixels.shape!r} uint8, got {out.shape!r} {out.dtype}")
    out[...] = pixels
    return out
