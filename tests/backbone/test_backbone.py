"""Backbones: which tensor is the feature, where weights come from, what is refused and how."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from featcache.backbone import hub
from featcache.backbone.backbone import ImageNetwork, weights_digest
from featcache.backbone.load import load_backbone
from featcache.backbone.outputs import available_outputs
from featcache.backbone.timm_import import import_timm
from featcache.errors import BackboneError, InputError, MissingError, WeightsError

RANDOM = "random:0"


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("mobilenetv2_050", 1280),
        ("mobilenetv3_small_050", 1024),  # num_features says 288
        ("resnet18", 512),
        ("vit_tiny_patch16_224", 192),
        ("convnext_atto", 320),
        ("efficientnet_lite0", 1280),
        ("levit_128s", 384),
        ("deit3_small_patch16_224", 384),
    ],
)
def test_the_feature_is_what_the_pretrained_classifier_reads(name: str, width: int) -> None:
    backbone = load_backbone(name, weights=RANDOM, outputs=("features", "logits"))
    seen: list[torch.Tensor] = []
    classifier: Any = backbone.network.get_classifier()
    layers = classifier if isinstance(classifier, tuple) else (classifier,)
    linear = next(module for layer in layers for module in layer.modules() if hasattr(module, "weight"))
    linear.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    size = backbone.preprocessing
    image = torch.randn(1, 3, size.height, size.width, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        features, logits = backbone(image)
    assert backbone.num_features == width == features.shape[1]
    assert logits.shape == (1, 1000)
    if name != "levit_128s":  # its classifier is a batch norm and a linear layer
        torch.testing.assert_close(seen[0].flatten(1), features, rtol=0, atol=0)
    bare = load_backbone(name, weights=RANDOM)
    with torch.inference_mode():
        torch.testing.assert_close(bare(image)[0], features, rtol=0, atol=0)


def test_a_backbone_is_frozen_and_in_eval_mode() -> None:
    backbone = load_backbone("mobilenetv3_small_050", weights=RANDOM)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(module.training for module in backbone.modules())


def test_normalisation_is_inside_the_graph() -> None:
    backbone = load_backbone("mobilenetv3_small_050", weights=RANDOM, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    image = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    normalised = (image.permute(0, 3, 1, 2) / 255 - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)) / torch.tensor(
        [0.4, 0.5, 0.6]
    ).view(1, 3, 1, 1)
    with torch.inference_mode():
        torch.testing.assert_close(ImageNetwork(backbone)(image)[0], backbone(normalised)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["mobilenetv3_small_050", "vit_tiny_patch16_224", "resnet18", "mobilenetv2_050.lamb_in1k"]
)
def test_preprocessing_is_timms_own(name: str) -> None:
    timm = import_timm()
    config = timm.data.resolve_model_data_config(timm.create_model(name))
    preprocessing = load_backbone(name, weights=RANDOM).preprocessing
    assert (3, preprocessing.height, preprocessing.width) == config["input_size"]
    assert preprocessing.resize == math.floor(preprocessing.height / config["crop_pct"])
    assert preprocessing.interpolation == config["interpolation"]
    assert preprocessing.mean == config["mean"]
    assert preprocessing.std == config["std"]


def test_model_kwargs_reach_timm() -> None:
    backbone = load_backbone("vit_tiny_patch16_224", weights=RANDOM, model_kwargs={"img_size": 96})
    assert (backbone.preprocessing.height, backbone.preprocessing.width) == (96, 96)
    assert backbone.model_kwargs == {"img_size": 96}


def test_input_that_is_not_square_is_a_squash() -> None:
    """One number cannot say how an image covers it before a crop."""
    size = load_backbone("test_vit", weights=RANDOM, model_kwargs={"img_size": [96, 160]}).preprocessing
    assert (size.height, size.width, size.crop_mode) == (96, 160, "squash")


@pytest.mark.parametrize("side", [100, [100, 100], [96, 90]])
def test_input_that_the_network_does_not_take_is_named(side: object) -> None:
    """A size that is no multiple of its patches, when it is loaded."""
    with pytest.raises(BackboneError, match=r"'test_vit' must take images of .* pixels.*img_size"):
        load_backbone("test_vit", weights=RANDOM, model_kwargs={"img_size": side})


# --- outputs --------------------------------------------------------------------------------------------------------


def test_stages_of_a_convolutional_network_come_pooled_in_the_same_pass() -> None:
    backbone = load_backbone("resnet18", weights=RANDOM, outputs=("stage2", "features", "stage5"))
    assert backbone.output_shapes == ((64,), (512,), (512,))
    image = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        stage2, features, stage5 = backbone(image)
        maps: Any = backbone.network.forward_intermediates(image, intermediates_only=True)  # type: ignore[operator]
    torch.testing.assert_close(stage2, maps[1].mean(dim=(2, 3)))
    torch.testing.assert_close(stage5, features)


def test_tokens_of_a_transformer() -> None:
    names = ("cls-1", "mean-1", "cls-4", "tokens", "features")
    backbone = load_backbone("vit_tiny_patch16_224", weights=RANDOM, outputs=names)
    assert backbone.output_shapes == ((192,), (192,), (192,), (14, 14, 192), (192,))
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        cls1, mean1, cls4, tokens, features = backbone(image)
        every: Any = backbone.network.forward_features(image)  # type: ignore[operator]
    torch.testing.assert_close(cls1, every[:, 0])
    torch.testing.assert_close(cls1, features)  # this transformer classifies by its class token
    torch.testing.assert_close(tokens.reshape(1, 196, 192), every[:, 1:])
    torch.testing.assert_close(mean1, every[:, 1:].mean(dim=1))
    assert not torch.allclose(cls4, cls1)


def test_an_unknown_output_lists_what_there_is() -> None:
    with pytest.raises(BackboneError, match=r"'cls-1'.*features, logits, stage1\.\.stage5"):
        load_backbone("resnet18", weights=RANDOM, outputs=("cls-1",))
    with pytest.raises(BackboneError, match=r"'cls-13'.*cls-1\.\.cls-12, mean-1\.\.mean-12, tokens"):
        load_backbone("vit_tiny_patch16_224", weights=RANDOM, outputs=("cls-13",))
    with pytest.raises(InputError, match="distinct"):
        load_backbone("resnet18", weights=RANDOM, outputs=("features", "features"))


def test_available_outputs_all_load() -> None:
    backbone = load_backbone("mobilenetv3_small_050", weights=RANDOM, outputs=("logits",))
    names = available_outputs(backbone.network)
    assert names[:3] == ("features", "logits", "stage1")
    every = load_backbone("mobilenetv3_small_050", weights=RANDOM, outputs=names)
    assert len(every.output_shapes) == len(names)


# --- weights --------------------------------------------------------------------------------------------------------


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    """A whole safetensors checkpoint of mobilenetv3_small_050, without metadata."""
    network = import_timm().create_model("mobilenetv3_small_050")
    save_file(network.state_dict(), tmp_path / "whole.safetensors")
    return tmp_path / "whole.safetensors"


def test_random_weights_are_asked_for_by_name_and_come_from_their_seed() -> None:
    first = load_backbone("mobilenetv3_small_050", weights="random:7")
    again = load_backbone("mobilenetv3_small_050", weights="random:7")
    other = load_backbone("mobilenetv3_small_050", weights="random:8")
    assert first.weights_label == "random:7"
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
    with pytest.raises(WeightsError, match="random:SEED"):
        load_backbone("mobilenetv3_small_050", weights="random:seven")


def test_random_weights_leave_torchs_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_backbone("mobilenetv3_small_050", weights=RANDOM)
    torch.testing.assert_close(torch.rand(2), expected)


def test_weights_come_from_a_file(weights_file: Path) -> None:
    backbone = load_backbone("mobilenetv3_small_050", weights=weights_file)
    state = load_file(weights_file)
    torch.testing.assert_close(backbone.network.state_dict()["conv_stem.weight"], state["conv_stem.weight"])
    assert backbone.weights_label == "whole.safetensors"


def test_a_headless_file_is_the_same_backbone(weights_file: Path, tmp_path: Path) -> None:
    state = {name: value for name, value in load_file(weights_file).items() if not name.startswith("classifier")}
    save_file(state, tmp_path / "headless.safetensors")
    whole = load_backbone("mobilenetv3_small_050", weights=weights_file)
    headless = load_backbone("mobilenetv3_small_050", weights=tmp_path / "headless.safetensors")
    assert whole.weights_sha256 == headless.weights_sha256
    with pytest.raises(WeightsError, match=r"missing: classifier\.bias, classifier\.weight"):
        load_backbone("mobilenetv3_small_050", weights=tmp_path / "headless.safetensors", outputs=("logits",))


def test_a_classifier_of_other_classes_does_not_matter(weights_file: Path, tmp_path: Path) -> None:
    state = load_file(weights_file)
    state["classifier.weight"], state["classifier.bias"] = torch.zeros(5, 1024), torch.zeros(5)
    save_file(state, tmp_path / "tuned.safetensors")
    tuned = load_backbone("mobilenetv3_small_050", weights=tmp_path / "tuned.safetensors")
    assert tuned.weights_sha256 == load_backbone("mobilenetv3_small_050", weights=weights_file).weights_sha256


def test_metadata_is_honoured_and_arguments_win(weights_file: Path, tmp_path: Path) -> None:
    metadata = {
        "timm_model": "mobilenetv3_small_050",
        "timm_kwargs": json.dumps({"pad_type": "same", "num_classes": 0}),
        "mean": json.dumps([0.5, 0.5, 0.5]),
        "std": json.dumps([0.25, 0.25, 0.25]),
    }
    path = tmp_path / "described.safetensors"
    save_file(load_file(weights_file), path, metadata)
    backbone = load_backbone(None, weights=path)
    assert (backbone.model_name, backbone.model_kwargs) == ("mobilenetv3_small_050", {"pad_type": "same"})
    assert (backbone.preprocessing.mean, backbone.preprocessing.std) == ((0.5,) * 3, (0.25,) * 3)
    chosen = load_backbone(None, weights=path, mean=(0.1, 0.2, 0.3), model_kwargs={"pad_type": ""})
    assert (chosen.preprocessing.mean, chosen.preprocessing.std) == ((0.1, 0.2, 0.3), (0.25,) * 3)
    assert chosen.model_kwargs == {"pad_type": ""}


def test_weights_that_do_not_fit_name_their_keys(weights_file: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"missing: conv1\.weight.*unexpected: blocks\.0.*and \d+ more"):
        load_backbone("resnet18", weights=weights_file)
    state = load_file(weights_file)
    state["conv_head.weight"] = torch.zeros(3, 3)
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(WeightsError, match=r"shape: conv_head\.weight \(3, 3\) for \(1024, 288, 1, 1\)"):
        load_backbone("mobilenetv3_small_050", weights=tmp_path / "odd.safetensors")


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="must be a file"):
        load_backbone("resnet18", weights=tmp_path / "none.safetensors")
    torch.save({"a": torch.zeros(1)}, tmp_path / "pickled.pth")
    with pytest.raises(WeightsError, match="safetensors"):
        load_backbone("resnet18", weights=tmp_path / "pickled.pth")


def test_the_digest_is_of_the_weights_not_of_their_order() -> None:
    backbone = load_backbone("mobilenetv3_small_050", weights=RANDOM)
    assert weights_digest(backbone.network) == backbone.weights_sha256
    with torch.no_grad():
        next(backbone.network.parameters()).view(-1)[0] += 1
    assert weights_digest(backbone.network) != backbone.weights_sha256


def test_no_hub_is_said_at_once_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # whatever these tests are run with
    begun = time.monotonic()
    with pytest.raises(WeightsError, match=r"no model hub.*weights=FILE.*random:SEED") as raised:
        load_backbone("mobilenetv3_small_050")
    assert time.monotonic() - begun < 10
    assert "\n" not in str(raised.value)
    with pytest.raises(WeightsError, match="no model hub"):
        load_backbone("hf-hub:timm/mobilenetv3_small_050.lamb_in1k")


def test_weights_that_are_not_local_are_refused_at_once_when_offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With HF_HUB_OFFLINE set nobody is asked, and the message says so."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"HF_HUB_OFFLINE is set.*weights=FILE.*random:SEED"):
        load_backbone("mobilenetv3_small_050")


def test_the_hubs_weights_go_through_timms_own_loader(weights_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def fetch(repository: str, file: str) -> Path:
        asked.append((repository, file))
        return weights_file

    monkeypatch.setattr(hub, "require_hub", fetch)
    backbone = load_backbone("mobilenetv3_small_050")
    assert asked == [("timm/mobilenetv3_small_050.lamb_in1k", "model.safetensors")]
    assert backbone.model_name == "mobilenetv3_small_050.lamb_in1k"
    assert backbone.weights_label == "hub"
    assert backbone.weights_sha256 == load_backbone("mobilenetv3_small_050", weights=weights_file).weights_sha256


# --- bad input ------------------------------------------------------------------------------------------------------


def test_an_unknown_backbone_names_the_nearest() -> None:
    with pytest.raises(BackboneError, match="mobilenetv2_100"):
        load_backbone("mobilenetv2_10", weights=RANDOM)
    with pytest.raises(BackboneError, match=r"resnet18\.a1_in1k"):
        load_backbone("resnet18.nowhere", weights=RANDOM)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"pretrained": True},
        {"checkpoint_path": "x.pth"},
        {"features_only": True},
        {"in_chans": 1},
        {"mystery": object()},
    ],
)
def test_refused_model_kwargs(kwargs: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        load_backbone("resnet18", weights=RANDOM, model_kwargs=kwargs)


def test_unknown_model_kwargs_and_odd_means() -> None:
    with pytest.raises(BackboneError, match="unexpected keyword argument 'colour'"):
        load_backbone("resnet18", weights=RANDOM, model_kwargs={"colour": 1})
    with pytest.raises(InputError, match="mean must be three finite numbers"):
        load_backbone("resnet18", weights=RANDOM, mean=(0.5, 0.5))
    with pytest.raises(InputError, match="std above 0"):
        load_backbone("resnet18", weights=RANDOM, std=(0.5, 0.5, 0.0))


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "kwargs", "mean"),
    [
        ("mobilenetv2_100.torch_ptq", {}, 0.485),
        ("mobilenetv2_100.tf_float_headless", {"pad_type": "same"}, 0.5),
        ("mobilenet_edgetpu_100.mlperf_qat", {"pad_type": "same"}, 0.5),
    ],
)
def test_the_real_weights_load_by_their_metadata(
    shared_weights: Callable[[str], Path], name: str, kwargs: dict[str, Any], mean: float
) -> None:
    backbone = load_backbone(None, weights=shared_weights(name))
    assert backbone.model_name == name.partition(".")[0]
    assert backbone.model_kwargs == kwargs
    assert backbone.preprocessing.mean[0] == mean
    assert backbone.num_features == 1280
