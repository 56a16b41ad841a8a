from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from export_models import small_model
from small_models import write_photos
from torch import Tensor, nn

from featcache.bundle.exporting import export
from featcache.cache import open_cache
from featcache.compression import CompressResult, prune, quantize
from featcache.compression.head_driven import HeadDriven, ignored_features, remove_ignored_features
from featcache.compression.refitting import float_features, open_source
from featcache.errors import InputError, VerificationError
from featcache.extract.build import build_cache
from featcache.formats.registry import find_target
from featcache.heads import LinearHead
from featcache.model.directory import load_model, save_model, verify_model
from featcache.model.golden import Golden
from featcache.model.merged import MergedModel, with_network
from featcache.model.merging import merge
from featcache.model.reference import logits_of_images
from featcache.train.fit import refit_head, train_head
from featcache.train.options import KnnOptions, LinearOptions

BACKBONE = "test_efficientnet"
KEPT = 0.25


@pytest.fixture(scope="module", autouse=True)
def _short_timing() -> Iterator[None]:
    """Latency is measured elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featcache.compression.measurement._TIMED_SECONDS", 0.05)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache, and a model whose head keeps a quarter of the features at most."""
    folder = tmp_path_factory.mktemp("head")
    build_cache(write_photos(folder), folder / "cache", backbone=BACKBONE, weights="random:3", precision="fp32")
    train_head(folder / "cache", head=LinearOptions(l2=0.1, keep_features=KEPT)).save(folder / "sparse")
    train_head(folder / "cache", head=LinearOptions(l2=0.1)).save(folder / "dense")
    merge(folder / "sparse", folder / "cache", out=folder / "model")
    merge(folder / "dense", folder / "cache", out=folder / "whole")
    return folder


@pytest.fixture(scope="module")
def result(place: Path) -> CompressResult:
    return prune(place / "model", cache=place / "cache", out=place / "pruned", method="head")


def ignoring(model: MergedModel, *, share: float = 0.7, seed: int = 0) -> MergedModel:
    """Return `model` with a head that gives about `share` of the features no weight."""
    head = model.fitted_head
    assert isinstance(head, LinearHead)
    weight = head.weight.copy()
    weight[:, np.random.default_rng(seed).random(head.num_features) < share] = 0
    return model.with_head(dataclasses.replace(head, weight=weight))


