"""Odd files on their way through a build: each has the outcome that the page of data sets states, in both decoders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT, write_photo
from fake import fake_extractor
from PIL import Image

from featcache.errors import ImageError
from featcache.extract.build import build_cache
from featcache.images.read import read_image_file

HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(200)


def odd_folder(place: Path) -> Path:
    """Make a folder with one file of each kind that is not about pixels (those are in test_images_hostile.py)."""
    inside = place / "photos" / "odd"
    for number, name in enumerate(["plain.jpg", "UPPER.JPEG"]):
        write_photo(inside / name, seed=number)
    data = (inside / "plain.jpg").read_bytes()
    (inside / "empty.jpg").write_bytes(b"")
    (inside / "torn.jpg").write_bytes(data[: len(data) // 2])
    (inside / "no_end.jpg").write_bytes(data[:-2])
    (inside / "text.png").write_text("not an image")
    (inside / "phone.heic").write_bytes(HEIC)
    (inside / "phone.HEIF").write_bytes(HEIC + b"2")
    Image.new("RGB", (9, 7), (1, 2, 3)).save(inside / "really_a.png", "JPEG")
    Image.new("RGB", (1, 1), (9, 8, 7)).save(inside / "one.png")
    Image.new("P", (30_000, 2)).save(inside / "wide.png")
    (inside / "notes.txt").write_text("x")
    (inside / ".hidden").mkdir()
    write_photo(inside / ".hidden" / "x.jpg", seed=9)
    (inside / "loop").symlink_to(inside)
    (inside / "gone.jpg").symlink_to(inside / "nowhere.jpg")
    (inside / "self.jpg").symlink_to(inside / "self.jpg")
    os.mkfifo(inside / "pipe.jpg")
    write_photo(Path(os.fsdecode(bytes(inside) + b"/caf\xe9.jpg")), seed=5)
    return place / "photos"


def test_every_odd_file_has_its_outcome_in_both_decoders(tmp_path: Path) -> None:
    photos = odd_folder(tmp_path)
    outcomes = []
    for decoder in ("fast", "pillow"):
        report = build_cache(photos, tmp_path / decoder, extractor=fake_extractor(decoder=decoder))
        outcomes.append(report.failures)
        assert (report.extracted, report.ignored) == (6, 1)
    assert outcomes[0] == outcomes[1]
    reasons = dict(outcomes[0])
    expected = {
        "empty.jpg": "", "torn.jpg": "truncated", "no_end.jpg": "truncated", "text.png": "", "phone.heic": "HEIC",
        "phone.HEIF": "HEIC", "loop": "leads back", "gone.jpg": "No such file", "self.jpg": "symbolic links",
        "pipe.jpg": "not a regular file",
    }  # fmt: skip
    assert set(reasons) == {f"odd/{name}" for name in expected}
    for name, reason in expected.items():
        assert reason in reasons[f"odd/{name}"], (name, reasons[f"odd/{name}"])
        assert reasons[f"odd/{name}"]


@contextmanager
def without_rights() -> Iterator[None]:
    """Become a user to whom modes mean something."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_permission_denied_is_a_failure(tmp_path: Path) -> None:
    write_photo(tmp_path / "a.jpg", seed=1)
    (tmp_path / "a.jpg").chmod(0)
    with without_rights(), pytest.raises(ImageError, match="Permission denied"):
        read_image_file(str(tmp_path / "a.jpg"))


def test_the_page_of_data_sets_lists_the_outcomes() -> None:
    text = (ROOT / "featcache" / "datasets" / "README.md").read_text()
    table = text[text.index("What becomes of odd files") : text.index("## Decisions")]
    words = "truncated|empty|bomb|CMYK|16-bit|palette|grey|alpha|animated|EXIF|1x1|30,000|HEIC|leaves|permission denied"
    for word in [*words.split("|"), "whatever their extension", "leads back", "not UTF-8"]:
        assert word in table, word
