"""The backbones at hand: which are found, what is said of their size and worth, and what a damaged one spoils."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_hub import fill_cache
from safetensors.torch import load, save, save_file

from featcache.backbone.available import AvailableBackbone, available_backbones, hub_name
from featcache.backbone.embedded import EMBEDDED_BACKBONE, embedded_weights
from featcache.backbone.load import load_backbone
from featcache.backbone.networks import create_random
from featcache.backbone.probes import Probe, read_probes
from featcache.backbone.timm_import import import_timm
from featcache.errors import MissingError, WeightsError
from featcache.system.members import digest_file

ROOT = Path(__file__).resolve().parents[2]
V2 = "timm/mobilenetv2_100.ra_in1k"


def at_hand(*paths: Path) -> tuple[dict[str, AvailableBackbone], list[str]]:
    """Return what is at hand by name, in its order, and the notes."""
    notes: list[str] = []
    return {one.name: one for one in available_backbones(paths, note=notes.append)}, notes


def probe_of(name: str) -> Probe:
    return next(probe for probe in read_probes() if probe.name == name)


# --- the table ------------------------------------------------------------------------------------------------------


def test_table_is_of_the_very_weights_that_lie_in_the_package() -> None:
    probe, backbone = probe_of(EMBEDDED_BACKBONE), load_backbone(EMBEDDED_BACKBONE)
    assert (probe.sha256, probe.bytes) == (digest_file(embedded_weights()), embedded_weights().stat().st_size)
    assert probe.parameters == sum(parameter.numel() for parameter in backbone.parameters())
    size = backbone.preprocessing
    assert (probe.num_features, probe.height, probe.width) == (backbone.num_features, size.height, size.width)
    assert (probe.parameters <= 1_700_000, probe.bytes <= 3_600_000) == (True, True), "a package stays small"


def test_embedded_architecture_is_one_that_integers_suit() -> None:
    """ReLU6 and convolutions: no squeeze-and-excite, no hard-swish, nothing behind the pooling."""
    network = create_random("mobilenetv2_nano", {}, "random:0")
    kinds = {type(module).__name__ for module in network.modules()}
    assert "ReLU6" in kinds
    assert not {"SqueezeExcite", "Hardswish", "Sigmoid", "Hardsigmoid", "SiLU", "GELU"} & kinds
    assert network(torch.zeros(1, 3, 128, 128)).shape == (1, 1000), "with a classifier where one is asked for"


def test_hub_weights_in_the_table_are_those_that_timm_takes_for_the_name() -> None:
    named = [probe for probe in read_probes() if probe.hub is not None]
    assert [probe.hub for probe in named] == [V2]
    for probe in named:
        settings = import_timm().get_pretrained_cfg(probe.network)
        assert (probe.hub, probe.tag, probe.classifier) == (settings.hf_hub_id, settings.tag, settings.classifier)
        assert (3, probe.height, probe.width) == settings.input_size
        assert settings.hf_hub_filename is None, "the file's name is one that is looked for"


def test_card_is_made_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """They can never disagree: `train_embedded.py card` writes both."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])
    from train_embedded import card, training_file

    page = embedded_weights().with_suffix(".md").read_text(encoding="utf-8")
    table = json.loads(embedded_weights().with_name("probes.json").read_text(encoding="utf-8"))["probes"]
    training = json.loads(training_file().read_text(encoding="utf-8"))
    assert card([Probe(**entry) for entry in table], training) == page


# --- what is found --------------------------------------------------------------------------------------------------


def test_embedded_backbone_alone_is_at_hand_where_the_hubs_cache_is_empty(hub_cache: Path) -> None:
    found, notes = at_hand()
    (nano,) = found.values()
    assert (nano.name, nano.where, nano.input_size, nano.num_features) == (
        EMBEDDED_BACKBONE,
        "embedded",
        (128, 128),
        1280,
    )
    assert nano.accuracy == probe_of(EMBEDDED_BACKBONE).accuracy
    assert nano.accuracy_with is None
    assert notes == []


