"""`build --backbone auto`: the choice stands in the Recipe by name, and a cache that exists is never changed by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from model_hub import fill_cache

from featcache.backbone.embedded import EMBEDDED_BACKBONE
from featcache.backbone.load import load_backbone
from featcache.cache import open_cache
from featcache.cache.manifest import read_manifest
from featcache.errors import InputError
from featcache.extract.at_hand import backbones
from featcache.extract.build import BuildReport, build_cache, build_caches
from featcache.pipeline.job import run

V2 = "timm/mobilenetv2_100.ra_in1k"


def build(photos: Path, cache: Path, **more: Any) -> BuildReport:
    return build_cache(photos, cache, **{"backbone": "auto", "engine": "torch", "precision": "fp32", **more})


def test_chosen_backbone_stands_in_the_cache_by_its_name_and_digest(
    photos: Path, hub_cache: Path, mobilenetv2: bytes
) -> None:
    fill_cache(hub_cache, V2, {"model.safetensors": mobilenetv2})
    place = photos.parent / "cache"
    said: list[str] = []
    report = build(photos, place, say=said.append)
    assert [line for line in said if "auto" in line] == [line for line in report.notes if "auto" in line]
    assert sum(line.startswith("--backbone auto: mobilenetv2_100.ra_in1k (hub cache; ") for line in said) == 1
    with open_cache(place) as cache:
        assert cache.recipe.model == "mobilenetv2_100.ra_in1k"
        assert cache.recipe.weights_sha256 == load_backbone("mobilenetv2_100").weights_sha256
    assert '"auto"' not in json.dumps(read_manifest(place))
    named = build(photos, place, backbone="mobilenetv2_100")
    assert (named.extracted, named.fingerprint) == (0, report.fingerprint)


def test_cache_keeps_its_backbone_when_a_better_one_comes_and_overwrite_takes_that(
    photos: Path, hub_cache: Path, mobilenetv2: bytes
) -> None:
    place = photos.parent / "cache"
    first = build(photos, place)
    assert "featcache_nano (embedded" in first.notes[-1]
    again = build(photos, place)
    assert (again.extracted, again.fingerprint) == (0, first.fingerprint)
    assert again.notes[-1].endswith("the cache keeps its own, featcache_nano")
    fill_cache(hub_cache, V2, {"model.safetensors": mobilenetv2})
    kept = build(photos, place)
    assert (kept.extracted, kept.fingerprint) == (0, first.fingerprint)
    assert "mobilenetv2_100.ra_in1k is at hand" in kept.notes[-1]
    assert not any("auto" in note for note in build(photos, place, backbone=None).notes), "the default says nothing"
    anew = build(photos, place, overwrite=True)
    assert anew.extracted > 0
    with open_cache(place) as cache:
        assert cache.recipe.model == "mobilenetv2_100.ra_in1k"


def test_cache_begun_anew_takes_nothing_of_the_old_ones_weights(photos: Path, hub_cache: Path) -> None:
    """They belong to the backbone that was named, not to the one that is chosen."""
    place = photos.parent / "cache"
    build(photos, place, backbone=EMBEDDED_BACKBONE, weights="random:0")
    assert build(photos, place).random_weights, "it keeps them while it is there"
    assert not build(photos, place, overwrite=True).random_weights


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"weights": "random:0"}, "weights must go with a backbone that is named"),
        ({"mean": (0.5, 0.5, 0.5), "model_kwargs": {}}, "model_kwargs, mean must go with a backbone that is named"),
        ({"ray": "127.0.0.1:6379"}, "others compute with --ray: name the backbone"),
        ({"backbone": "test_vit", "download": True}, "--download must go with --backbone auto, got 'test_vit'"),
        ({"backbone": None, "download": True}, "--download must go with --backbone auto, got 'no backbone'"),
    ],
)
def test_what_auto_cannot_be_asked_with_is_refused_before_anything_is_made(
    photos: Path, hub_cache: Path, asked: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        build(photos, photos.parent / "cache", **asked)
    assert not (photos.parent / "cache").exists()


def test_auto_stands_alone_and_is_for_images(photos: Path, hub_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it must stand alone"):
        build_caches(photos, tmp_path / "caches", backbone=["auto", EMBEDDED_BACKBONE])
    table = tmp_path / "questions.csv"
    table.write_text("text,label\nwhere is it,a\nwhen is it,b\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"must be asked for images.*'text'.*featcache backbones"):
        build_cache(table, tmp_path / "texts", backbone="auto")


def test_run_passes_both_on(photos: Path, hub_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--download must go with --backbone auto"):
        run(photos, out=tmp_path / "out", download=True)
    with pytest.raises(InputError, match="weights must go with a backbone that is named"):
        run(photos, out=tmp_path / "out", backbone="auto", weights="random:0", download=True)


def test_speed_is_measured_where_it_is_asked_for(hub_cache: Path, tmp_path: Path) -> None:
    said: list[str] = []
    (nano,) = backbones(measure=True, seconds=0.05, say=said.append)
    assert nano.images_per_second is not None
    assert nano.images_per_second > 1
    assert said == ["timing featcache_nano (embedded) for 0.05 s"]
    assert backbones()[0].images_per_second is None


def test_one_that_does_not_load_is_said_and_the_others_are_timed(hub_cache: Path, mobilenetv2: bytes) -> None:
    """A file of the right size whose tensors have other names."""
    spoilt = mobilenetv2.replace(b"conv_stem.weight", b"conv_stem.wEight")
    fill_cache(hub_cache, V2, {"model.safetensors": spoilt})
    said: list[str] = []
    first, nano = backbones(measure=True, seconds=0.05, say=said.append)
    assert first.images_per_second is None
    assert nano.images_per_second is not None
    assert any(line.startswith("mobilenetv2_100.ra_in1k cannot be timed: ") for line in said)
