"""A release with other embedded weights: caches made with the old ones are refused by name, whatever is left to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

from featcache.backbone import embedded
from featcache.backbone.checkpoint import read_checkpoint
from featcache.cache import open_cache
from featcache.distillation.student import write_weights
from featcache.errors import RecipeMismatchError
from featcache.extract.build import BuildReport, build_cache


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the embedded weights of an installation of its own."""
    place = tmp_path / "installed" / embedded.embedded_weights().name
    place.parent.mkdir()
    shutil.copyfile(embedded.embedded_weights(), place)
    for module in ("backbone.load", "extract.inputs.images", "extract.destination"):
        monkeypatch.setattr(f"featcache.{module}.embedded_weights", lambda: place)
    return place


def retrain(place: Path) -> None:
    """Put weights into the installation that are a little other ones."""
    tensors, _ = read_checkpoint(place)
    with safe_open(str(place), framework="pt") as file:
        told = {name: text for name, text in file.metadata().items() if name != "digest"}
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    place.unlink()
    write_weights(place, {**tensors, name: tensors[name] * 1.01}, told)


def build(photos: Path, cache: Path, **more: bool) -> BuildReport:
    return build_cache(photos, cache, engine="torch", precision="fp32", **more)


@pytest.mark.parametrize("more_photos", [False, True])
def test_cache_of_the_old_weights_is_refused_by_name(
    photos: Path, tmp_path: Path, release: Path, more_photos: bool
) -> None:
    place = tmp_path / "cache"
    first = build(photos, place)
    assert build(photos, place).extracted == 0
    retrain(release)
    if more_photos:
        some = next(file for file in sorted(photos.rglob("*")) if file.is_file())
        (some.parent / f"another{some.suffix}").write_bytes(some.read_bytes() + b"\0")
    with pytest.raises(RecipeMismatchError) as caught:
        build(photos, place)
    said = str(caught.value)
    assert "weights_sha256: the cache has" in said
    assert said.endswith(
        "name another --cache, or begin it anew with build --overwrite: featcache_nano has other weights since"
    )
    with open_cache(place) as cache:
        assert cache.fingerprint == first.fingerprint, "what was there is untouched"
        assert cache.recipe.weights == "featcache_nano.safetensors"
    anew = build(photos, place, overwrite=True)
    assert (anew.extracted > 0, anew.fingerprint != first.fingerprint) == (True, True)
