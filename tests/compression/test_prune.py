from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from small_models import merged, write_photos

from featcache.compression import prune, quantize
from featcache.compression.measurement import graph_macs
from featcache.errors import ExistsError, InputError
from featcache.graph.write import write_onnx
from featcache.model.directory import load_model
from featcache.model.golden import Golden
from featcache.model.reference import logits_of_images

BACKBONE = "mobilenetv2_050"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("prune"))


def made(photos: Path, backbone: str) -> Path:
    """Return the folder with the cache and the model of `backbone` on the photos, made once."""
    return merged(photos, photos.parent / backbone, backbone)


@pytest.fixture
def place(photos: Path) -> Path:
    return made(photos, BACKBONE)


def test_channel_pruning_reaches_the_multiplications_asked_for(place: Path, tmp_path: Path) -> None:
    result = prune(place / "model", cache=place / "cache", out=tmp_path / "p", method="channel", amount=0.4)
    before = graph_macs(write_onnx(load_model(place / "model"), tmp_path / "before.onnx"))
    pruned = load_model(tmp_path / "p")
    after = graph_macs(write_onnx(pruned, tmp_path / "after.onnx"))
    assert abs(after / before - 0.6) <= 0.02 * 0.6
    assert (result.macs, result.macs_before) == (after, before)
    assert result.parameters == pruned.parameter_count() < load_model(place / "model").parameter_count()
    assert result.bytes_after < result.bytes_before
    assert result.latency_ms_before > 0 and result.latency_ms_after > 0
    assert pruned.recipe.model_digest is not None
    assert pruned.recipe.fingerprint == pruned.fitted_head.fingerprint
    golden = Golden.load(tmp_path / "p" / "golden")
    np.testing.assert_allclose(logits_of_images(pruned, golden.images), golden.logits, atol=1e-5)


@pytest.mark.long
def test_a_pruned_model_can_be_quantized(place: Path, tmp_path: Path) -> None:
    prune(place / "model", cache=place / "cache", out=tmp_path / "p", method="channel", amount=0.2)
    result = quantize(tmp_path / "p", cache=place / "cache", out=tmp_path / "q", calibration_images=2)
    model = load_model(tmp_path / "q")
    assert [step["verb"] for step in model.lineage] == ["merge", "prune", "quantize"]
    assert result.macs_before < 0.85 * graph_macs(write_onnx(load_model(place / "model"), tmp_path / "f.onnx"))
    with pytest.raises(InputError, match="prune first"):
        prune(tmp_path / "q", cache=place / "cache", out=tmp_path / "x", amount=0.2)


def test_a_transformer_loses_channels_and_the_limit_is_named(photos: Path, tmp_path: Path) -> None:
    place = made(photos, "test_vit")
    result = prune(place / "model", cache=place / "cache", out=tmp_path / "p", method="channel", amount=0.1)
    assert result.macs / result.macs_before == pytest.approx(0.9, abs=0.018)
    with pytest.raises(InputError, match=r"at most 0\.\d+ for 'test_vit'"):
        prune(place / "model", cache=place / "cache", out=tmp_path / "x", method="channel", amount=0.9)
    assert not (tmp_path / "x").exists()


def test_a_residual_network_is_pruned_and_then_quantized(photos: Path, tmp_path: Path) -> None:
    """Its few wide groups need finer steps than eight channels, and folding must not lose the batch norms' widths."""
    place = made(photos, "test_resnet")
    result = prune(place / "model", cache=place / "cache", out=tmp_path / "p", method="channel", amount=0.1)
    assert result.macs / result.macs_before == pytest.approx(0.9, abs=0.018)
    quantize(tmp_path / "p", cache=place / "cache", out=tmp_path / "q", calibration_images=2)
    again = load_model(tmp_path / "q")
    assert [step["verb"] for step in again.lineage] == ["merge", "prune", "quantize"]
    with pytest.raises(InputError, match="prune first"):
        prune(tmp_path / "q", cache=place / "cache", out=tmp_path / "x", amount=0.2)
    assert again.surgery.widths and again.surgery.folded


@pytest.mark.parametrize("amount", [0, 1, -0.5, 1.5])
def test_amounts_that_make_no_sense_are_refused(place: Path, tmp_path: Path, amount: float) -> None:
    with pytest.raises(InputError, match="amount"):
        prune(place / "model", cache=place / "cache", out=tmp_path / "p", amount=amount)


def test_other_refusals(place: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="method"):
        prune(place / "model", cache=place / "cache", out=tmp_path / "p", method="random", amount=0.1)  # type: ignore[arg-type]
    shutil.copytree(place / "model", tmp_path / "there")
    with pytest.raises(ExistsError):
        prune(place / "model", cache=place / "cache", out=tmp_path / "there", amount=0.1)
