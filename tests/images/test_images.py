"""The two decoders: equal to Pillow and timm, equal to each other, upright, into buffers, from several threads."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_photo
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from featcache.errors import ImageError, InputError
from featcache.images.load import decode, load_image, reduced_side, resize_crop
from featcache.images.orientation import read_orientation
from featcache.images.views import draw_view
from featcache.recipe import Preprocessing

DECODERS = ("fast", "pillow")


def preprocessing(
    height: int = 224,
    width: int = 224,
    *,
    resize: int = 256,
    interpolation: str = "bicubic",
    crop_mode: str = "center",
) -> Preprocessing:
    return Preprocessing(height, width, resize, interpolation, crop_mode, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def jpeg(width: int, height: int, *, seed: int = 0, mode: str = "RGB", **options: Any) -> bytes:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, size=(7, 9, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    noisy = np.clip(picture + rng.integers(-20, 20, size=picture.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def exif_with(orientation: int, *, order: str = "<") -> bytes:
    exif = Image.Exif()
    exif.endian = order
    exif[0x0112] = orientation
    return exif.tobytes()


def width_first(image: Image.Image, size: tuple[int, int], resample: int, *rest: Any, **named: Any) -> Image.Image:
    """Pillow's resize in the order of axes that it had until version 13, whatever the version."""
    assert not any(rest) and not any(named.values())
    return original_resize(original_resize(image, (size[0], image.height), resample), size, resample)


original_resize = Image.Image.resize


def by_timm(
    data: bytes, size: int, resize: int, interpolation: str, crop_mode: str, *, as_installed: bool = False
) -> np.ndarray:
    from featcache.backbone.timm_import import import_timm

    transform = import_timm().data.create_transform(
        (3, size, size),
        interpolation=interpolation,
        crop_pct=size / resize,
        crop_mode=crop_mode,
        normalize=False,
    )
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    with pytest.MonkeyPatch.context() as patch:
        if not as_installed:
            patch.setattr(Image.Image, "resize", width_first)
        return transform(image).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("size", "resize", "interpolation", "crop_mode"),
    [
        (224, 256, "bicubic", "center"),
        (224, 235, "bilinear", "center"),
        (96, 96, "bicubic", "center"),
        (64, 73, "lanczos", "center"),
        (48, 64, "nearest", "center"),
        (224, 224, "bicubic", "squash"),
        (33, 33, "bilinear", "squash"),
    ],
)
def test_pillow_equals_the_transform_of_timm_pixel_for_pixel(
    size: int, resize: int, interpolation: str, crop_mode: str
) -> None:
    chosen = preprocessing(size, size, resize=resize, interpolation=interpolation, crop_mode=crop_mode)
    for seed, shape in enumerate(
        [(400, 533), (533, 400), (301, 300), (256, 256), (97, 411), (20, 31), (224, 256), (1, 1)]
    ):
        data = jpeg(*shape, seed=seed)
        expected = by_timm(data, size, resize, interpolation, crop_mode)
        np.testing.assert_array_equal(load_image(data, chosen, decoder="pillow"), expected, err_msg=f"{shape}")
        difference = np.abs(load_image(data, chosen, decoder="fast").astype(int) - expected)
        assert difference.max() <= 2, shape


