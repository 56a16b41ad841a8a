"""The header of a JPEG file, read before a decoder sees a byte of it.

Both decoders are given what is read here: the size that is checked against the limits, the orientation, and for Pillow
the same file without its metadata (so that damaged metadata can neither fail an image nor cost time).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from featcache.errors import ImageError
from featcache.images.orientation import read_orientation

MAX_SCANS = 100  # a progressive photo has about ten; thousands of empty ones would keep a decoder busy for minutes

_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_DHP = 0xDE  # read as a frame header by Pillow
_SOS = 0xDA
_EOI = 0xD9
_WITHOUT_LENGTH = frozenset([0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)])
_APP0, _APP14, _APP15, _COM = 0xE0, 0xEE, 0xEF, 0xFE
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # within entropy-coded data, FF 00 and restarts are no markers


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """What a JPEG file says of itself before its first scan.

    `width`, `height`: as stored, before orientation. `components`: 1 grey, 3 colour, 4 CMYK. `plain`: baseline or
    progressive Huffman coding of grey or colour, what every decoder reads alike. `orientation`: EXIF's, 1 to 8.
    """

    width: int
    height: int
    components: int
    plain: bool
    orientation: int
    _metadata: tuple[tuple[int, int], ...]

    def reduced_size(self, reduction: int) -> tuple[int, int]:
        """Return (width, height) of a decode at 1/`reduction`, before orientation, each to the nearest pixel.

        libjpeg rounds up: a last pixel that stands for less than half of one would stretch what the image covers.
        """
        return max(1, round(self.width / reduction)), max(1, round(self.height / reduction))

    def without_metadata(self, data: bytes) -> bytes:
        """Return `data`, the file of this header, without comments, EXIF, colour profiles and previews."""
        kept, at = [], 0
        for start, stop in self._metadata:
            kept.append(data[at:start])
            at = stop
        return b"".join([*kept, data[at:]])


def read_jpeg_header(data: bytes) -> JpegHeader:
    """Return the header of a file that begins with a JPEG's signature.

    Raises `ImageError` where it ends or breaks before the first scan, has no end mark behind it, codes its samples in a
    way no decoder here reads (other than 8 bits, or 1, 3 or 4 components), or has more than `MAX_SCANS` scans.
    """
    frame: tuple[int, int, int, int] | None = None
    exif, xmp = b"", b""
    metadata: list[tuple[int, int]] = []
    at = 2
    while True:
        at = data.find(b"\xff", at)
        while at >= 0 and data[at + 1 : at + 2] == b"\xff":
            at += 1
        if at < 0 or at + 2 > len(data):
            raise ImageError("truncated JPEG: the file ends before its image data")
        marker = data[at + 1]
        if marker == 0 or marker in _WITHOUT_LENGTH:
            at += 2
            continue
        if marker < 0xC0:
            raise ImageError(f"damaged JPEG: no such marker as FF{marker:02X}")
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        stop = at + 2 + max(2, length)
        if stop > len(data):
            raise ImageError("truncated JPEG: the file ends inside its header")
        body = data[at + 4 : stop]
        if marker == _SOS:
            break
        if marker in _SOF or marker == _DHP:
            frame = _read_frame(marker, body)
        elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
            exif += body[6:] if exif else body
        elif marker == 0xE1 and body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = body.split(b"\0", 1)[1]
        if _is_metadata(marker, body):
            metadata.append((at, stop))
        at = stop
    if frame is None:
        raise ImageError("damaged JPEG: no frame header before its image data")
    if data.find(b"\xff\xd9", at) < 0:  # padding of zeros would be decoded as image data
        raise ImageError("truncated JPEG: it has no end mark")
    coding, width, height, components = frame
    if (coding not in (0xC0, 0xC1) or body[:1] != bytes([components])) and _more_scans_than(MAX_SCANS, data, at):
        raise ImageError(f"a JPEG may have {MAX_SCANS} scans, this one has more: a decompression bomb")
    plain = coding in (0xC0, 0xC1, 0xC2) and components in (1, 3)
    return JpegHeader(width, height, components, plain, read_orientation(exif, xmp), tuple(metadata))


def _read_frame(marker: int, body: bytes) -> tuple[int, int, int, int]:
    """Return (coding, width, height, components) of a frame header."""
    if len(body) < 6:
        raise ImageError("damaged JPEG: its frame header is too short")
    bits, components = body[0], body[5]
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    if bits != 8 or components not in (1, 3, 4):
        raise ImageError(f"a JPEG must have 1, 3 or 4 components of 8 bits, this one has {components} of {bits} bits")
    if not width or not height:
        raise ImageError(f"damaged JPEG: its size is {width}x{height} pixels")
    return marker, width, height, components


def _is_metadata(marker: int, body: bytes) -> bool:
    """Return whether no decoder needs a segment; the two that say how colours are coded are needed where whole."""
    if marker == _APP0:
        return len(body) < 14
    if marker == _APP14:
        return len(body) < 12
    return _APP0 < marker <= _APP15 or marker == _COM


def _more_scans_than(limit: int, data: bytes, at: int) -> bool:
    """Return whether more than `limit` scans begin from the one at `at` to the end of the image."""
    scans = 0
    while at >= 0 and data[at + 1] != _EOI:
        scans += data[at + 1] == _SOS
        if scans > limit:
            return True
        length = 0 if data[at + 1] in _WITHOUT_LENGTH else int.from_bytes(data[at + 2 : at + 4], "big")
        match = _NEXT_MARKER.search(data, at + 2 + length)
        at = match.start() if match else -1
    return False
