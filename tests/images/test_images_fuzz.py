"""The quick form of ``scripts/fuzz_images.py``: damaged photos neither crash, nor hang, nor divide the decoders."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT, write_photo


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_images", ROOT / "scripts" / "fuzz_images.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_images"] = module
    spec.loader.exec_module(module)
    return module


def check(fuzz: ModuleType, photos: Path, *, count: int, other: int) -> None:
    result = fuzz.run_cases(photos, count=count, other=other, workers=2)
    assert result["faults"] == {}
    assert sum(result["outcomes"].values()) == count + other
    assert result["outcomes"]["read"] > 0.2 * count  # most damage is small, or this would test nothing but refusals
    assert result["outcomes"]["damaged JPEG"] > 0.1 * count
    assert result["peak_bytes"] < fuzz.PEAK_BYTES


def test_damaged_pictures_of_all_formats(fuzz: ModuleType, tmp_path: Path) -> None:
    for seed in range(8):
        write_photo(tmp_path / f"{seed}.jpg", seed=seed, size=(200 + 40 * seed, 300 - 20 * seed))
    check(fuzz, tmp_path, count=120, other=120)


@pytest.mark.shared
def test_damaged_real_photos(fuzz: ModuleType, clothing10: Path) -> None:
    check(fuzz, clothing10, count=180, other=0)


def test_a_case_is_the_same_whenever_it_is_made(fuzz: ModuleType, tmp_path: Path) -> None:
    write_photo(tmp_path / "a.jpg", seed=1)
    photos = fuzz.find_photos(tmp_path)
    first = [fuzz.make_case(case, photos, other=case % 3 == 0) for case in range(30)]
    assert first == [fuzz.make_case(case, photos, other=case % 3 == 0) for case in range(30)]
    assert len(set(first)) > 25