def test_photos_of_usual_shapes_equal_timm_under_the_installed_pillow() -> None:
    # Pillow 13 takes the height first only where it shrinks much more than the width: not here
    for seed, shape in enumerate([(400, 533), (533, 400), (640, 480), (300, 300), (500, 334), (120, 90), (224, 256)]):
        data = jpeg(*shape, seed=seed)
        expected = by_timm(data, 224, 256, "bicubic", "center", as_installed=True)
        np.testing.assert_array_equal(load_image(data, preprocessing(), decoder="pillow"), expected, err_msg=f"{shape}")


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 40), extra=st.integers(0, 9))
def test_any_size_is_cropped_as_by_timm(width: int, height: int, size: int, extra: int) -> None:
    # through torchvision's own classes: a crop_pct cannot state every pair of sizes
    chosen = preprocessing(size, size, resize=size + extra)
    rng = np.random.default_rng(width * 100 + height)
    pixels = rng.integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    torchvision = torchvision_transforms()
    transform = torchvision.Compose(
        [torchvision.Resize(size + extra, torchvision.InterpolationMode.BICUBIC), torchvision.CenterCrop(size)]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", width_first)
        expected = np.asarray(transform(Image.fromarray(pixels)))
    np.testing.assert_array_equal(resize_crop(pixels, chosen, decoder="pillow"), expected)
    # noise, enlarged: the worst case of two roundings
    assert np.abs(resize_crop(pixels, chosen, decoder="fast").astype(int) - expected).max() <= 2


def torchvision_transforms() -> Any:
    from featcache.backbone.timm_import import import_timm

    import_timm()
    from torchvision import transforms

    return transforms


@pytest.mark.shared
def test_real_photos_are_at_most_two_levels_apart_and_equal_timm(clothing10: Path) -> None:
    photos = sorted(clothing10.rglob("*.jpg"))[::16]
    assert len(photos) > 100
    largest, total = 0, 0.0
    for photo in photos:
        data = photo.read_bytes()
        pillow = load_image(data, preprocessing(), decoder="pillow")
        np.testing.assert_array_equal(pillow, by_timm(data, 224, 256, "bicubic", "center"), err_msg=str(photo))
        np.testing.assert_array_equal(decode(data, decoder="fast"), decode(data, decoder="pillow"))
        difference = np.abs(load_image(data, preprocessing(), decoder="fast").astype(int) - pillow)
        largest, total = max(largest, int(difference.max())), total + difference.mean()
    assert largest <= 2
    assert total / len(photos) < 0.05


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation_is_applied_as_by_pillow(decoder: Any, order: str, orientation: int) -> None:
    data = jpeg(60, 40, exif=exif_with(orientation, order=order))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    np.testing.assert_array_equal(decode(data, decoder=decoder), np.asarray(expected))
    assert expected.size == ((40, 60) if orientation in (5, 6, 7, 8) else (60, 40))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF"])
def test_orientation_of_other_formats(decoder: Any, name: str) -> None:
    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(jpeg(60, 40)))
    image.save(buffer, name, exif=exif_with(6), **({"lossless": True} if name == "WEBP" else {}))
    expected = np.rot90(np.asarray(image), -1)
    np.testing.assert_array_equal(decode(buffer.getvalue(), decoder=decoder), expected)


def test_orientation_from_xmp_where_exif_has_none() -> None:
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = jpeg(60, 40, xmp=packet)
    assert Image.open(io.BytesIO(data)).getexif().get(0x0112) == 6
    assert decode(data).shape == (60, 40, 3)
    assert decode(jpeg(60, 40, xmp=packet, exif=exif_with(1))).shape == (40, 60, 3)


@settings(max_examples=300, deadline=None)
@given(
    order=st.sampled_from(["little", "big"]),
    entries=st.lists(
        st.tuples(
            st.sampled_from([0x0112, 0x0100, 0x8769, 0x0132]),
            st.sampled_from([3, 4, 8, 9, 3, 3]),
            st.integers(1, 2),
            st.integers(0, 9),
        ),
        max_size=4,
        unique_by=lambda entry: entry[
            0
        ],  # of a tag that comes twice Pillow takes the first or the last, by its version
    ),
)
def test_reading_the_tag_agrees_with_pillow(order: str, entries: list[tuple[int, int, int, int]]) -> None:
    body = b"".join(_entry(order, *entry) for entry in entries)
    exif = b"Exif\0\0" + (b"II*\0\x08\0\0\0" if order == "little" else b"MM\0*\0\0\0\x08")
    exif += len(entries).to_bytes(2, order) + body + bytes(64)
    pillow = Image.Exif()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of more values than the tag may have
        pillow.load(exif)
        expected = pillow.get(0x0112, 1)
    assert read_orientation(exif, None) == (expected if expected in range(1, 9) else 1)


