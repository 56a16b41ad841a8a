"""`--backbone auto`: the best at hand, what the hub gives with consent, and what is said of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_hub import Hub, fill_cache, model_hub

from featcache.backbone.choice import BackboneChoice, choose_backbone, kept_backbone
from featcache.backbone.embedded import EMBEDDED_BACKBONE
from featcache.backbone.probes import read_probes

V2 = "timm/mobilenetv2_100.ra_in1k"
NANO, BETTER = (
    f"{100 * probe.rank:.1f} %" for name in (EMBEDDED_BACKBONE, "mobilenetv2_100")
    for probe in read_probes() if probe.name == name
)  # fmt: skip


@pytest.fixture
def hub(hub_cache: Path, mobilenetv2: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run a hub that has mobilenetv2_100, and let the hub's client know it."""
    with model_hub({f"{V2}/model.safetensors": mobilenetv2}) as running:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.url)
        template = f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield running


def choose(*, download: bool = False) -> BackboneChoice:
    return choose_backbone(download=download, note=pytest.fail)


def test_nobody_is_asked_without_consent_and_the_line_says_what_the_hub_has(hub: Hub) -> None:
    choice = choose()
    assert choice.backbone.name == EMBEDDED_BACKBONE
    assert choice.line == (
        f"--backbone auto: featcache_nano (embedded; a linear head on it reaches {NANO} on clothing10); with "
        f"--download mobilenetv2_100.ra_in1k ({BETTER}) is fetched from the hub"
    )
    assert hub.asked == []


def test_best_of_the_hubs_local_cache_is_taken_offline(hub: Hub, hub_cache: Path, mobilenetv2: bytes) -> None:
    fill_cache(hub_cache, V2, {"model.safetensors": mobilenetv2})
    for download in (False, True):
        choice = choose(download=download)
        assert choice.backbone.name == "mobilenetv2_100.ra_in1k"
        assert choice.line == (
            f"--backbone auto: mobilenetv2_100.ra_in1k (hub cache; a linear head on it reaches {BETTER} on clothing10, "
            f"on featcache_nano {NANO}; measured with other weights of this network, "
            "mobilenetv2_100.tf_float_headless.safetensors)"
        )
    assert hub.asked == []


def test_with_consent_the_hub_is_asked_once(hub: Hub, hub_cache: Path, mobilenetv2: bytes) -> None:
    choice = choose(download=True)
    assert choice.backbone.name == "mobilenetv2_100.ra_in1k"
    assert Path(choice.backbone.path).is_relative_to(hub_cache)
    assert Path(choice.backbone.path).read_bytes() == mobilenetv2
    assert len(hub.asked) > 0
    hub.asked.clear()
    assert choose(download=True) == choice
    assert choose() == choice
    assert hub.asked == []


def test_hub_that_has_none_of_them_leaves_what_is_at_hand(hub: Hub) -> None:
    hub.files.clear()
    choice = choose(download=True)
    assert choice.backbone.name == EMBEDDED_BACKBONE
    assert choice.line.endswith(f"the hub gave nothing better: the hub has no model.safetensors of {V2!r}")


def test_hub_that_does_not_answer_leaves_what_is_at_hand_within_seconds(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = time.monotonic()
    choice = choose(download=True)
    assert time.monotonic() - started < 8
    assert choice.backbone.name == EMBEDDED_BACKBONE
    assert "the hub gave nothing better: no model hub answers at http://127.0.0.1:9" in choice.line
    assert "weights=FILE" not in choice.line
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in choose(download=True).line


def test_fetched_file_of_another_network_is_not_taken(hub: Hub) -> None:
    hub.files[f"{V2}/model.safetensors"] = b"\x02\x00\x00\x00\x00\x00\x00\x00{}"
    notes: list[str] = []
    choice = choose_backbone(download=True, note=notes.append)
    assert choice.backbone.name == EMBEDDED_BACKBONE
    assert len(notes) == 1
    assert "must hold the 2,223,872 parameters of mobilenetv2_100, it holds 0" in notes[0]


def test_kept_backbone_is_named_and_a_better_one_with_what_to_do(hub_cache: Path, mobilenetv2: bytes) -> None:
    own = "--backbone auto: the cache keeps its own, "
    assert kept_backbone(EMBEDDED_BACKBONE, weights=None, note=pytest.fail) == f"{own}featcache_nano"
    fill_cache(hub_cache, V2, {"model.safetensors": mobilenetv2})
    assert kept_backbone(EMBEDDED_BACKBONE, weights=None, note=pytest.fail) == (
        f"{own}featcache_nano ({NANO} on clothing10); mobilenetv2_100.ra_in1k is at hand and reaches {BETTER}: to use "
        "it name another --cache (for run another --out), or begin this one anew with build --overwrite"
    )
    for name in ("mobilenetv2_100", "mobilenetv2_100.ra_in1k", "resnet18"):
        assert kept_backbone(name, weights=None, note=pytest.fail) == f"{own}{name}"
    assert kept_backbone(EMBEDDED_BACKBONE, weights="random:0", note=pytest.fail) == f"{own}featcache_nano"