def test_what_the_head_ignores_is_gone_and_the_logits_stay(place: Path, result: CompressResult) -> None:
    before, after = load_model(place / "model"), load_model(place / "pruned")
    used = before.fitted_head.num_features - len(ignored_features(before.fitted_head))
    assert after.backbone.num_features == after.fitted_head.num_features == used
    assert result.parameters == after.parameter_count() < before.parameter_count()
    assert result.macs < result.macs_before
    assert result.bytes_after < result.bytes_before
    images = torch.randint(0, 256, (3, 160, 160, 3), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.allclose(before(images)[0], after(images)[0], rtol=0, atol=1e-5)
    golden = Golden.load(place / "pruned" / "golden")
    np.testing.assert_allclose(golden.logits, Golden.load(place / "model" / "golden").logits, rtol=0, atol=1e-5)
    np.testing.assert_allclose(logits_of_images(after, golden.images), golden.logits, rtol=0, atol=1e-5)


def test_nothing_is_fitted_again_and_that_is_said(place: Path, result: CompressResult) -> None:
    before, after = load_model(place / "model").fitted_head, load_model(place / "pruned").fitted_head
    assert isinstance(before, LinearHead)
    assert isinstance(after, LinearHead)
    assert np.array_equal(after.weight, before.weight[:, np.any(before.weight != 0, axis=0)])
    assert result.accuracy_before_refit == result.accuracy_after_refit == result.accuracy_float
    assert (result.gained, result.lost, result.amount) == (0, 0, None)
    assert "not fitted again" in result.notes[0]
    assert result.settings["max_logit_difference"] <= 1e-5


def test_no_image_is_read(place: Path, tmp_path: Path) -> None:
    """The features are those at hand, with fewer columns."""
    photos = place / "photos"
    photos.rename(place / "elsewhere")
    try:
        result = prune(place / "model", cache=place / "cache", out=tmp_path / "p", method="head")
    finally:
        (place / "elsewhere").rename(photos)
    assert result.n > 0


def test_it_is_another_backbone_to_recipe_and_lineage(place: Path, result: CompressResult) -> None:
    before, after = load_model(place / "model"), load_model(place / "pruned")
    assert before.recipe.model_digest is None
    assert after.recipe.model_digest == MergedModel(
        after.backbone, after.fitted_head, recipe=after.recipe, surgery=after.surgery
    ).digest()  # fmt: skip
    assert after.fitted_head.fingerprint == after.recipe.fingerprint != before.recipe.fingerprint
    assert [step["verb"] for step in after.lineage] == ["merge", "prune"]
    assert after.lineage[1]["method"] == "head"
    assert verify_model(place / "pruned") == ()


def test_a_fresh_process_reads_it_from_json_and_safetensors(place: Path, result: CompressResult) -> None:
    assert {file.name for file in (place / "pruned").iterdir()} == {"model.json", "weights.safetensors", "golden"}
    code = (
        "import sys; from featcache.model.directory import load_model; from featcache.model.golden import Golden\n"
        "from featcache.model.reference import logits_of_images\n"
        "golden = Golden.load(sys.argv[1] + '/golden'); model = load_model(sys.argv[1])\n"
        "print(abs(logits_of_images(model, golden.images) - golden.logits).max(), model.backbone.num_features)"
    )
    done = subprocess.run([sys.executable, "-c", code, place / "pruned"], capture_output=True, text=True, check=True)
    difference, width = done.stdout.split()
    assert float(difference) <= 1e-5
    assert int(width) == load_model(place / "pruned").fitted_head.num_features


def test_the_narrow_head_is_trained_again_on_every_feature_left(place: Path, result: CompressResult) -> None:
    """A share of what is left would be another, harder task."""
    assert load_model(place / "model").fitted_head.settings["keep_features"] == KEPT
    head = load_model(place / "pruned").fitted_head
    assert "keep_features" not in head.settings
    with open_cache(place / "cache") as cache:
        refit_head(cache, head.settings)


def test_channels_go_and_integers_come_on_top(place: Path, result: CompressResult, tmp_path: Path) -> None:
    channels = prune(place / "pruned", cache=place / "cache", out=tmp_path / "c", method="channel", amount=0.1)
    assert channels.macs_before == result.macs
    integers = quantize(tmp_path / "c", cache=place / "cache", out=tmp_path / "q", calibration_images=2)
    model = load_model(tmp_path / "q")
    assert [step["verb"] for step in model.lineage] == ["merge", "prune", "prune", "quantize"]
    assert model.backbone.num_features == load_model(place / "pruned").backbone.num_features
    assert integers.bytes_after < integers.bytes_before
    with pytest.raises(InputError, match="reads all"):
        prune(tmp_path / "c", cache=place / "cache", out=tmp_path / "x", method="head")


def test_features_come_in_their_new_width(place: Path, result: CompressResult) -> None:
    with open_cache(place / "cache") as cache:
        features = float_features(open_source(place / "pruned", cache))
        kept = load_model(place / "pruned").fitted_head.num_features
        assert {rows.features.shape[1] for rows in features.values()} == {kept}


def test_it_is_exported(place: Path, result: CompressResult, tmp_path: Path) -> None:
    formats = [name for name in ("onnx", "openvino", "tflite") if find_target(name).available() is None]
    report = export(place / "pruned", out=tmp_path / "bundle", formats=formats, cache=place / "cache")
    for name in formats:
        assert report.formats[name].executed
        assert report.formats[name].max_abs_diff <= 1e-4


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "mobilenetv2_050", "test_resnet", "ghostnet_050"])
def test_networks_of_many_kinds_lose_their_last_channels_and_are_built_again(backbone: str, tmp_path: Path) -> None:
    model = ignoring(small_model(name=backbone))
    narrow = remove_ignored_features(model)
    assert (narrow.staying, narrow.reason) == (0, None)
    assert len(narrow.kept) == model.fitted_head.num_features - len(ignored_features(model.fitted_head))
    again = rebuilt(model, narrow, tmp_path)
    images = torch.randint(0, 256, (2, model.preprocessing.height, model.preprocessing.width, 3), dtype=torch.uint8)
    with torch.inference_mode():
        before, after = model(images)[0], again(images)[0]
    assert float((before - after).abs().max()) <= 1e-5 * max(1, float(before.abs().max()))


