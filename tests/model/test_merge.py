from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from featcache.backbone.timm_import import import_timm
from featcache.cache import FeatureCache, open_cache
from featcache.errors import CorruptError, ExistsError, FormatError, InputError, MissingError, WeightsError
from featcache.extract.build import build_cache
from featcache.extract.inputs.deployed_images import DeployedImages
from featcache.heads import Head
from featcache.images.load import decode
from featcache.model.directory import load_model, save_model, verify_model
from featcache.model.folding import folded_copy
from featcache.model.golden import Golden, golden_inputs
from featcache.model.merging import merge, merged_model
from featcache.model.reference import load_pixels, logits_of_images
from featcache.model.surgery import Surgery
from featcache.model.widths import changed_widths, layer_widths, resize_layers
from featcache.recipe import Preprocessing
from featcache.train.fit import train_head
from featcache.train.options import LinearOptions

BACKBONE = "test_efficientnet"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from conftest import write_photo

    place = tmp_path_factory.mktemp("merge")
    for hue, name in enumerate(["cat", "dog"]):
        for i in range(14):
            write_photo(place / "photos" / name / f"{i:02}.jpg", seed=100 * hue + i, hue=hue, size=(180, 170))
    build_cache(place / "photos", place / "cache", backbone=BACKBONE, weights="random:3", precision="fp32")
    return place


@pytest.fixture
def cache(folder: Path) -> FeatureCache:
    return open_cache(folder / "cache")


@pytest.fixture(scope="module")
def head(folder: Path) -> Head:
    return train_head(folder / "cache", head=LinearOptions(l2=0.1)).head


