"""From the bytes of an image file to the network's pixels: decode, turn upright, resize, crop.

Two decoders: ``pillow`` is timm's evaluation transform pixel for pixel and loads no torch; ``fast`` decodes JPEG with
simplejpeg (the same libjpeg, the same pixels) and resizes with torch's antialiased uint8 kernel, at most 2 grey levels
from ``pillow`` on photos. **Both fail for the same images, with the same reason**: Pillow reads every header, and
whatever simplejpeg is not made for, or warns of, is decoded by Pillow.

Each kind of odd image has one outcome, in both decoders:

======================================  ================================================================================
image                                   outcome
======================================  ================================================================================
wrong or missing extension              decoded by its content
unknown format, text, html, empty       `ImageError`
truncated                               `ImageError`
damaged inside the compressed data      decoded as far as the format's library does, else `ImageError`
more than `MAX_PIXELS` pixels           `ImageError` from the header alone, before any pixel is decoded
progressive JPEG with absurdly many     `ImageError` from a count of its scan markers, before any pixel is decoded
scans for its size
EXIF (also in PNG, WebP, AVIF, TIFF)    orientation 1-8 applied as `PIL.ImageOps.exif_transpose`; damaged EXIF is ignored
grey, 1 bit, palette                    decoded; grey is repeated in the three channels
16 bits per channel                     decoded; the high byte is kept
32-bit integer or floating-point TIFF   `ImageError`: no range of values is stated in the file
CMYK, YCCK                              decoded by Pillow's plain formula, without a colour profile
alpha                                   dropped; the colours below it are used as stored (as timm and torchvision do)
animated or several pages               the first frame
1 x 1, 30,000 pixels wide               decoded; where the resized image would exceed 2²⁴ pixels, only the part that is
                                        cropped is resized
embedded colour profile                 ignored (as timm and torchvision do)
======================================  ================================================================================

Python's warnings about odd files are silenced, whatever the process's filters are. Everything here may be called from
several threads at once; decoding and resizing release the GIL.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from featcache.errors import ImageError
from featcache.recipe import Decoder, Preprocessing
from featcache.views import View

Pixels = npt.NDArray[np.uint8]

MAX_PIXELS = 1 << 27  # 134 million: 400 MB as RGB; larger than all but a few cameras
_MAX_SCANNED_PIXELS = 1 << 31  # pixels times scans: each scan of a progressive JPEG passes over all of it again
_MAX_RESIZED_PIXELS = 1 << 24  # above it only the cropped part of the resized image is computed

# Pillow's names of the formats of scan.IMAGE_EXTENSIONS. Others stay closed: EPS, for one, runs Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI", "TGA")

# What Pillow's plugins raise on damaged files. `Image.open` itself expects SyntaxError, IndexError, TypeError and
# struct.error of them; loading pixels and parsing EXIF raise the others.
_PILLOW_ERRORS = (
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    ZeroDivisionError,
    struct.error,
    zlib.error,
)

_ORIENTATION_TAG = 0x0112
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: bytes, *, decoder: Decoder = "fast", min_side: int | None = None) -> Pixels:
    """Return the upright pixels (h, w, 3) uint8 RGB of an encoded image; they may be read-only.

    `min_side`: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, by the largest of these reductions that keeps its
    short side at or above this many pixels. Both decoders return the same pixels, at any scale.

    Raises `ImageError` with a one-line reason; the table of the module says when.
    """
    image = _open(data)
    if decoder == "fast":
        pixels = _decode_jpeg(image, data, min_side)
        if pixels is not None:
            return pixels
    return np.asarray(_load(image, min_side))


def resize_crop(
    pixels: Pixels,
    preprocessing: Preprocessing,
    *,
    decoder: Decoder = "fast",
    view: View | None = None,
    out: Pixels | None = None,
) -> Pixels:
    """Return the network's input (height, width, 3) uint8 of upright pixels (h, w, 3) uint8; in `out` where given.

    Without a `view`: the short side is resized and the centre cropped, or the whole squashed, as `preprocessing` says.
    With one: its crop is resized to (height, width), and mirrored where it says so.
    """
    height, width = pixels.shape[:2]
    on_torch = decoder == "fast" and preprocessing.interpolation in ("bilinear", "bicubic")
    if not on_torch or _is_extreme(width, height, preprocessing, view):
        return _resize_crop_pillow(Image.fromarray(pixels), preprocessing, view, out)
    if view is not None:
        left, top, right, bottom = view.box(width, height)
        pixels = pixels[top:bottom, left:right]
    if view is not None or preprocessing.crop_mode == "squash":
        resized = _resize_torch(pixels, preprocessing.width, preprocessing.height, preprocessing.interpolation)
    else:
        new_width, new_height = _resized_size(width, height, preprocessing.resize)
        left, top, right, bottom = _centre(new_width, new_height, preprocessing)
        resized = _resize_torch(pixels, new_width, new_height, preprocessing.interpolation)[top:bottom, left:right]
    return _deliver(resized[:, ::-1] if view is not None and view.flip else resized, out)


def load_image(
    data: bytes,
    preprocessing: Preprocessing,
    *,
    decoder: Decoder = "fast",
    dct_scaling: bool = False,
    view: View | None = None,
    out: Pixels | None = None,
) -> Pixels:
    """Return the network's input (height, width, 3) uint8 RGB of an encoded image; in `out` where given.

    It equals ``resize_crop(decode(data))``. `dct_scaling`: decode a large JPEG at the smallest of 1/1, 1/2, 1/4, 1/8
    of its size whose short side is at least ``preprocessing.resize``; a view is then a crop of that smaller image.

    Raises `ImageError` with a one-line reason; the table of the module says when.
    """
    min_side = preprocessing.resize if dct_scaling else None
    if decoder == "fast":
        pixels = decode(data, decoder=decoder, min_side=min_side)
        return resize_crop(pixels, preprocessing, decoder=decoder, view=view, out=out)
    # The image stays in Pillow's memory: a detour by way of an array would copy every pixel twice.
    return _resize_crop_pillow(_load(_open(data), min_side), preprocessing, view, out)


# ---------------------------------------------------------------- decoding


def _open(data: bytes) -> Image.Image:
    """Return the image with its header read and its size checked, no pixel decoded."""
    if len(data) == 0:
        raise ImageError("the file is empty")
    with _pillow_border("its header cannot be read"):
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise ImageError(_TOO_LARGE)
    if image.format in ("JPEG", "MPO") and pixels * data.count(b"\xff\xda") > _MAX_SCANNED_PIXELS:
        raise ImageError("its JPEG has more scans than an image of its size can need: it looks made to take long")
    return image


def _decode_jpeg(image: Image.Image, data: bytes, min_side: int | None) -> Pixels | None:
    """Return the upright pixels of a JPEG that simplejpeg decodes without a warning, else None: Pillow decides."""
    if image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
        return None
    reduction = _jpeg_reduction(image, min_side)
    # The next smaller scale of libjpeg-turbo (in eighths) falls below these, so exactly `reduction` is chosen.
    width, height = -(-image.width // reduction), -(-image.height // reduction)
    least = {"min_height": height, "min_width": width} if reduction > 1 else {}
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True, **least)
    except ValueError:
        return None
    if pixels.shape != (height, width, 3):
        return None
    return _turn(pixels, _orientation(image))


def _load(image: Image.Image, min_side: int | None) -> Image.Image:
    """Return the upright 8-bit RGB image that Pillow decodes."""
    with _pillow_border(f"its {image.format} data cannot be decoded"):
        reduction = _jpeg_reduction(image, min_side)
        if reduction > 1:
            image.draft(None, (image.width // reduction, image.height // reduction))
        image.load()
        rgb = _to_rgb(image)
    transpose = _TRANSPOSES.get(_orientation(image))  # after load: a TIFF turns itself, a PNG may end with its EXIF
    return rgb if transpose is None else rgb.transpose(transpose)


def _jpeg_reduction(image: Image.Image, min_side: int | None) -> int:
    """Return by how much a JPEG may be reduced while it is decoded: 8, 4, 2, or 1."""
    if min_side is None or image.format not in ("JPEG", "MPO"):
        return 1
    return next((factor for factor in (8, 4, 2) if min(image.size) >= factor * min_side), 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        return _grey_of_high_byte(np.asarray(image))
    if image.mode == "I" and image.format in ("PPM", "PNG"):  # 16 bits in a 32-bit mode
        return _grey_of_high_byte(np.asarray(image).clip(0, 0xFFFF))
    if image.mode in ("I", "F"):
        raise ImageError(f"its {image.format} holds 32-bit values of unknown range; 8 or 16 bits per channel are read")
    return image.convert("RGB")


def _grey_of_high_byte(values: npt.NDArray[Any]) -> Image.Image:
    return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 where there is none or the EXIF is damaged."""
    with _quiet_pillow():
        try:
            orientation = image.getexif().get(_ORIENTATION_TAG)
        except _PILLOW_ERRORS:
            return 1
    return orientation if isinstance(orientation, int) and orientation in _TRANSPOSES else 1


