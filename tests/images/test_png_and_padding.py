"""PNG files with large metadata, 12-bit pictures in 16-bit files, files cut and padded to their size again."""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

import featcache.formats.web
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


def colour_png(values: np.ndarray) -> bytes:
    """Return a PNG of 16 bits per colour, which Pillow does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def colour_tiff(values: np.ndarray) -> bytes:
    """Return an uncompressed TIFF of 16 bits per colour, which Pillow does not write."""
    height, width, _ = values.shape
    pixels = values.astype("<u2").tobytes()
    bits = 8 + len(pixels)
    tags = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, bits), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 8),
        (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(pixels)), (284, 3, 1, 1),
    ]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + b"\0" * 4
    return b"II*\0" + struct.pack("<I", bits + 6) + pixels + struct.pack("<3H", 16, 16, 16) + directory


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


@pytest.mark.parametrize("file", [colour_png, colour_tiff])
@pytest.mark.parametrize(("largest", "expected"), [(4095, None), (256, None), (0, 0), (4096, 16), (65535, 255)])
def test_twelve_bits_of_sixteen_bit_colours_are_said_to_be_such(
    file: Callable[[np.ndarray], bytes], largest: int, expected: int | None
) -> None:
    """Pillow keeps the highest 8 of 16 bits, 4 of a 12-bit camera's: a nearly black row would be nobody's wish."""
    data = file(np.full((8, 6, 3), largest, dtype=np.uint16))
    if expected is None:
        with pytest.raises(ImageError, match="none above 4095"):
            decode(data)
    else:
        assert decode(data).tolist() == np.full((8, 6, 3), expected).tolist()


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_page_of_a_bundle_refuses_what_a_row_fails_on(tmp_path: Path) -> None:
    """Cut, padded and 16-bit files are stopped before the browser decodes them its own way; others are left to it."""
    jpeg, png = _saved(_picture(), "JPEG"), _saved(_picture(), "PNG")
    exif = Image.Exif()
    exif[0x010E] = "a preview's end mark: \xff\xd9"
    deep = _saved(Image.fromarray(np.full((8, 8), 9999, dtype=np.uint16)), "PNG")
    files = {
        "whole.jpg": (jpeg, None), "whole.png": (png, None), "no image": (b"none", None), "empty": (b"", None),
        "gif": (_saved(_picture(), "GIF"), None), "exif.jpg": (_saved(_picture(), "JPEG", exif=exif), None),
        "tail.jpg": (jpeg + b"\0" * 100, None), "tail.png": (png + b"x" * 100, None),
        "cut.jpg": (jpeg[:-2], "truncated JPEG"), "cut.png": (png[:-4], "truncated PNG"),
        "padded.jpg": (jpeg[: len(jpeg) // 2] + b"\0" * 9000, "truncated JPEG"),
        "padded.png": (png[: len(png) // 2] + b"\xff" * 9000, "truncated PNG"),
        "16 bits.png": (deep, "8 bits per channel"), "colours.png": (colour_png(np.full((2, 2, 3), 4095)), "8 bits"),
    }  # fmt: skip
    for name, (data, _) in files.items():
        (tmp_path / name).write_bytes(data)
    page = Path(featcache.formats.web.__file__).parent / "assets" / "images" / "file.js"
    (tmp_path / "file.mjs").write_bytes(page.read_bytes())
    (tmp_path / "ask.mjs").write_text(
        "import { refusal } from './file.mjs'; import { readFileSync } from 'fs';\n"
        "const names = JSON.parse(process.argv[2]);\n"
        "console.log(JSON.stringify(names.map((name) => refusal(new Uint8Array(readFileSync(name))))));\n"
    )
    command = ["node", "ask.mjs", json.dumps(list(files))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    for (name, (data, expected)), said in zip(files.items(), json.loads(done.stdout), strict=True):
        assert (said is None) if expected is None else (expected in said), (name, said)
        if said is not None and "truncated" in said:
            with pytest.raises(ImageError, match="truncated"):
                decode(data)


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