def _entry(order: Any, tag: int, kind: int, count: int, value: int) -> bytes:
    size = {3: 2, 8: 2}.get(kind, 4)
    count = count if size * count <= 4 else 1
    number = value.to_bytes(size, order).ljust(4, b"\0")
    return tag.to_bytes(2, order) + kind.to_bytes(2, order) + count.to_bytes(4, order) + number


@settings(max_examples=300, deadline=None)
@given(exif=st.binary(max_size=60), order=st.sampled_from([b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b""]))
def test_damaged_exif_is_upright_and_never_an_error(exif: bytes, order: bytes) -> None:
    assert read_orientation(b"Exif\0\0" + order + exif, None) in range(1, 9)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    "options",
    [
        {"progressive": True},
        {"subsampling": 0},
        {"subsampling": 1},
        {"quality": 10},
        {"mode": "L"},
        {"mode": "CMYK"},
        {"restart_marker_rows": 1},
        {"keep_rgb": True},
        {"icc_profile": b"x" * 70_000, "comment": b"a comment"},
    ],
)
def test_every_coding_of_jpeg_is_decoded_as_by_pillow(decoder: Any, options: dict[str, Any]) -> None:
    data = jpeg(75, 53, **options)
    np.testing.assert_array_equal(
        decode(data, decoder=decoder), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    )


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_reduced_decode_keeps_the_short_side(decoder: Any) -> None:
    data = jpeg(1100, 801)
    for min_side, short in [
        (801, 801),
        (401, 801),
        (400, 400),
        (201, 400),
        (200, 200),
        (100, 100),
        (20, 100),
        (1, 100),
    ]:
        assert decode(data, decoder=decoder, min_side=min_side).shape[0] == short
    data = jpeg(1500, 1281)
    reduced = load_image(data, preprocessing(), decoder=decoder, dct_scaling=True).astype(int)
    assert not np.array_equal(reduced, load_image(data, preprocessing(), decoder=decoder))
    assert np.abs(reduced - load_image(data, preprocessing(), decoder=decoder)).mean() < 6
    view = draw_view(0, bytes(32), 1)
    np.testing.assert_array_equal(
        load_image(data, preprocessing(), decoder=decoder, dct_scaling=True, view=view),
        load_image(data, preprocessing(), decoder=decoder, view=view),
    )


def test_the_reduced_decode_is_the_same_in_both_decoders() -> None:
    for seed, options in enumerate(
        [{}, {"progressive": True}, {"mode": "CMYK"}, {"mode": "L"}, {"exif": exif_with(6)}]
    ):
        data = jpeg(403 + seed, 331, seed=seed, **options)  # type: ignore[arg-type]
        for min_side in (160, 80, 40, 3):
            np.testing.assert_array_equal(
                decode(data, decoder="fast", min_side=min_side), decode(data, decoder="pillow", min_side=min_side)
            )


def test_the_side_that_reduction_keeps() -> None:
    assert reduced_side(preprocessing(resize=256)) == 640
    assert reduced_side(preprocessing(200, 224, resize=223, crop_mode="squash")) == 560


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_reduced_decode_is_cropped_where_the_full_one_is(decoder: Any) -> None:
    # The long side of 4005x3000 becomes 341 pixels, of its quarter, rounded up to 1002x750, 342.
    size = preprocessing(224, 224, resize=256)
    horizontal, vertical = np.meshgrid(np.linspace(0, 255, 4005), np.linspace(0, 255, 3000))
    ramp = np.stack([horizontal, vertical, 255 - horizontal], axis=-1).astype(np.uint8)
    for exif in (None, exif_with(6), exif_with(3)):
        buffer = io.BytesIO()
        Image.fromarray(ramp).save(buffer, "jpeg", quality=95, **({"exif": exif} if exif else {}))
        data = buffer.getvalue()
        full = load_image(data, size, decoder=decoder).astype(float)
        reduced = load_image(data, size, decoder=decoder, dct_scaling=True).astype(float)
        # A pixel of the result is 0.75 levels wide here, so half a pixel would be a mean of about 0.37.
        assert abs((full - reduced)[..., 0].mean()) < 0.15


