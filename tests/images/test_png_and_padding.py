"""PNG files with large metadata, 12-bit pictures in 16-bit files, files cut and padded to their size again."""

from __future__ import annotations

import io
import time
import tracemalloc

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from featcache.errors import ImageError
from featcache.images.load import decode
from featcache.images.png import without_bulk


def _picture() -> Image.Image:
    patches = np.random.default_rng(0).integers(0, 256, size=(6, 8, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((160, 120), Image.Resampling.BICUBIC)


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _texts(*, packed: int = 0, plain: int = 0, xmp: str = "") -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    if packed:
        info.add_text("comment", "x" * packed, zip=True)
    if plain:
        info.add_text("other", "y" * plain)
    if xmp:
        info.add_itxt("XML:com.adobe.xmp", xmp, zip=True)
    return info


XMP = '<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'


@pytest.mark.parametrize("decoder", ["fast", "pillow"])
@pytest.mark.parametrize(
    "options",
    [
        {"pnginfo": _texts(packed=3_000_000)}, {"pnginfo": _texts(plain=3_000_000)}, {"icc_profile": b"p" * 3_000_000},
        {"pnginfo": _texts(packed=200_000_000)}, {"pnginfo": _texts(xmp="z" * 20_000_000)},
    ],
    ids=["packed text", "plain text", "colour profile", "a bomb of text", "a bomb of XMP"],
)  # fmt: skip
def test_png_with_large_metadata_is_read(decoder: str, options: dict[str, object]) -> None:
    """As the same picture without: nothing is unpacked that is not needed, bombs included."""
    data = _saved(_picture(), "PNG", **options)
    started = time.perf_counter()
    tracemalloc.start()
    pixels = decode(data, decoder=decoder)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(pixels, np.asarray(_picture()))
    assert most < 40_000_000
    assert time.perf_counter() - started < 2


def test_orientation_in_a_text_is_kept() -> None:
    """It stands in XMP, packed or not, beside a large comment."""
    info = _texts(packed=3_000_000, xmp=XMP)
    assert decode(_saved(_picture(), "PNG", pnginfo=info)).shape == (160, 120, 3)


def test_png_without_metadata_is_not_copied() -> None:
    data = _saved(_picture(), "PNG")
    assert without_bulk(data) is data


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(("largest", "expected"), [(4095, 255), (2048, 128), (4096, 16), (65535, 255)])
def test_twelve_bits_in_a_sixteen_bit_file_are_seen(kind: str, largest: int, expected: int) -> None:
    """Without a value above 4095 the highest 8 of 12 bits are kept, else of 16."""
    values = np.full((8, 8), largest, dtype=np.uint16)
    pixels = decode(_saved(Image.fromarray(values), kind))
    assert pixels.max() == pytest.approx(expected, abs=0.5)


@pytest.mark.parametrize("decoder", ["fast", "pillow"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
@pytest.mark.parametrize("padding", [b"", b"\0", b"\xff", b"\0\xff"])
def test_cut_and_padded_file_is_called_truncated(decoder: str, kind: str, share: float, padding: bytes) -> None:
    """As by a download that reserved the whole size: of JPEG zeros would else be decoded as grey."""
    data = _saved(_picture(), kind)
    kept = int(share * len(data))
    padded = (data[:kept] + padding * len(data))[: len(data)] if padding else data[:kept]
    with pytest.raises(ImageError, match="truncated"):
        decode(padded, decoder=decoder)


def test_progressive_jpeg_and_trailing_bytes_are_read() -> None:
    """What lies behind the end mark is no padding of a cut file."""
    for data in (_saved(_picture(), "JPEG", progressive=True), _saved(_picture(), "JPEG") + bytes(1000)):
        assert decode(data).shape == (120, 160, 3)
