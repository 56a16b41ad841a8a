"""EXIF orientation: reading it from metadata that may be damaged, and turning pixels upright.

The meaning is that of Pillow's ``ImageOps.exif_transpose``: the EXIF tag, else the XMP property ``tiff:Orientation``.
Metadata that cannot be read never costs an image: it counts as upright.
"""

from __future__ import annotations

import re
import struct

import numpy as np
import numpy.typing as npt
from PIL import Image

_TAG = 0x0112
_BYTE_ORDERS = {
    b"II*\0": "<",
    b"MM\0*": ">",
    b"II\0*": "<",
    b"MM*\0": ">",
}  # two by broken cameras
_INTEGER_TYPES = {3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 13: "L"}  # of TIFF
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')

_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_orientation(exif: bytes | None, xmp: bytes | None) -> int:
    """Return the orientation 1 to 8 that an image's `exif` block or `xmp` packet states; 1 where none can be read."""
    orientation = _from_exif(exif) if exif else None
    if orientation is None and xmp and (match := _XMP.search(xmp)):
        orientation = int(match[1])
    return orientation if orientation in _TRANSPOSES else 1


def _from_exif(exif: bytes) -> int | None:
    """Return the tag's number in the first directory of a TIFF structure, None where it is not there to be read."""
    for _ in range(2):  # some writers put the header twice
        exif = exif.removeprefix(b"Exif\0\0")
    order = _BYTE_ORDERS.get(exif[:4])
    if order is None or len(exif) < 8:
        return None
    (start,) = struct.unpack_from(order + "L", exif, 4)
    if start + 2 > len(exif):
        return None
    (count,) = struct.unpack_from(order + "H", exif, start)
    for at in range(start + 2, min(start + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind, values = struct.unpack_from(order + "HHL", exif, at)
        if tag != _TAG or kind not in _INTEGER_TYPES or not values:
            continue
        code = order + _INTEGER_TYPES[kind]
        length = values * struct.calcsize(code)
        place = at + 8 if length <= 4 else int(struct.unpack_from(order + "L", exif, at + 8)[0])
        if place + length <= len(exif):
            return int(struct.unpack_from(code, exif, place)[0])
    return None


def turn_image(image: Image.Image, orientation: int) -> Image.Image:
    """Return `image` turned upright."""
    method = _TRANSPOSES.get(orientation)
    return image if method is None else image.transpose(method)


def turn_pixels(pixels: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Return the pixels (h, w, 3) turned upright, (w, h, 3) for orientations 5 to 8: a view, nothing is copied."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