def some_images(n: int, side: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, side, side, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def test_merged_equals_head_of_backbone(cache: FeatureCache, head: Head) -> None:
    model = merged_model(head, cache)
    images = some_images(3, model.preprocessing.height)
    mean = torch.tensor(model.preprocessing.mean).view(1, 3, 1, 1)
    std = torch.tensor(model.preprocessing.std).view(1, 3, 1, 1)
    with torch.inference_mode():
        (features,) = model.backbone((images.permute(0, 3, 1, 2) / 255.0 - mean) / std)
        logits, probabilities = model(images)
    separate = head.predict_logits(features.numpy())
    assert np.abs(logits.numpy() - separate).max() <= 1e-5
    assert np.allclose(probabilities.numpy(), head.predict_proba(features.numpy()), atol=1e-6)


def test_merge_writes_a_model_whose_logits_are_those_of_the_cached_rows(
    folder: Path, head: Head, tmp_path: Path
) -> None:
    result = merge(head, folder / "cache", out=tmp_path / "model")
    assert result.max_abs_diff <= 1e-5
    assert result.max_abs_diff_cached is not None and result.max_abs_diff_cached < 0.02
    assert result.random_weights and result.weights == "random:3"
    assert result.parameters == load_model(tmp_path / "model").parameter_count()
    assert set(result.to_json()) >= {"parameters", "bytes", "max_abs_diff"}


def test_saved_and_loaded_model_is_the_same_to_the_bit(cache: FeatureCache, head: Head, tmp_path: Path) -> None:
    model = merged_model(head, cache)
    save_model(model, tmp_path / "one")
    loaded = load_model(tmp_path / "one")
    save_model(loaded, tmp_path / "two")
    images = some_images(2, model.preprocessing.height)
    with torch.inference_mode():
        assert torch.equal(model(images)[0], loaded(images)[0])
    assert loaded.digest() == model.digest()
    assert loaded.classes == ("cat", "dog")
    assert loaded.fitted_head.settings == head.settings
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_golden_photos_carry_the_logits_they_give(folder: Path, head: Head, tmp_path: Path) -> None:
    merge(head, folder / "cache", out=tmp_path / "model")
    golden = Golden.load(tmp_path / "model" / "golden")
    model = load_model(tmp_path / "model")
    assert golden.kind == "photos" and 1 <= len(golden.images) <= 16
    assert np.allclose(logits_of_images(model, golden.images), golden.logits, atol=1e-5)
    assert not verify_model(tmp_path / "model")


PICTURES = DeployedImages(Preprocessing(160, 160, 160, "bicubic", "center", (0.5,) * 3, (0.5,) * 3))


def test_golden_choices(folder: Path, head: Head, tmp_path: Path) -> None:
    merge(head, folder / "cache", out=tmp_path / "none", golden="none")
    assert not (tmp_path / "none" / "golden").exists()
    merge(head, folder / "cache", out=tmp_path / "synthetic", golden="synthetic")
    golden = Golden.load(tmp_path / "synthetic" / "golden")
    assert golden.images == load_model(tmp_path / "none").input.synthetic(16)
    with pytest.raises(InputError, match="golden"):
        merge(head, folder / "cache", out=tmp_path / "other", golden="mine")  # type: ignore[arg-type]


def test_golden_photos_need_unchanged_files(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "photos", tmp_path / "photos")
    build_cache(tmp_path / "photos", tmp_path / "cache", backbone=BACKBONE, weights="random:3", precision="fp32")
    with open_cache(tmp_path / "cache") as cache:
        kept = golden_inputs(cache, DeployedImages(cache.recipe.image_preprocessing))
        assert len(set(kept)) == len(kept)
        shutil.rmtree(tmp_path / "photos")
        with pytest.raises(MissingError, match=r"must lie in .*photos.* pass --images"):
            golden_inputs(cache, DeployedImages(cache.recipe.image_preprocessing))


def test_pictures_that_are_no_jpeg_become_one(tmp_path: Path, head: Head) -> None:
    Image.new("RGB", (9, 7), (10, 200, 30)).save(tmp_path / "a.png")
    assert PICTURES.golden((tmp_path / "a.png").read_bytes()).startswith(b"\xff\xd8\xff")


@pytest.mark.parametrize("kind", ["transparent", "16-bit"])
def test_golden_photo_of_an_odd_png_has_the_pixels_of_its_row(tmp_path: Path, kind: str) -> None:
    """A golden image is the picture that the decoder of every row sees: white behind glass, the highest of 16 bits."""
    ramp = np.linspace(0, 255, 64 * 64).reshape(64, 64)
    if kind == "transparent":
        pixels = np.stack([ramp, 255 - ramp, ramp[::-1], np.where(ramp < 128, 0, 255)], axis=-1).astype(np.uint8)
        Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    else:
        Image.fromarray((ramp * 257).astype(np.uint16)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    seen, golden = decode(data).astype(int), decode(PICTURES.golden(data)).astype(int)
    assert np.abs(seen - golden).mean() < 3  # what JPEG itself changes


def test_merge_compares_unchanged_images_only(folder: Path, head: Head, tmp_path: Path) -> None:
    """The row of a photo that was replaced since says nothing of the new one."""
    shutil.copytree(folder / "photos", tmp_path / "photos")
    build_cache(tmp_path / "photos", tmp_path / "cache", backbone=BACKBONE, weights="random:3", precision="fp32")
    before = merge(head, tmp_path / "cache", out=tmp_path / "before", golden="none")
    shutil.copy(next((tmp_path / "photos" / "dog").iterdir()), next((tmp_path / "photos" / "cat").iterdir()))
    after = merge(head, tmp_path / "cache", out=tmp_path / "after", golden="none")
    assert after.n_compared == before.n_compared - 1


def test_changed_bytes_are_noticed(folder: Path, head: Head, tmp_path: Path) -> None:
    merge(head, folder / "cache", out=tmp_path / "model")
    file = tmp_path / "model" / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptError, match="sha256"):
        load_model(tmp_path / "model")
    assert "sha256" in verify_model(tmp_path / "model")[0]


def test_golden_image_of_other_bytes_is_noticed(folder: Path, head: Head, tmp_path: Path) -> None:
    merge(head, folder / "cache", out=tmp_path / "model")
    file = tmp_path / "model" / "golden" / "00.jpg"
    file.write_bytes(file.read_bytes() + b"x")
    assert "00.jpg" in verify_model(tmp_path / "model")[0]


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="featcache merge"):
        load_model(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(FormatError, match=r"featcache\.model"):
        load_model(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps({"format": "featcache.model", "version": 99}))
    with pytest.raises(FormatError, match="99"):
        load_model(tmp_path)


def test_existing_output_is_kept(folder: Path, head: Head, tmp_path: Path) -> None:
    merge(head, folder / "cache", out=tmp_path / "model", golden="none")
    before = (tmp_path / "model" / "model.json").stat().st_mtime_ns
    with pytest.raises(ExistsError, match="overwrite"):
        merge(head, folder / "cache", out=tmp_path / "model")
    assert (tmp_path / "model" / "model.json").stat().st_mtime_ns == before
    merge(head, folder / "cache", out=tmp_path / "model", overwrite=True)


def test_head_of_another_cache_is_refused(cache: FeatureCache, head: Head) -> None:
    other = dataclasses.replace(head, fingerprint="0" * 64)
    with pytest.raises(InputError, match="fingerprint"):
        merged_model(other, cache)


def test_changed_weights_are_refused(cache: FeatureCache, head: Head) -> None:
    cache.request = {**cache.request, "weights": "random:4"}
    with pytest.raises(WeightsError, match="sha256"):
        merged_model(head, cache)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "mobilenetv3_small_050", "mobilenetv2_035"])
def test_folding_batch_norm_keeps_the_function(name: str) -> None:
    network = import_timm().create_model(name, num_classes=0).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    folded, pairs = folded_copy(network, height=96, width=96)
    assert pairs
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    noise = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        before, after = network(noise), folded(noise)
    assert (before - after).abs().max() <= 1e-4 * before.abs().max().clamp(min=1)


def test_surgery_replays_folds_and_widths() -> None:
    timm = import_timm()
    network = timm.create_model("test_resnet", num_classes=0).eval()
    original = layer_widths(network)
    resize_layers(network, {"conv1.0": {"in": 3, "out": 5, "groups": 1}})
    widths = changed_widths(network, original)
    assert widths == {"conv1.0": {"in": 3, "out": 5, "groups": 1}}
    again = timm.create_model("test_resnet", num_classes=0).eval()
    Surgery(widths=widths).apply(again)
    assert layer_widths(again) == layer_widths(network)
    with pytest.raises(FormatError, match="nowhere"):
        Surgery(widths={"nowhere": {"out": 3}}).apply(again)


def test_pixels_of_golden_images_have_the_input_shape(cache: FeatureCache) -> None:
    size = cache.recipe.preprocessing
    pixels = load_pixels(DeployedImages(size).synthetic(2), size)
    assert pixels.shape == (2, size.height, size.width, 3) and pixels.dtype == np.uint8
