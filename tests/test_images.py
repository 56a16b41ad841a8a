"""Pixels: Pillow's decoder is timm's transform exactly, the fast one is within 2 grey levels, both fail alike."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from featcache.errors import ImageError
from featcache.images import MAX_PIXELS, decode, load_image, resize_crop
from featcache.recipe import Preprocessing
from featcache.timm_import import import_timm
from featcache.views import draw_view

MEAN_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
USUAL = Preprocessing(224, 224, 256, "bicubic", "center", *MEAN_STD)
DECODERS = ["fast", "pillow"]


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


def timm_pixels(image: Image.Image, p: Preprocessing) -> np.ndarray:
    """Return what timm's own evaluation transform makes of the image, before its normalisation."""
    transform = import_timm().data.create_transform(
        (3, p.height, p.width),
        crop_pct=p.height / p.resize,
        crop_mode=p.crop_mode,
        interpolation=p.interpolation,
        normalize=False,
    )
    return np.asarray(transform(image.convert("RGB"))).transpose(1, 2, 0)


def photos_of(clothing10: Path, count: int) -> list[bytes]:
    paths = sorted(clothing10.glob("*/*/*.jpg"))
    return [path.read_bytes() for path in paths[:: max(1, len(paths) // count)]]


# ---------------------------------------------------------------- parity


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(
    ("crop_mode", "size", "resize"),
    [("center", 224, 256), ("center", 224, 235), ("center", 160, 182), ("center", 224, 224), ("squash", 224, 224)],
)
def test_pillow_is_timms_transform_pixel_for_pixel(interpolation: str, crop_mode: str, size: int, resize: int) -> None:
    preprocessing = Preprocessing(size, size, resize, interpolation, crop_mode, *MEAN_STD)
    # odd differences to the crop round half to even; 256 is no resize at all; 9 x 7 is enlarged
    for width, height in [(400, 533), (533, 400), (301, 299), (257, 256), (256, 256), (9, 7), (1000, 90), (1, 1)]:
        image = colours(width, height)
        ours = load_image(encoded(image, "PNG"), preprocessing, decoder="pillow")
        np.testing.assert_array_equal(ours, timm_pixels(image, preprocessing), err_msg=f"{width}x{height}")


def test_pillow_is_timms_transform_on_real_photos(clothing10: Path) -> None:
    for data in photos_of(clothing10, 30):
        ours = load_image(data, USUAL, decoder="pillow")
        np.testing.assert_array_equal(ours, timm_pixels(Image.open(io.BytesIO(data)), USUAL))


def test_fast_is_within_two_grey_levels_on_real_photos(clothing10: Path) -> None:
    worst, total, count = 0, 0, 0
    for i, data in enumerate(photos_of(clothing10, 150)):
        for interpolation in ("bicubic", "bilinear"):
            preprocessing = Preprocessing(224, 224, 235, interpolation, "center", *MEAN_STD)
            for view in (None, draw_view(0, bytes([i]) * 32, 1)):
                fast, slow = (load_image(data, preprocessing, decoder=name, view=view) for name in DECODERS)
                difference = np.abs(fast.astype(int) - slow)
                worst, total, count = (
                    max(worst, int(difference.max())),
                    total + int(difference.sum()),
                    count + fast.size,
                )
    assert worst <= 2
    assert total / count < 0.05


def test_both_decoders_return_the_same_pixels(clothing10: Path) -> None:
    photos = [*photos_of(clothing10, 20), encoded(colours(61, 47).convert("L"), "JPEG")]
    photos += [encoded(colours(61, 47), "JPEG", subsampling=s, progressive=p) for s in (0, 1, 2) for p in (False, True)]
    for data in photos:
        for min_side in (None, 10, 20, 100):
            fast, slow = (decode(data, decoder=name, min_side=min_side) for name in DECODERS)
            np.testing.assert_array_equal(fast, slow)


def test_the_fast_path_is_taken_for_ordinary_jpegs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *a, **k: calls.append(k) or original(*a, **k))
    decode(encoded(colours(40, 30), "JPEG"), decoder="fast")
    decode(encoded(colours(40, 30).convert("L"), "JPEG"), decoder="fast")
    assert len(calls) == 2
    decode(encoded(colours(40, 30), "JPEG"), decoder="pillow")
    decode(encoded(colours(40, 30).convert("CMYK"), "JPEG"), decoder="fast")
    assert len(calls) == 2


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    ("side", "target", "expected"), [(512, 64, 64), (511, 64, 128), (512, 100, 128), (256, 200, 256), (60, 64, 60)]
)
def test_dct_scaling_keeps_the_short_side(decoder: str, side: int, target: int, expected: int) -> None:
    data = encoded(colours(side, side * 3 // 2), "JPEG")
    assert decode(data, decoder=decoder, min_side=target).shape[1] == expected
    preprocessing = Preprocessing(48, 48, target, "bicubic", "center", *MEAN_STD)
    scaled = load_image(data, preprocessing, decoder=decoder, dct_scaling=True)
    by_hand = resize_crop(decode(data, decoder=decoder, min_side=target), preprocessing, decoder=decoder)
    np.testing.assert_array_equal(scaled, by_hand)
    plain = load_image(data, preprocessing, decoder=decoder)
    assert np.abs(plain.astype(int) - scaled).mean() < 4  # the same picture, by another filter
    assert decode(encoded(colours(512, 512), "PNG"), decoder=decoder, min_side=64).shape == (512, 512, 3)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("preprocessing", [USUAL, Preprocessing(32, 32, 32, "bicubic", "squash", *MEAN_STD)])
def test_pixels_are_written_into_out(decoder: str, form: str, preprocessing: Preprocessing) -> None:
    data = encoded(colours(300, 250), form)
    batch = np.full((3, preprocessing.height, preprocessing.width, 3), 77, np.uint8)
    result = load_image(data, preprocessing, decoder=decoder, out=batch[1])
    assert np.shares_memory(result, batch)
    np.testing.assert_array_equal(batch[1], load_image(data, preprocessing, decoder=decoder))
    assert (batch[[0, 2]] == 77).all()


def test_the_reference_decoder_loads_no_torch() -> None:
    code = """
import sys, io
from PIL import Image
from featcache.images import load_image
from featcache.recipe import Preprocessing
buffer = io.BytesIO(); Image.new("RGB", (50, 40), "red").save(buffer, "JPEG")
p = Preprocessing(32, 32, 36, "bicubic", "center", (0, 0, 0), (1, 1, 1))
assert load_image(buffer.getvalue(), p, decoder="pillow").shape == (32, 32, 3)
print("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"


# ---------------------------------------------------------------- odd images: one outcome each, in both decoders


def with_exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation_is_applied_as_pillow_does(decoder: str, form: str, orientation: int) -> None:
    data = encoded(colours(48, 32), form, exif=with_exif(orientation))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    np.testing.assert_array_equal(decode(data, decoder=decoder), expected)
    if form != "AVIF":  # its plugin writes the rotation into the container, and not for numbers beyond the standard
        assert expected.shape == ((48, 32, 3) if 5 <= orientation <= 8 else (32, 48, 3))


def jpeg_with_app1(segment: bytes) -> bytes:
    data = encoded(colours(40, 30), "JPEG")
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]


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
def test_damaged_exif_is_ignored(decoder: str, exif: bytes) -> None:
    expected = np.asarray(Image.open(io.BytesIO(encoded(colours(40, 30), "JPEG"))))
    np.testing.assert_array_equal(decode(jpeg_with_app1(exif), decoder=decoder), expected)


def png(width: int, height: int, *, pixels: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def jpeg_that_says(width: int, height: int) -> bytes:
    data = bytearray(encoded(colours(16, 16), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def scan_bomb() -> bytes:
    data = encoded(colours(16, 16), "JPEG", progressive=True)
    at = data.index(b"\xff\xc2")
    first, end = data.index(b"\xff\xda"), data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    large = bytearray(data[:first])
    large[at + 5 : at + 9] = struct.pack(">HH", 8000, 8000)
    return bytes(large) + data[first:end] * 200 + b"\xff\xd9"


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty"),
    "text": (lambda: b"not an image at all, but some words " * 9, "not an image"),
    "html": (lambda: b"<!DOCTYPE html><html><body>404</body></html>", "not an image"),
    "svg": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "not an image"),
    "eps": (lambda: encoded(colours(9, 9), "EPS"), "not an image"),
    "only the magic number": (lambda: b"\xff\xd8\xff", "image"),
    "jpeg cut in the header": (lambda: encoded(colours(90, 90), "JPEG")[:100], "image"),
    "jpeg cut in the data": (lambda: encoded(colours(90, 90), "JPEG", quality=95)[:-900], "truncated"),
    "png cut": (lambda: encoded(colours(90, 90), "PNG")[:-3000], "truncated|decoded"),
    "gif cut": (lambda: encoded(colours(90, 90), "GIF")[:-900], "truncated|decoded"),
    "webp cut": (lambda: encoded(colours(90, 90), "WEBP")[:-500], "WEBP|image"),
    "tiff cut": (lambda: encoded(colours(90, 90), "TIFF")[:-9000], "TIFF|image"),
    "jpeg bomb": (lambda: jpeg_that_says(65500, 65500), f"more than {MAX_PIXELS} pixels"),
    "jpeg just above the limit": (lambda: jpeg_that_says(16384, 8193), f"more than {MAX_PIXELS} pixels"),
    "png bomb": (lambda: png(100_000, 100_000), f"more than {MAX_PIXELS} pixels"),
    "png above the limit": (lambda: png(16384, 8193, pixels=bytes(99)), f"more than {MAX_PIXELS} pixels"),
    "scan bomb": (scan_bomb, "more scans"),
    "float tiff": (lambda: encoded(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"), "unknown range"),
    "int32 tiff": (lambda: encoded(Image.fromarray(np.ones((9, 9), np.int32)), "TIFF"), "unknown range"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_images_have_one_reason_in_both_decoders(name: str) -> None:
    data = REFUSED[name][0]()
    reasons = []
    for decoder in DECODERS:
        for load in (lambda d: decode(data, decoder=d), lambda d: load_image(data, USUAL, decoder=d)):
            with pytest.raises(ImageError, match=REFUSED[name][1]) as caught:
                load(decoder)
            reasons.append(str(caught.value))
    assert len(set(reasons)) == 1
    assert len(reasons[0].splitlines()) == 1 and " at 0x" not in reasons[0]


GREY16 = np.arange(40 * 30, dtype=np.uint16).reshape(30, 40) * 54
GREY16_HIGH = np.repeat((GREY16 >> 8).astype(np.uint8)[..., None], 3, axis=2)
ALPHA = Image.merge("RGBA", (*colours(40, 30).split(), Image.linear_gradient("L").resize((40, 30))))
PALETTE = colours(40, 30).quantize(16)
FRAMES = [colours(40, 30, seed=seed) for seed in range(3)]


def rgb(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


DECODED: dict[str, tuple[Callable[[], bytes], Callable[[], np.ndarray]]] = {
    "grey png": (lambda: encoded(colours(40, 30).convert("L"), "PNG"), lambda: rgb(colours(40, 30).convert("L"))),
    "1 bit": (lambda: encoded(colours(40, 30).convert("1"), "PNG"), lambda: rgb(colours(40, 30).convert("1"))),
    "palette png": (lambda: encoded(PALETTE, "PNG"), lambda: rgb(PALETTE)),
    "palette gif": (lambda: encoded(PALETTE, "GIF"), lambda: rgb(PALETTE)),
    "transparent palette": (lambda: encoded(PALETTE, "PNG", transparency=bytes(range(16))), lambda: rgb(PALETTE)),
    "alpha png": (lambda: encoded(ALPHA, "PNG"), lambda: np.asarray(ALPHA)[..., :3]),
    "grey alpha": (lambda: encoded(ALPHA.convert("LA"), "PNG"), lambda: rgb(ALPHA.convert("L"))),
    "alpha webp": (lambda: encoded(ALPHA, "WEBP", lossless=True, exact=True), lambda: np.asarray(ALPHA)[..., :3]),
    "16-bit png": (lambda: encoded(Image.fromarray(GREY16), "PNG"), lambda: GREY16_HIGH),
    "16-bit tiff": (lambda: encoded(Image.fromarray(GREY16), "TIFF"), lambda: GREY16_HIGH),
    "16-bit pgm": (lambda: b"P5 40 30 65535\n" + GREY16.astype(">u2").tobytes(), lambda: GREY16_HIGH),
    "cmyk tiff": (
        lambda: encoded(colours(40, 30).convert("CMYK"), "TIFF"),
        lambda: rgb(colours(40, 30).convert("CMYK")),
    ),
    "animated gif": (
        lambda: encoded(PALETTE, "GIF", save_all=True, append_images=[f.quantize(16) for f in FRAMES[1:]]),
        lambda: rgb(PALETTE),
    ),
    "animated png": (
        lambda: encoded(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]),
        lambda: rgb(FRAMES[0]),
    ),
    "animated webp": (
        lambda: encoded(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:], lossless=True),
        lambda: rgb(FRAMES[0]),
    ),
    "several pages": (
        lambda: encoded(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]),
        lambda: rgb(FRAMES[0]),
    ),
    "bmp": (lambda: encoded(FRAMES[0], "BMP"), lambda: rgb(FRAMES[0])),
    "tga": (lambda: encoded(FRAMES[0], "TGA"), lambda: rgb(FRAMES[0])),
    "qoi": (lambda: encoded(FRAMES[0], "QOI"), lambda: rgb(FRAMES[0])),
    "jpeg 2000": (lambda: encoded(FRAMES[0], "JPEG2000"), lambda: rgb(FRAMES[0])),
    "1 x 1": (lambda: encoded(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG"), lambda: np.uint8([[[9, 8, 7]]])),
}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", DECODED)
def test_odd_images_decode_to_the_stated_pixels(name: str, decoder: str) -> None:
    make, expected = DECODED[name]
    np.testing.assert_array_equal(decode(make(), decoder=decoder), expected())


@pytest.mark.parametrize("form", ["JPEG", "AVIF", "MPO"])
def test_lossy_odd_images_are_alike_in_both_decoders(form: str) -> None:
    image = colours(64, 48).convert("CMYK") if form == "JPEG" else colours(64, 48)
    options = {"save_all": True, "append_images": [colours(64, 48, seed=1)]} if form == "MPO" else {}
    fast, slow = (decode(encoded(image, form, **options), decoder=name) for name in DECODERS)
    np.testing.assert_array_equal(fast, slow)
    assert np.abs(fast.astype(int) - rgb(image)).mean() < 6


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("size", [(1, 1), (1, 30_000), (30_000, 1), (30_000, 40), (40, 30_000), (30_000, 1200)])
def test_extreme_shapes_are_loaded_in_bounded_memory(decoder: str, size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (30, 60, 90))
    view = draw_view(0, bytes(32), 1)
    for preprocessing in (USUAL, Preprocessing(224, 224, 224, "bicubic", "squash", *MEAN_STD)):
        for drawn in (None, view):
            pixels = load_image(encoded(image, "PNG"), preprocessing, decoder=decoder, view=drawn)
            assert pixels.shape == (224, 224, 3)
            assert (pixels == np.uint8([30, 60, 90])).all()


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_centre_of_a_very_wide_image_is_what_the_whole_resize_gives(
    decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(colours(9001, 61), "PNG")
    whole = load_image(data, USUAL, decoder="pillow")
    monkeypatch.setattr("featcache.images._MAX_RESIZED_PIXELS", 1 << 20)
    centre = load_image(data, USUAL, decoder=decoder)
    assert np.abs(whole.astype(int) - centre).max() <= 1


def test_pillows_warnings_do_not_leak_and_filters_are_put_back() -> None:
    large = encoded(Image.new("1", (12_000, 8_000)), "PNG")  # above Pillow's warning, below our limit
    odd = [
        large,
        jpeg_with_app1(b"Exif\0\0II*\0\xff\xff\xff\xff"),
        encoded(PALETTE, "PNG", transparency=bytes(range(16))),
    ]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        threads = [
            threading.Thread(target=lambda d=data, k=kind: decode(d, decoder=k))
            for data in odd[:1] + odd[1:] * 8
            for kind in DECODERS
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert list(warnings.filters) == before
    assert seen == []
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(large))
