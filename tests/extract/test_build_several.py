"""Several backbones in one build: each image is decoded once for all, and each cache is as if it were built alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from commands import refusal, result
from conftest import write_photo
from fake import SIZE, FakeEngine, fake_recipe

import featcache.extract.inputs.image_loader
from featcache.cache import open_cache
from featcache.errors import FormatError, InputError, RecipeMismatchError
from featcache.extract.build import Extractor, build_cache, build_caches, cache_directory
from featcache.recipe import Preprocessing

NAMES = ("fake", "hf-hub:owner/fake")


class HalfEngine(FakeEngine):
    """Another backbone, with rows of another width."""

    columns = (("features", (24,)),)

    def _infer(self, batch):  # type: ignore[no-untyped-def]
        (rows,) = super()._infer(batch)
        return (rows[:, ::2].copy(),)


def extractors(*, other_look: bool = False) -> dict[str, Extractor]:
    recipe = fake_recipe(model="half", weights_sha256="1" * 64)
    if other_look:
        preprocessing = Preprocessing(SIZE, SIZE, 2 * SIZE, "bicubic", "center", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        recipe = dataclasses.replace(recipe, preprocessing=preprocessing)
    return {NAMES[0]: Extractor(FakeEngine(), fake_recipe()), NAMES[1]: Extractor(HalfEngine(), recipe)}


@pytest.mark.parametrize("other_look", [False, True])
@pytest.mark.parametrize("store", ["lmdb", "zarr"])
def test_each_image_is_decoded_once_for_all(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, other_look: bool, store: str
) -> None:
    decoded = []
    decode = featcache.extract.inputs.image_loader.decode

    def counting(data: bytes, **settings: object) -> object:
        decoded.append(hash(data))
        return decode(data, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr("featcache.extract.inputs.image_loader.decode", counting)
    both = extractors(other_look=other_look)
    reports = build_caches(photos, tmp_path / "all", backbone=NAMES, extractors=both, store=store)
    assert len(decoded) == len(set(decoded)) == 24
    assert [(report.extracted, report.rows, report.num_features) for report in reports] == [(24, 24, 48), (24, 24, 24)]
    assert [Path(report.cache) for report in reports] == [
        tmp_path / "all" / "fake", tmp_path / "all" / "hf-hub%3Aowner%2Ffake",
    ]  # fmt: skip
    for name, extractor in extractors(other_look=other_look).items():
        build_cache(photos, tmp_path / "alone" / name[:4], extractor=extractor)
        with (
            open_cache(tmp_path / "alone" / name[:4]) as alone,
            open_cache(cache_directory(tmp_path / "all", name)) as one,
        ):
            assert alone.content_digest() == one.content_digest()
            assert one.verify().ok
            assert one.datasets == ("photos",)


def test_each_cache_gets_only_what_it_lacks(photos: Path, tmp_path: Path) -> None:
    both = extractors()
    build_caches(photos, tmp_path / "all", backbone=NAMES, extractors=both)
    (photos / "cat" / "bad.jpg").write_bytes(b"not an image")
    write_photo(photos / "cat" / "new.jpg", seed=77)
    build_cache(photos, cache_directory(tmp_path / "all", NAMES[1]), extractor=both[NAMES[1]])
    write_photo(photos / "dog" / "newer.jpg", seed=78)
    reports = build_caches(photos, tmp_path / "all", backbone=NAMES, extractors=both)
    assert [(r.images, r.extracted, r.reused, r.failed, r.rows) for r in reports] == [
        (27, 2, 24, 1, 26), (27, 1, 25, 1, 26),
    ]  # fmt: skip
    again = build_caches(photos, tmp_path / "all", backbone=NAMES, extractors=both)
    assert [(r.extracted, r.reused, r.failed) for r in again] == [(0, 26, 1)] * 2


def test_what_cannot_be_is_refused_by_name(photos: Path, tmp_path: Path) -> None:
    both = extractors()
    with pytest.raises(InputError, match="distinct backbones"):
        build_caches(photos, tmp_path / "all", backbone=["fake", "fake"])
    with pytest.raises(InputError, match=r"once for each of 2 backbones.*got \['a', 'b', 'c'\]"):
        build_caches(photos, tmp_path / "all", backbone=NAMES, weights=["a", "b", "c"])
    build_cache(photos, tmp_path / "one", extractor=both["fake"])
    with pytest.raises(InputError, match="is itself a cache"):
        build_caches(photos, tmp_path / "one", backbone=NAMES, extractors=both)
    build_caches(photos, tmp_path / "all", backbone=NAMES, extractors=both)
    with pytest.raises(FormatError, match=r"it holds \[.*fake.*name one of them"):
        open_cache(tmp_path / "all")
    both["fake"] = Extractor(FakeEngine(), fake_recipe(precision="bf16"))
    with pytest.raises(RecipeMismatchError, match="precision"):
        build_caches(photos, tmp_path / "all", backbone=NAMES, extractors=both)


def test_the_command_line_says_it_in_the_same_words(photos: Path, tmp_path: Path) -> None:
    backbones = ["--backbone", "test_efficientnet", "--backbone", "test_resnet"]
    built = result("build", photos, "--cache", tmp_path / "all", *backbones, "--weights", "random:0")
    assert [report["extracted"] for report in built["caches"]] == [24, 24]
    assert [Path(report["cache"]).name for report in built["caches"]] == backbones[1::2]
    again = result("build", photos, "--cache", tmp_path / "all", *backbones)
    assert [report["extracted"] for report in again["caches"]] == [0, 0]
    assert "once for one backbone" in refusal(
        "build", photos, "--cache", tmp_path / "c", "--weights", "random:0", "--weights", "random:1"
    )