def _turn(pixels: Pixels, orientation: int) -> Pixels:
    """Return the pixels turned upright, contiguous."""
    if orientation == 1:
        return pixels
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


# ---------------------------------------------------------------- resizing


def _resized_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return (width, height) with the short side as asked: torchvision's rule, in integers."""
    if width <= height:
        return short_side, short_side * height // width
    return short_side * width // height, short_side


def _centre(width: int, height: int, preprocessing: Preprocessing) -> tuple[int, int, int, int]:
    """Return the centre crop (left, top, right, bottom), halves rounded to even as torchvision's `center_crop`."""
    left = round((width - preprocessing.width) / 2)
    top = round((height - preprocessing.height) / 2)
    return left, top, left + preprocessing.width, top + preprocessing.height


def _is_extreme(width: int, height: int, preprocessing: Preprocessing, view: View | None) -> bool:
    """Return whether the whole resized image would be too large to compute for the sake of its centre."""
    if view is not None or preprocessing.crop_mode == "squash":
        return False
    new_width, new_height = _resized_size(width, height, preprocessing.resize)
    return new_width * new_height > _MAX_RESIZED_PIXELS


def _resize_crop_pillow(
    image: Image.Image, preprocessing: Preprocessing, view: View | None, out: Pixels | None
) -> Pixels:
    resampling = Image.Resampling[preprocessing.interpolation.upper()]
    size = preprocessing.width, preprocessing.height
    if view is not None:
        resized = image.crop(view.box(*image.size)).resize(size, resampling)
        if view.flip:
            resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    elif preprocessing.crop_mode == "squash":
        resized = image.resize(size, resampling)
    else:
        new_width, new_height = _resized_size(*image.size, preprocessing.resize)
        crop = _centre(new_width, new_height, preprocessing)
        if _is_extreme(*image.size, preprocessing, view):
            x, y = image.width / new_width, image.height / new_height
            resized = image.resize(size, resampling, box=(crop[0] * x, crop[1] * y, crop[2] * x, crop[3] * y))
        else:
            resized = image.resize((new_width, new_height), resampling).crop(crop)
    return _deliver(np.asarray(resized), out)