@pytest.mark.parametrize("decoder", DECODERS)
def test_out_is_filled_and_results_never_share_memory(decoder: Any) -> None:
    first, second = jpeg(90, 70, seed=1), jpeg(90, 70, seed=2)
    chosen = preprocessing(64, 64, resize=70)  # the short side already fits: nothing is resized
    out = np.zeros((2, 64, 64, 3), dtype=np.uint8)
    assert load_image(first, chosen, decoder=decoder, out=out[1]) is not None
    kept = load_image(first, chosen, decoder=decoder)
    before = kept.copy()
    load_image(second, chosen, decoder=decoder)
    np.testing.assert_array_equal(kept, before)
    np.testing.assert_array_equal(out[1], before)
    assert not out[0].any()
    with pytest.raises(InputError, match=r"out must be \(64, 64, 3\)"):
        load_image(first, chosen, decoder=decoder, out=np.zeros((64, 63, 3), dtype=np.uint8))


def test_decoding_without_reuse_keeps_earlier_results() -> None:
    first, second = jpeg(90, 70, seed=1), jpeg(90, 70, seed=2)
    kept = decode(first)
    before = kept.copy()
    decode(second)
    decode(second, reuse=True)
    np.testing.assert_array_equal(kept, before)
    np.testing.assert_array_equal(decode(first, reuse=True), before)


@pytest.mark.parametrize("decoder", DECODERS)
def test_threads_do_not_disturb_each_other(decoder: Any) -> None:
    images = [jpeg(60 + 17 * i, 200 - 9 * i, seed=i, exif=exif_with(1 + i % 8)) for i in range(16)]
    alone = [load_image(data, preprocessing(64, 64, resize=72), decoder=decoder) for data in images]
    with ThreadPoolExecutor(8) as pool:
        together = pool.map(
            lambda data: load_image(data, preprocessing(64, 64, resize=72), decoder=decoder), images * 8
        )
        for number, pixels in enumerate(together):
            np.testing.assert_array_equal(pixels, alone[number % 16])


def test_unequal_height_and_width() -> None:
    data = jpeg(300, 200)
    assert load_image(data, preprocessing(64, 96, resize=100)).shape == (64, 96, 3)
    assert load_image(data, preprocessing(64, 96, resize=96, crop_mode="squash"), decoder="pillow").shape == (64, 96, 3)


def test_read_only_pixels_are_resized() -> None:
    pixels = np.asarray(Image.open(io.BytesIO(jpeg(80, 60))))
    assert not pixels.flags.writeable
    for decoder in DECODERS:
        assert resize_crop(pixels, preprocessing(), decoder=decoder).shape == (224, 224, 3)  # type: ignore[arg-type]


def test_an_unknown_decoder_is_refused() -> None:
    with pytest.raises(InputError, match="'fast' or 'pillow'"):
        decode(jpeg(8, 8), decoder="quick")  # type: ignore[arg-type]


def test_the_pillow_decoder_needs_no_torch_and_no_simplejpeg(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    write_photo(photo, seed=1)
    program = (
        "import sys; from featcache.images.load import load_image; from featcache.recipe import Preprocessing;"
        f"load_image(open({str(photo)!r}, 'rb').read(), Preprocessing(8, 8, 9, 'bicubic', 'center', (0,)*3, (1,)*3),"
        " decoder='pillow'); print([name for name in ('torch', 'simplejpeg', 'timm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_reason_is_one_line() -> None:
    with pytest.raises(ImageError) as caught:
        decode(jpeg(80, 60)[:600])
    assert len(str(caught.value).splitlines()) == 1