def test_probed_network_in_the_hubs_cache_comes_first_and_says_whose_weights_were_measured(
    hub_cache: Path, mobilenetv2: bytes
) -> None:
    fill_cache(hub_cache, V2, {"model.safetensors": mobilenetv2})
    found, notes = at_hand()
    assert list(found) == ["mobilenetv2_100.ra_in1k", EMBEDDED_BACKBONE]
    best, probe = found["mobilenetv2_100.ra_in1k"], probe_of("mobilenetv2_100")
    assert hub_name(probe) == best.name
    assert (best.where, best.accuracy, best.accuracy_with) == ("hub cache", probe.accuracy, probe.weights)
    backbone = load_backbone(best.name)
    assert best.parameters == sum(parameter.numel() for parameter in backbone.parameters())
    assert (best.num_features, best.bytes) == (backbone.num_features, len(mobilenetv2))
    assert notes == []


@pytest.mark.parametrize(
    ("name", "repository", "with_config"),
    [
        ("mobilenetv3_small_050", "timm/mobilenetv3_small_050.lamb_in1k", False),  # its num_features are no row's
        ("test_vit", "me/vit", True),
        ("resnet10t", "timm/resnet10t.c3_in1k", True),
    ],
)
def test_sizes_of_other_networks_in_the_hubs_cache_are_those_they_load_with(
    hub_cache: Path, name: str, repository: str, with_config: bool
) -> None:
    files = {"model.safetensors": save(create_random(name, {}, "random:0").state_dict())}
    if with_config:
        settings = import_timm().get_pretrained_cfg(name)
        own = {"input_size": settings.input_size, "classifier": settings.classifier}
        files["config.json"] = json.dumps({"architecture": name, "pretrained_cfg": own}).encode()
    fill_cache(hub_cache, repository, files)
    found, notes = at_hand()
    assert notes == []
    first, other = found.values()
    assert first.name == EMBEDDED_BACKBONE, "what was never measured is never the best"
    assert other.name == (repository.removeprefix("timm/") if "timm/" in repository else f"hf-hub:{repository}")
    backbone = load_backbone(name, weights="random:0")
    size = backbone.preprocessing
    assert (other.input_size, other.num_features) == ((size.height, size.width), backbone.num_features)
    assert other.parameters == sum(parameter.numel() for parameter in backbone.parameters())
    assert (other.accuracy, other.rank) == (None, None)


def test_text_encoder_in_the_hubs_cache_is_listed_as_such(hub_cache: Path, tmp_path: Path) -> None:
    """An encoder with its decoder, and a network without a tokenizer, are none."""
    config = {"model_type": "bert", "hidden_size": 32, "max_position_embeddings": 64}
    weights = save({"embeddings.weight": torch.zeros(120, 32), "pooler.dense.weight": torch.zeros(32, 32)})
    files = {
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": b"{}",
        "sentence_bert_config.json": b'{"max_seq_length": 40}',
        "model.safetensors": weights,
    }
    snapshot = fill_cache(hub_cache, "me/tiny", files)
    fill_cache(hub_cache, "me/images", {name: files[name] for name in ("config.json", "model.safetensors")})
    both = json.dumps({**config, "is_encoder_decoder": True}).encode()
    fill_cache(hub_cache, "me/translator", {**files, "config.json": both})
    found, notes = at_hand(snapshot)
    assert list(found) == [EMBEDDED_BACKBONE, str(snapshot), "me/tiny"]
    for name, where in {"me/tiny": "hub cache", str(snapshot): "file"}.items():
        assert (found[name].input, found[name].input_size, found[name].num_features) == ("text", (40,), 32)
        assert (found[name].where, found[name].bytes, found[name].parameters) == (where, len(weights), 120 * 32)
    assert len(notes) == 1
    assert "is an encoder with a decoder" in notes[0]


def test_weights_file_has_the_figure_of_its_very_bytes_only(hub_cache: Path, tmp_path: Path) -> None:
    same, other = tmp_path / "same.safetensors", tmp_path / "other.safetensors"
    same.write_bytes(embedded_weights().read_bytes())
    untrained = create_random("mobilenetv2_nano", {}, "random:0").state_dict()
    save_file(untrained, other, {"timm_model": "mobilenetv2_nano"})
    listed = {one.weights: one for one in available_backbones([tmp_path], note=pytest.fail)}
    assert listed[str(same)].accuracy == probe_of(EMBEDDED_BACKBONE).accuracy
    assert (listed[str(same)].name, listed[str(same)].input_size) == ("mobilenetv2_nano", (128, 128))
    assert listed[str(other)].accuracy is None
    assert (listed[str(other)].input_size, listed[str(other)].num_features) == ((128, 128), 1280)
    assert listed[str(same)].parameters == listed[str(other)].parameters == 1657456


