"""The chunks of a PNG file, read before a decoder sees a byte of it.

Colour profiles and texts change no pixel here and may be of any size, compressed ones many times their bytes: they are
taken out unread, so that they can neither fail an image nor fill the memory. What can say how the picture is turned
stays, up to `MOST_ORIENTATION_BYTES` when unpacked.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MOST_ORIENTATION_BYTES = 1 << 20

_BULK = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")
_ORIENTATION = (b"XML:com.adobe.xmp", b"Raw profile type exif")  # keywords; the second is ImageMagick's


def without_bulk(data: bytes) -> bytes:
    """Return the PNG file `data` without colour profile and texts, those that may state its orientation left in."""
    kept, at = [], 0
    for kind, start, stop in _chunks(data):
        if kind in _BULK and not (kind != b"iCCP" and _may_orient(kind, data[start + 8 : stop - 4])):
            kept.append(data[at:start])
            at = stop
    return b"".join([*kept, data[at:]]) if kept else data


def has_end(data: bytes) -> bool:
    """Return whether the chunks of the PNG file `data` lead to its end mark."""
    return any(kind == b"IEND" for kind, _, _ in _chunks(data))


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, start, stop) of each whole chunk, up to the end mark or the first that is none."""
    at = len(SIGNATURE)
    while at + 12 <= len(data):
        kind, stop = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        if stop > len(data) or not kind.isalpha():
            return
        yield kind, at, stop
        if kind == b"IEND":
            return
        at = stop


def _may_orient(kind: bytes, body: bytes) -> bool:
    """Return whether a text chunk is one of those that can state an orientation, and small enough to be unpacked."""
    keyword, _, rest = body.partition(b"\0")
    if keyword not in _ORIENTATION or len(body) > MOST_ORIENTATION_BYTES:
        return False
    packed = b""
    if kind == b"zTXt":
        packed = rest[1:]
    elif kind == b"iTXt" and rest[:1] == b"\1":
        packed = rest[2:].split(b"\0", 2)[-1]
    if not packed:
        return True
    unpacking = zlib.decompressobj()
    try:
        unpacking.decompress(packed, MOST_ORIENTATION_BYTES)
    except zlib.error:
        return False
    return unpacking.eof
