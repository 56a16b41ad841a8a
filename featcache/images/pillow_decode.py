"""Any image file Pillow reads, as one upright RGB picture: the reference of how an image looks, and of which fail."""

from __future__ import annotations

import io
import logging
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from featcache.errors import ImageError, LargeImageError
from featcache.images.jpeg import JpegHeader
from featcache.images.orientation import read_orientation, turn_image
from featcache.images.png import SIGNATURE, has_end, without_bulk
from featcache.images.resize import MAX_PIXELS

# Those whose readers are plain picture readers: no PostScript, no containers of other files, no guessing.
_FORMATS = ("PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "QOI", "TGA")
_BACKGROUND = (255, 255, 255, 255)

# What Pillow's readers, each by another author, raise on damaged files: `Image.open` itself expects half of these.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)

# Pillow logs an oddity of TIFF files; without a handler Python would print it. Handlers of the user still get it.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def open_jpeg(data: bytes, header: JpegHeader, *, reduction: int = 1) -> Image.Image:
    """Return the upright RGB image of a JPEG file, decoded at 1/`reduction` (1, 2, 4 or 8) of its width and height.

    Raises `ImageError` where the data is cut short or cannot be decoded. Damage that libjpeg repairs is not an error.
    """
    try:
        # not Image.open: its check of the size warns where ours permits
        image: Image.Image = JpegImagePlugin.JpegImageFile(io.BytesIO(header.without_metadata(data)))
        if reduction > 1:
            image.draft(None, (header.width // reduction, header.height // reduction))
        image.load()
        pixels = image if image.mode == "RGB" else image.convert("RGB")
        if reduction > 1:
            pixels = pixels.crop((0, 0, *header.reduced_size(reduction)))
        return turn_image(pixels, header.orientation)
    except _DAMAGE as error:
        raise ImageError(f"damaged JPEG: {_reason(error)}") from error


def open_other(data: bytes) -> Image.Image:
    """Return the upright RGB image of a file in any other format, the first frame of an animated one.

    Raises `ImageError` where the format is unknown, the pixels too many, their range not stated, or the file damaged.
    """
    with _quiet():
        try:
            plain = data
            if data.startswith(SIGNATURE):
                if not has_end(data):
                    raise ImageError("truncated PNG: it has no end mark")
                plain = without_bulk(data)
            with Image.open(io.BytesIO(plain), formats=_FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise too_large(width, height)
                image.load()
                pixels = _to_rgb(image)
                if _channel_bits(image, data) == 16:
                    _refuse_twelve_bits(pixels)
                return turn_image(pixels, _orientation_of(image))
        except UnidentifiedImageError as error:
            raise ImageError(_unknown(data)) from error
        except ImageError:
            raise
        except Image.DecompressionBombError as error:  # Pillow's own bound, where it knows the size before we do
            raise LargeImageError(f"an image must have at most {MAX_PIXELS} pixels: {_reason(error)}") from error
        except _DAMAGE as error:
            raise ImageError(f"damaged image: {_reason(error)}") from error


def too_large(width: int, height: int) -> LargeImageError:
    """Return the error of an image with too many pixels."""
    return LargeImageError(f"an image must have at most {MAX_PIXELS} pixels, this one has {width}x{height}")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        values = np.asarray(image)
        # a 12-bit camera's picture in a 16-bit file: its highest 8 bits of 16 would be black
        bits = 12 if values.max(initial=0) < 1 << 12 else 16
        # Pillow itself would clip at 255, which turns nearly every 16-bit picture white
        return Image.fromarray((values >> (bits - 8)).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError("grey values of 32 bits have no stated range: save the image with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, _BACKGROUND), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _channel_bits(image: Image.Image, data: bytes) -> int:
    """Return the bits of a colour channel in the file, of which Pillow keeps the highest 8; 8 where it has no more."""
    if image.mode not in ("RGB", "RGBA"):
        return 8
    if image.format == "PNG":
        return data[24]  # of the header, which is the first chunk
    if image.format == "TIFF":
        return int(max(image.tag_v2.get(0x0102, (8,))))  # type: ignore[attr-defined]
    return 8


def _refuse_twelve_bits(pixels: Image.Image) -> None:
    """Raise `ImageError` where all that was kept of 16 bits is near black: 12 were used, and their lowest are gone."""
    if 0 < max(high for _, high in pixels.getextrema()) < 16:  # type: ignore[misc]
        raise ImageError(
            "16-bit colours must use more than 12 of their bits, these have none above 4095: save the image with 8 bits"
        )


def _orientation_of(image: Image.Image) -> int:
    exif, xmp = image.info.get("exif"), image.info.get("XML:com.adobe.xmp") or image.info.get("xmp")
    if image.format == "TIFF":
        value = image.tag_v2.get(0x0112)  # type: ignore[attr-defined]
        return value if isinstance(value, int) and 1 <= value <= 8 else 1
    if exif is None and isinstance(profile := image.info.get("Raw profile type exif"), str):  # PNG by ImageMagick
        digits = "".join(profile.split("\n")[3:])
        exif = bytes.fromhex(digits) if len(digits) % 2 == 0 and digits.isalnum() else None
    if isinstance(xmp, str):
        xmp = xmp.encode("utf-8", "surrogateescape")
    return read_orientation(exif, xmp)


def _unknown(data: bytes) -> str:
    if not data:
        return "the file is empty"
    if data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1", b"ftyphevc"):
        return "HEIC photos are not read: save them as JPEG"
    return "not an image file, or damaged in its first bytes, or in a format that is not read"


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    lines = str(error).splitlines()
    return (lines[0] if lines and lines[0] else type(error).__name__)[:200]


_lock = threading.Lock()
_inside = 0
_saved: warnings.catch_warnings[None] | None = None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Pillow's warnings of odd files, which are no error and name no file, from the user, in all threads at once.

    `warnings.catch_warnings` alone swaps a list of the whole process and so is not for threads that overlap: here the
    first thread to come in swaps it and the last to leave swaps it back.
    """
    global _inside, _saved
    if getattr(sys.flags, "context_aware_warnings", False):  # from Python 3.14 on it may be safe by itself
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
        return
    with _lock:
        _inside += 1
        if _inside == 1:
            _saved = warnings.catch_warnings()
            _saved.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside and _saved is not None:
                _saved.__exit__(None, None, None)
                _saved = None