# --- what is damaged ------------------------------------------------------------------------------------------------


def cut_short(snapshot: Path) -> None:
    path = snapshot / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])


def of_other_shapes(snapshot: Path) -> None:
    path = snapshot / "model.safetensors"
    state = load(path.read_bytes())
    state["conv_head.weight"] = state["conv_head.weight"][:640].contiguous()
    save_file(state, path)


def revision_is_no_text(snapshot: Path) -> None:
    (snapshot.parents[1] / "refs" / "main").write_bytes(b"\xac\xff\x00")


def config_is_no_json(snapshot: Path) -> None:
    fill_cache(snapshot.parents[2], "me/other", {"config.json": b'{"architecture'})
    (snapshot / "model.safetensors").unlink()


def name_is_none(snapshot: Path) -> None:
    (snapshot.parents[2] / "models--a b--c").mkdir()
    (snapshot / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (cut_short, "must be a whole safetensors file"),
        (of_other_shapes, r"must hold the 2,223,872 parameters of mobilenetv2_100, it holds 2,\d+,\d+: remove it"),
        (revision_is_no_text, "must be readable in the hub's local cache"),
        (config_is_no_json, "config.json' must be JSON"),
        (name_is_none, "must be OWNER/MODEL"),
    ],
)
def test_damage_in_the_hubs_cache_is_a_line_and_hides_nothing_else(
    hub_cache: Path, mobilenetv2: bytes, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(fill_cache(hub_cache, V2, {"model.safetensors": mobilenetv2}))
    found, (note,) = at_hand()
    assert list(found) == [EMBEDDED_BACKBONE]
    assert re.search(said, note)
    assert "\n" not in note


def test_link_without_its_bytes_and_folders_that_are_no_models_are_nothing_at_hand(
    hub_cache: Path, mobilenetv2: bytes
) -> None:
    snapshot = fill_cache(hub_cache, V2, {})
    (snapshot / "model.safetensors").symlink_to("../../blobs/gone")
    for name in ("models--a", "models--a--b--c", "datasets--d--e", "models--me--empty"):
        (hub_cache / name).mkdir()
    (hub_cache / "models--f--g").write_bytes(b"")
    found, notes = at_hand()
    assert (list(found), notes) == ([EMBEDDED_BACKBONE], [])


def test_cache_that_cannot_be_read_is_said_in_a_line(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_cache.write_text("no directory")
    found, (note,) = at_hand()
    assert list(found) == [EMBEDDED_BACKBONE]
    assert "must be a directory that can be read" in note
    assert "set HF_HUB_CACHE" in note

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("featcache.backbone.hub.os.scandir", refuse)
    assert "Permission denied" in at_hand()[1][0]


def test_named_network_whose_file_in_the_hubs_cache_is_cut_short_is_refused_in_a_line(
    hub_cache: Path, mobilenetv2: bytes
) -> None:
    cut_short(fill_cache(hub_cache, V2, {"model.safetensors": mobilenetv2}))
    with pytest.raises(WeightsError, match=r"whole safetensors file.*remove it and get it again"):
        load_backbone("mobilenetv2_100")


def test_path_that_is_nothing_is_refused_and_a_bad_file_of_a_folder_is_a_line(hub_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"must be a \.safetensors file, a folder of such"):
        at_hand(tmp_path / "nowhere")
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "bad.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(WeightsError, match="whole safetensors file"):
        at_hand(folder / "bad.safetensors")
    nameless = folder / "nameless.safetensors"
    save_file(create_random("test_vit", {}, "random:0").state_dict(), nameless)
    with pytest.raises(WeightsError, match="timm_model"):
        at_hand(nameless)
    found, notes = at_hand(folder)
    assert list(found) == [EMBEDDED_BACKBONE]
    assert len(notes) == 2