def rebuilt(model: MergedModel, narrow: HeadDriven, folder: Path) -> MergedModel:
    """Return the narrow model as it is read back from its directory."""
    changed = with_network(model, narrow.network)
    return load_model(save_model(changed.with_head(narrow.head), folder / "narrow"))


def test_only_channels_that_nobody_else_reads_go() -> None:
    """In a densely connected network those of the last layer alone: all others are read by the layers after them."""
    model = ignoring(small_model(name="densenet121"), share=0.9)
    narrow = remove_ignored_features(model)
    last = 32
    gone = np.setdiff1d(np.arange(model.fitted_head.num_features), narrow.kept)
    assert 0 < len(gone) <= last
    assert gone.min() >= model.fitted_head.num_features - last
    assert narrow.staying == len(ignored_features(model.fitted_head)) - len(gone)
    assert narrow.reason is not None
    assert "reads them, too" in narrow.reason


def test_a_layer_keeps_one_channel(place: Path) -> None:
    """An output that the head ignores altogether does not leave a layer empty."""
    model = small_model()
    backbone = type(model.backbone)(
        model.backbone.network, model_name=model.backbone.model_name, model_kwargs={},
        preprocessing=model.preprocessing, weights_label="random:0", outputs=("stage1", "features"),
    )  # fmt: skip
    stage, features = (shape[0] for shape in backbone.output_shapes)
    weight = np.zeros((2, stage + features), dtype=np.float32)
    weight[:, :stage] = 1
    head = LinearHead(classes=("a", "b"), weight=weight, bias=np.zeros(2, dtype=np.float32))
    narrow = remove_ignored_features(MergedModel(backbone, head, recipe=model.recipe))
    assert len(narrow.kept) == stage + 1
    assert narrow.reason == "a layer keeps one channel at least"


@pytest.mark.parametrize(
    ("backbone", "reason"),
    [
        ("test_vit", r"'norm', a LayerNorm that computes each one from all channels"),
        ("test_convnext", r"'head.norm', a LayerNorm2d"),
        ("resnet18", r"'layer4.1.conv1' reads them, too"),
        ("levit_128s", r"a BatchNorm1d"),
    ],
)
def test_what_cannot_go_is_said_in_one_line(backbone: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        remove_ignored_features(ignoring(small_model(name=backbone)))
    assert "\n" not in str(caught.value)


class Normalised(nn.Module):
    """A pooling that divides by the length of the vector, which no layer shows."""

    def __init__(self, pooling: nn.Module) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, maps: Tensor) -> Tensor:
        pooled: Tensor = self.pooling(maps)
        return pooled / pooled.norm(dim=1, keepdim=True)


def test_logits_that_would_change_are_found() -> None:
    model = ignoring(small_model())
    network = model.backbone.network
    network.global_pool = Normalised(network.global_pool)
    with pytest.raises(VerificationError, match="depend on each other"):
        remove_ignored_features(model)


def test_heads_that_ignore_nothing_are_refused(place: Path, tmp_path: Path) -> None:
    model = small_model()
    head = model.fitted_head
    assert isinstance(head, LinearHead)
    with pytest.raises(InputError, match=r"reads all \d+: train it with --keep-features"):
        prune(place / "whole", cache=place / "cache", out=tmp_path / "p", method="head")
    with pytest.raises(InputError, match="reads none"):
        ignored_features(dataclasses.replace(head, weight=np.zeros_like(head.weight)))
    neighbours = train_head(place / "cache", head=KnnOptions(neighbors=1)).head
    with pytest.raises(InputError, match="of kind 'knn'"):
        ignored_features(neighbours)
    assert not (tmp_path / "p").exists()


def test_an_amount_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="takes no --amount"):
        prune(place / "model", cache=place / "cache", out=tmp_path / "p", method="head", amount=0.5)
    with pytest.raises(InputError, match="--amount must be given for --method channel"):
        prune(place / "model", cache=place / "cache", out=tmp_path / "p")
