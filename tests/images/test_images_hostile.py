"""Odd and hostile images: each has the outcome that the page of data sets states, in both decoders alike."""

from __future__ import annotations

import io
import logging
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featcache.errors import ImageError
from featcache.images.load import decode, load_image
from featcache.images.resize import MAX_PIXELS
from featcache.images.views import draw_view
from featcache.recipe import Preprocessing

DECODERS = ("fast", "pillow")
MEAN_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
CENTRE = Preprocessing(224, 224, 256, "bicubic", "center", *MEAN_STD)
SQUASH = Preprocessing(224, 224, 224, "bicubic", "squash", *MEAN_STD)


def colours(width: int, height: int, *, seed: int = 0) -> Image.Image:
    """Return a smooth picture with some grain, as a photo is."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((width, height))
    grain = rng.integers(-6, 7, (height, width, 1))
    return Image.fromarray((np.asarray(image).astype(int) + grain).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def rgb(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def png(width: int, height: int, *, depth: int = 8, colour: int = 2, pixels: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff_of_12_bits(values: list[int]) -> bytes:
    """Return a grey TIFF of one row, two samples packed into three bytes."""
    bits = "".join(f"{value:012b}" for value in values)
    row = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    tags = [(256, len(values)), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, len(row))]
    start = 8 + len(row) + len(row) % 2
    directory = (
        struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHLHH", t, 3, 1, v, 0) for t, v in tags) + bytes(4)
    )
    return b"II*\0" + struct.pack("<L", start) + row.ljust(start - 8, b"\0") + directory


def jpeg_that_says(width: int, height: int) -> bytes:
    data = bytearray(encoded(colours(16, 16), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def jpeg_of_scans(count: int) -> bytes:
    """Return a progressive JPEG whose first scan comes `count` times."""
    data = encoded(colours(16, 16), "JPEG", progressive=True)
    first = data.index(b"\xff\xda")
    second = data.index(b"\xff\xc4", first)
    return data[:first] + data[first:second] * count + b"\xff\xd9"


def jpeg_with_segment(segment: bytes, *, marker: int = 0xE1) -> bytes:
    data = encoded(colours(40, 30), "JPEG")
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(segment) + 2) + segment + data[2:]


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "the file is empty"),
    "text": (lambda: b"not an image at all, but some words " * 9, "not an image"),
    "html": (lambda: b"<!DOCTYPE html><html><body>404</body></html>", "not an image"),
    "svg": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "not an image"),
    "postscript": (lambda: encoded(colours(9, 9), "EPS"), "not an image"),
    "heic": (lambda: b"\0\0\0\x18ftypheic" + bytes(90), "HEIC photos are not read: save them as JPEG"),
    "zeros": (lambda: bytes(1000), "not an image"),
    "only the signature": (lambda: b"\xff\xd8\xff", "truncated JPEG"),
    "jpeg cut in the header": (lambda: encoded(colours(90, 90), "JPEG")[:100], "truncated JPEG"),
    "jpeg cut before its data": (
        lambda: (d := encoded(colours(9, 9), "JPEG"))[: d.index(b"\xff\xda")],
        "truncated JPEG",
    ),
    "jpeg cut in the data": (lambda: encoded(colours(90, 90), "JPEG", quality=95)[:-900], "truncated"),
    "progressive jpeg cut": (lambda: encoded(colours(90, 90), "JPEG", progressive=True)[:-900], "truncated"),
    "jpeg without its end mark": (lambda: encoded(colours(90, 90), "JPEG")[:-2], "truncated"),
    "cmyk jpeg cut": (lambda: encoded(colours(90, 90).convert("CMYK"), "JPEG")[:-900], "truncated"),
    "jpeg of no size": (lambda: jpeg_that_says(16, 0), "its size is 16x0 pixels"),
    "jpeg without a frame": (
        lambda: encoded(colours(9, 9), "JPEG").replace(b"\xff\xc0", b"\xff\xfe"),
        "no frame header",
    ),
    "jpeg of 12 bits": (
        lambda: encoded(colours(9, 9), "JPEG").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
        "8 bits",
    ),
    "png cut": (lambda: encoded(colours(90, 90), "PNG")[:-3000], "truncated PNG"),
    "png of a wrong checksum": (lambda: png(9, 9, pixels=bytes(9 * 28))[:-20] + bytes(20), "truncated PNG"),
    "png without pixels": (lambda: png(9, 9), "damaged image"),
    "gif cut": (lambda: encoded(colours(90, 90), "GIF")[:-900], "damaged image"),
    "webp cut": (lambda: encoded(colours(90, 90), "WEBP")[:-500], "damaged image"),
    "tiff cut": (lambda: encoded(colours(90, 90), "TIFF")[:-9000], "not an image|damaged image"),
    "jpeg bomb": (lambda: jpeg_that_says(65500, 65500), f"at most {MAX_PIXELS} pixels, this one has 65500x65500"),
    "jpeg just above the limit": (lambda: jpeg_that_says(16384, 8193), f"at most {MAX_PIXELS} pixels"),
    "png bomb": (lambda: png(100_000, 100_000), "pixels"),
    "png just above the limit": (lambda: png(16384, 8193, pixels=bytes(99)), f"at most {MAX_PIXELS} pixels"),
    "bomb of scans": (lambda: jpeg_of_scans(101), "100 scans, this one has more"),
    "float tiff": (lambda: encoded(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"), "no stated range"),
    "int32 tiff": (lambda: encoded(Image.fromarray(np.ones((9, 9), np.int32)), "TIFF"), "no stated range"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_images_have_one_reason_in_both_decoders(name: str) -> None:
    data, expected = REFUSED[name][0](), REFUSED[name][1]
    reasons = set()
    for decoder in DECODERS:
        with pytest.raises(ImageError, match=expected) as caught:
            decode(data, decoder=decoder)  # type: ignore[arg-type]
        reasons.add(str(caught.value))
        with pytest.raises(ImageError, match=expected) as caught:
            load_image(data, CENTRE, decoder=decoder, dct_scaling=True)  # type: ignore[arg-type]
        reasons.add(str(caught.value))
    assert len(reasons) == 1
    (reason,) = reasons
    assert len(reason.splitlines()) == 1
    assert " at 0x" not in reason


ALPHA = Image.merge("RGBA", (*colours(40, 30).split(), Image.linear_gradient("L").resize((40, 30))))
PALETTE = colours(40, 30).quantize(16)
FRAMES = [colours(40, 30, seed=seed) for seed in range(3)]
GREY16 = np.arange(40 * 30, dtype=np.uint16).reshape(30, 40) * 54
GREY16_HIGH = np.repeat((GREY16 >> 8).astype(np.uint8)[..., None], 3, axis=2)
COLOUR16 = np.stack([GREY16, GREY16[::-1], GREY16[:, ::-1]], axis=-1)


def over_white(image: Image.Image) -> np.ndarray:
    """Return the picture laid over white, within one grey level of the exact blend."""
    pixels = np.asarray(image.convert("RGBA")).astype(float)
    alpha = pixels[..., 3:] / 255
    return pixels[..., :3] * alpha + 255 * (1 - alpha)


# the outcome, and how many grey levels it may be away: none but where an arithmetic mean is rounded
READ: dict[str, tuple[Callable[[], bytes], Callable[[], np.ndarray], int]] = {
    "grey png": (lambda: encoded(colours(40, 30).convert("L"), "PNG"), lambda: rgb(colours(40, 30).convert("L")), 0),
    "grey jpeg": (
        lambda: encoded(Image.new("L", (40, 30), 77), "JPEG"),
        lambda: np.full((30, 40, 3), 77, np.uint8),
        0,
    ),
    "black and white": (
        lambda: encoded(colours(40, 30).convert("1"), "PNG"),
        lambda: rgb(colours(40, 30).convert("1")),
        0,
    ),
    "palette png": (lambda: encoded(PALETTE, "PNG"), lambda: rgb(PALETTE), 0),
    "palette gif": (lambda: encoded(PALETTE, "GIF"), lambda: rgb(PALETTE), 0),
    "opaque alpha": (
        lambda: encoded(colours(40, 30).convert("RGBA"), "PNG"),
        lambda: rgb(colours(40, 30)),
        0,
    ),
    "transparent": (
        lambda: encoded(Image.new("RGBA", (40, 30), (200, 10, 10, 0)), "PNG"),
        lambda: np.full((30, 40, 3), 255, np.uint8),
        0,
    ),
    "alpha png": (lambda: encoded(ALPHA, "PNG"), lambda: over_white(ALPHA), 1),
    "alpha webp": (lambda: encoded(ALPHA, "WEBP", lossless=True, exact=True), lambda: over_white(ALPHA), 1),
    "grey alpha": (lambda: encoded(ALPHA.convert("LA"), "PNG"), lambda: over_white(ALPHA.convert("LA")), 1),
    "transparent palette entry": (
        lambda: encoded(PALETTE, "PNG", transparency=3),
        lambda: np.where((np.asarray(PALETTE) == 3)[..., None], 255, rgb(PALETTE)),
        0,
    ),
    "transparent palette": (
        lambda: encoded(PALETTE, "PNG", transparency=bytes(range(0, 256, 16))),
        lambda: over_white(
            Image.merge("RGBA", (*PALETTE.convert("RGB").split(), Image.fromarray(np.asarray(PALETTE) * np.uint8(16))))
        ),
        1,
    ),
    "transparent colour": (
        lambda: encoded(Image.new("RGB", (40, 30), (9, 8, 7)), "PNG", transparency=(9, 8, 7)),
        lambda: np.full((30, 40, 3), 255, np.uint8),
        0,
    ),
    "16-bit png": (lambda: encoded(Image.fromarray(GREY16), "PNG"), lambda: GREY16_HIGH, 0),
    "16-bit tiff": (lambda: encoded(Image.fromarray(GREY16), "TIFF"), lambda: GREY16_HIGH, 0),
    "16-bit pgm": (lambda: b"P5 40 30 65535\n" + GREY16.astype(">u2").tobytes(), lambda: GREY16_HIGH, 0),
    "12-bit tiff": (
        lambda: tiff_of_12_bits([0, 15, 16, 2048, 4080, 4095]),
        lambda: np.repeat(np.uint8([[[0], [0], [1], [128], [255], [255]]]), 3, axis=2),
        0,
    ),
    "16-bit colour png": (
        lambda: png(40, 30, depth=16, pixels=b"".join(b"\0" + row.astype(">u2").tobytes() for row in COLOUR16)),
        lambda: (COLOUR16 >> 8).astype(np.uint8),
        0,
    ),
    "cmyk tiff": (
        lambda: encoded(colours(40, 30).convert("CMYK"), "TIFF"),
        lambda: rgb(colours(40, 30).convert("CMYK")),
        0,
    ),
    "cmyk jpeg": (
        lambda: encoded(Image.new("CMYK", (40, 30), (0, 255, 255, 0)), "JPEG", quality=100),
        lambda: np.full((30, 40, 3), (255, 0, 0), np.uint8),
        1,
    ),
    "animated gif": (
        lambda: encoded(PALETTE, "GIF", save_all=True, append_images=[f.quantize(16) for f in FRAMES[1:]]),
        lambda: rgb(PALETTE),
        0,
    ),
    "animated png": (
        lambda: encoded(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]),
        lambda: rgb(FRAMES[0]),
        0,
    ),
    "default image of an animated png": (
        lambda: encoded(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:], default_image=True),
        lambda: rgb(FRAMES[0]),
        0,
    ),
    "animated webp": (
        lambda: encoded(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:], lossless=True),
        lambda: rgb(FRAMES[0]),
        0,
    ),
    "several pages": (
        lambda: encoded(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]),
        lambda: rgb(FRAMES[0]),
        0,
    ),
    "bmp": (lambda: encoded(FRAMES[0], "BMP"), lambda: rgb(FRAMES[0]), 0),
    "ppm": (lambda: encoded(FRAMES[0], "PPM"), lambda: rgb(FRAMES[0]), 0),
    "tga": (lambda: encoded(FRAMES[0], "TGA"), lambda: rgb(FRAMES[0]), 0),
    "qoi": (lambda: encoded(FRAMES[0], "QOI"), lambda: rgb(FRAMES[0]), 0),
    "jpeg 2000": (lambda: encoded(FRAMES[0], "JPEG2000"), lambda: rgb(FRAMES[0]), 0),
    "avif": (lambda: encoded(FRAMES[0], "AVIF", quality=100, subsampling="4:4:4"), lambda: rgb(FRAMES[0]), 3),
    "first of an mpo": (
        lambda: encoded(FRAMES[0], "MPO", save_all=True, append_images=FRAMES[1:]),
        lambda: np.asarray(Image.open(io.BytesIO(encoded(FRAMES[0], "JPEG")))),
        0,
    ),
    "1x1": (lambda: encoded(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG"), lambda: np.uint8([[[9, 8, 7]]]), 0),
    "jpeg followed by other data": (
        lambda: encoded(FRAMES[0], "JPEG") + b"\xff\xda\xff\xd8 a film" * 999,
        lambda: np.asarray(Image.open(io.BytesIO(encoded(FRAMES[0], "JPEG")))),
        0,
    ),
    "100 scans": (
        lambda: jpeg_of_scans(100),
        lambda: np.asarray(Image.open(io.BytesIO(jpeg_of_scans(1)))),
        0,
    ),
}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", READ)
def test_odd_images_have_the_stated_pixels(name: str, decoder: Any) -> None:
    make, expected, tolerance = READ[name]
    pixels, stated = decode(make(), decoder=decoder), expected()
    assert pixels.shape == stated.shape
    assert np.abs(pixels.astype(float) - stated).max() <= tolerance


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("flip", range(3, 9))
def test_damage_that_libjpeg_repairs_is_read_alike(decoder: Any, flip: int) -> None:
    data = bytearray(encoded(colours(200, 150), "JPEG", quality=90))
    data[-500 * flip] ^= 0x55
    damaged = decode(bytes(data), decoder=decoder)
    np.testing.assert_array_equal(damaged, np.asarray(Image.open(io.BytesIO(bytes(data)))))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0garbage garbage garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40,
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0",  # the orientation is a text
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\x7f\x10\0\0\0\0\0\0\0",  # two thousand million values
    ],
    ids=range(7),
)
def test_damaged_exif_is_upright(decoder: Any, exif: bytes) -> None:
    expected = np.asarray(Image.open(io.BytesIO(encoded(colours(40, 30), "JPEG"))))
    np.testing.assert_array_equal(decode(jpeg_with_segment(exif), decoder=decoder), expected)
    as_png = encoded(Image.fromarray(expected), "PNG", exif=exif) if exif else encoded(Image.fromarray(expected), "PNG")
    np.testing.assert_array_equal(decode(as_png, decoder=decoder), expected)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("marker", [0xE0, 0xE2, 0xEE, 0xFE])
@pytest.mark.parametrize("body", [b"", b"JFIF", b"Adobe", b"MPF\0II*\0garbage", b"ICC_PROFILE\0"])
def test_damaged_metadata_costs_no_image(decoder: Any, marker: int, body: bytes) -> None:
    expected = np.asarray(Image.open(io.BytesIO(encoded(colours(40, 30), "JPEG"))))
    np.testing.assert_array_equal(decode(jpeg_with_segment(body, marker=marker), decoder=decoder), expected)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("preprocessing", [CENTRE, SQUASH], ids=["center", "squash"])
@pytest.mark.parametrize("size", [(1, 1), (30_000, 40), (40, 30_000), (30_000, 200)])
def test_extreme_shapes_are_loaded(decoder: Any, preprocessing: Preprocessing, size: tuple[int, int]) -> None:
    data = encoded(Image.new("RGB", size, (30, 60, 90)), "PNG")
    for view in (None, draw_view(0, bytes(32), 1)):
        pixels = load_image(data, preprocessing, decoder=decoder, view=view)
        assert pixels.shape == (224, 224, 3)
        assert (pixels == np.uint8([30, 60, 90])).all()


def test_an_image_too_thin_to_be_resized_fails_alike() -> None:
    for size in [(65_000, 1), (1, 65_000)]:
        data = encoded(Image.new("RGB", size), "JPEG")
        reasons = set()
        for decoder in DECODERS:
            with pytest.raises(ImageError, match="too long and thin") as caught:
                load_image(data, CENTRE, decoder=decoder)  # type: ignore[arg-type]
            reasons.add(str(caught.value))
        assert len(reasons) == 1
        assert load_image(data, SQUASH).shape == (224, 224, 3)


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_limit_is_checked_before_memory_is_taken(decoder: Any) -> None:
    import tracemalloc

    tracemalloc.start()
    for data in (jpeg_that_says(65500, 65500), png(16384, 8193, pixels=bytes(99)), jpeg_of_scans(101)):
        with pytest.raises(ImageError):
            decode(data, decoder=decoder)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000


def test_pillow_warnings_do_not_leak_and_filters_are_put_back() -> None:
    odd = [
        encoded(Image.new("1", (12_000, 8_000)), "PNG"),  # above Pillow's warning, below our limit
        jpeg_with_segment(b"Exif\0\0II*\0\xff\xff\xff\xff"),
        encoded(PALETTE, "PNG", transparency=bytes(range(16))),
        encoded(FRAMES[0], "PNG", exif=b"Exif\0\0II*\0\x08\0\0\0\x09\0garbage"),
        encoded(FRAMES[0], "TIFF")[:-3],
    ]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        threads = [
            threading.Thread(target=_decode_or_fail, args=(data, decoder))
            for data in odd[1:] * 6
            for decoder in DECODERS
        ]
        threads.append(threading.Thread(target=_decode_or_fail, args=(odd[0], "pillow")))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert list(warnings.filters) == before
    assert [str(warning.message) for warning in seen] == []
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(odd[0]))
    assert logging.getLogger("PIL").hasHandlers()


def _decode_or_fail(data: bytes, decoder: Any) -> None:
    try:
        decode(data, decoder=decoder)
    except ImageError:
        return