def _resize_torch(pixels: Pixels, width: int, height: int, mode: str) -> Pixels:
    """Return pixels (height, width, 3) resized by torch's antialiased uint8 kernel, which wants channels last."""
    if pixels.shape[:2] == (height, width):
        return pixels
    import torch

    source = np.require(pixels, requirements=["C", "W"])  # torch warns of read-only memory
    image = torch.from_numpy(source).permute(2, 0, 1).unsqueeze(0)
    resized = torch.nn.functional.interpolate(image, size=(height, width), mode=mode, antialias=True)
    array: Pixels = resized[0].permute(1, 2, 0).numpy()
    return array


def _deliver(pixels: Pixels, out: Pixels | None) -> Pixels:
    """Return the pixels in `out`, or contiguous, so that a crop does not keep the whole image alive."""
    if out is None:
        return np.ascontiguousarray(pixels)
    out[...] = pixels
    return out


# ---------------------------------------------------------------- Pillow's errors and warnings

_TOO_LARGE = f"it has more than {MAX_PIXELS} pixels, the limit for one image"


@contextmanager
def _pillow_border(what: str) -> Iterator[None]:
    """Turn whatever Pillow raises inside into an `ImageError` that begins with `what`; silence its warnings."""
    with _quiet_pillow():
        try:
            yield
        except ImageError:
            raise
        except Image.DecompressionBombError as error:
            raise ImageError(_TOO_LARGE) from error
        except Image.UnidentifiedImageError as error:
            raise ImageError("its bytes are not an image in a format that is read here") from error
        except _PILLOW_ERRORS as error:
            raise ImageError(f"{what}: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text[:200] or type(error).__name__


_quiet_lock = threading.Lock()
_quiet_depth = 0
_quiet_state: warnings.catch_warnings[None] | None = None


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Ignore the warnings that Pillow's modules issue, in all threads, until the last thread inside has left.

    `warnings.catch_warnings` swaps one list for the whole process: threads that entered and left it on their own would
    put back each other's. So the first one in swaps and the last one out puts back.
    """
    global _quiet_depth, _quiet_state
    with _quiet_lock:
        if _quiet_depth == 0:
            _quiet_state = warnings.catch_warnings()
            _quiet_state.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0 and _quiet_state is not None:
                _quiet_state.__exit__(None, None, None)
                _quiet_state = None
