"""Recovery: toward the float features, never worse for val, the same bytes after a kill, one line for each mistake."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_photo
from torch import nn
from typer.testing import CliRunner

import featcache
from featcache.cache import FeatureCache, open_cache
from featcache.cli import app
from featcache.compression import prune, quantize, recover
from featcache.compression import recovery as recovery_module
from featcache.compression.frozen_norms import frozen_norms
from featcache.compression.measurement import zero_share
from featcache.compression.recovery import RecoverySettings, parse_minutes, recover_network
from featcache.compression.refitting import open_source
from featcache.errors import CorruptError, ExistsError, InputError
from featcache.model.directory import load_model
from featcache.model.folding import find_batchnorms
from featcache.model.golden import Golden
from featcache.model.reference import logits_of_images

QUICK: dict[str, Any] = {"minutes": 0.02, "batch_size": 8}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with photos (two classes), the cache and model of a small network, and this model pruned."""
    folder = tmp_path_factory.mktemp("recover")
    for hue, name in enumerate(["cat", "dog"]):
        for i in range(16):
            write_photo(folder / "photos" / name / f"{i:02}.jpg", seed=100 * hue + i, hue=hue, size=(90, 80))
    featcache.build_cache(
        folder / "photos", folder / "cache", backbone="test_efficientnet", weights="random:3", precision="fp32",
        engine="torch",
    )  # fmt: skip
    head = featcache.train_head(folder / "cache", head=featcache.LinearOptions(l2=0.1))
    head.save(folder / "head")
    featcache.merge(folder / "head", folder / "cache", out=folder / "model")
    prune(folder / "model", cache=folder / "cache", out=folder / "pruned", amount=0.3)
    return folder


@pytest.fixture
def steps_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that fixes how long a step is taken to last: minutes then mean a number of steps."""

    def fix(per_minute: float) -> None:
        monkeypatch.setattr(
            "featcache.distillation.trainer.Trainer.seconds_per_step", lambda *_, **__: 60 / per_minute * (1 - 1e-9)
        )

    return fix


def files_of(model: Path) -> dict[str, bytes]:
    return {str(file.relative_to(model)): file.read_bytes() for file in sorted(model.rglob("*")) if file.is_file()}


def test_recovered_network_is_nearer_to_the_float_features(place: Path, tmp_path: Path, steps_of: Any) -> None:
    steps_of(1200)
    result = recover(place / "pruned", cache=place / "cache", out=tmp_path / "r", teacher=place / "model", **QUICK)
    assert result.kept and result.val_loss_after < 0.8 * result.val_loss_before
    assert result.steps_planned == 24 and result.views > 1 and 0 < result.steps <= 24
    model, pruned = load_model(tmp_path / "r"), load_model(place / "pruned")
    assert [step["verb"] for step in model.lineage] == ["merge", "prune", "recover"]
    assert model.surgery == pruned.surgery and model.digest() != pruned.digest()
    assert model.recipe.model_digest == model.digest() and model.recipe.fingerprint == model.fitted_head.fingerprint
    golden = Golden.load(tmp_path / "r" / "golden")
    np.testing.assert_allclose(logits_of_images(model, golden.images), golden.logits, atol=1e-5)
    assert not (tmp_path / "r.work").exists()
    printed = result.to_json()
    assert {"split", "n", "accuracy_before", "accuracy_after", "epochs", "views", "wall_seconds"} <= set(printed)
    json.dumps(printed, allow_nan=False)
    assert quantize(tmp_path / "r", cache=place / "cache", out=tmp_path / "q", calibration_images=4).n == result.n


def test_pruning_recovers_in_the_same_step(place: Path, tmp_path: Path, steps_of: Any) -> None:
    steps_of(900)
    lines: list[str] = []
    result = prune(
        place / "model", cache=place / "cache", out=tmp_path / "p", method="channel", amount=0.3, recover=0.02,
        say=lines.append,
    )  # fmt: skip
    model = load_model(tmp_path / "p")
    step = model.lineage[-1]
    assert step["verb"] == "prune" and step["recovery"]["kept"] and step["recovery"]["steps_planned"] == 18
    assert step["recovery"]["val_loss_after"] < step["recovery"]["val_loss_before"]
    assert result.settings["recovery"] == step["recovery"] and lines
    assert model.digest() == model.recipe.model_digest and not (tmp_path / "p.work").exists()


def test_zeros_stay_zeros(place: Path, tmp_path: Path, steps_of: Any) -> None:
    steps_of(600)
    prune(place / "model", cache=place / "cache", out=tmp_path / "p", method="magnitude", amount=0.5)
    result = recover(tmp_path / "p", cache=place / "cache", out=tmp_path / "r", minutes=0.02, batch_size=8)
    assert result.kept
    assert zero_share(load_model(tmp_path / "r").backbone) == zero_share(load_model(tmp_path / "p").backbone) > 0.49


class Swapped(nn.Module):
    """A network that is no backbone: one convolution, pooled, as many features as the float one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, width, 8, 8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.layer(images).mean(dim=(2, 3))
        return features


def test_any_module_from_images_to_features_is_trained(place: Path, tmp_path: Path, steps_of: Any) -> None:
    steps_of(1200)
    with open_cache(place / "cache") as cache:
        source = open_source(place / "model", cache)
        network = Swapped(cache.num_features)
        settings = RecoverySettings(minutes=0.03, batch_size=8, targets="features", learning_rate=1e-2)
        recovery = recover_network(network, source, settings, work=tmp_path / "work")
    assert recovery.kept and recovery.targets == "features" and recovery.views == 1
    assert not any(parameter.requires_grad and parameter.grad is not None for parameter in network.parameters())


def test_what_val_says_is_worse_is_not_kept(place: Path, tmp_path: Path, steps_of: Any) -> None:
    steps_of(600)
    result = recover(
        place / "pruned", cache=place / "cache", out=tmp_path / "r", learning_rate=50.0, minutes=0.05, batch_size=8
    )
    assert not result.kept and result.steps == 0 and result.val_loss_after == result.val_loss_before
    assert any("no better" in note for note in result.notes)
    assert result.accuracy_after == result.accuracy_before
    written, given = load_model(tmp_path / "r"), load_model(place / "pruned")
    assert written.digest() == given.digest()
    np.testing.assert_array_equal(written.fitted_head.weight, given.fitted_head.weight)  # type: ignore[attr-defined]


def test_training_ends_early_where_val_does_not_fall(place: Path, tmp_path: Path, steps_of: Any) -> None:
    steps_of(6000)
    result = recover(
        place / "pruned", cache=place / "cache", out=tmp_path / "r", learning_rate=5.0, minutes=0.01, batch_size=8
    )
    epochs_planned = result.steps_planned / (result.images // 8)
    assert result.steps_planned == 60 and result.epochs < 0.6 * epochs_planned


def test_no_label_is_needed(place: Path, tmp_path: Path, steps_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `features` and `logits` the loss never asks for a label, and gives the same network without any."""
    steps_of(600)

    def refuse(*_: object) -> None:
        raise AssertionError("a label was read")

    monkeypatch.setattr("featcache.distillation.trainer.hard_loss", refuse)
    with open_cache(place / "cache") as cache:
        source = open_source(place / "pruned", cache)
        for targets in ("features", "logits"):
            network = copy.deepcopy(source.model.backbone)
            settings = RecoverySettings(minutes=0.01, batch_size=8, targets=targets)  # type: ignore[arg-type]
            assert recover_network(network, source, settings, work=tmp_path / targets).targets == targets
        with pytest.raises(AssertionError, match="a label was read"):
            recover_network(
                network, source, RecoverySettings(minutes=0.01, batch_size=8, targets="labels"), work=tmp_path / "l"
            )


def test_without_a_val_split_a_part_of_train_is_held_out(
    place: Path, tmp_path: Path, steps_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps_of(600)
    usual = FeatureCache.select

    def select(self: FeatureCache, *, split: str | None = None, **options: Any) -> Any:
        found = usual(self, split=split, **options)
        return found if split != "val" else type(found)(found.indices[:0], found.rows[:0], found.labels[:0])

    monkeypatch.setattr(FeatureCache, "select", select)
    with open_cache(place / "cache") as cache:
        source = open_source(place / "pruned", cache)
        n = len(cache.select(split="train").indices)
        network = copy.deepcopy(source.model.backbone)
        recovery = recover_network(
            network, source, RecoverySettings(minutes=0.01, batch_size=8), work=tmp_path / "work"
        )
    assert recovery.val_images == max(1, n // 10) and recovery.images == n - recovery.val_images


KILLED = """
import sys
from featcache import recover
from featcache.distillation.trainer import Trainer
Trainer.seconds_per_step = lambda *_, **__: 0.2 * (1 - 1e-9)  # 60 steps, each of them one to be killed in
recover(sys.argv[1], cache=sys.argv[2], out=sys.argv[3], minutes=0.2, batch_size=8, checkpoint_seconds=0.0)
"""


def test_a_killed_run_ends_with_the_same_bytes(place: Path, tmp_path: Path, steps_of: Any) -> None:
    out = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", KILLED, place / "pruned", place / "cache", out])
    progress = tmp_path / "killed.work" / "progress.json"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if progress.exists() and json.loads(progress.read_text())["step"] >= 12:
            break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    plan = (tmp_path / "killed.work" / "plan.json").read_bytes()
    assert json.loads(progress.read_text())["step"] >= 12 and not out.exists()
    # the number of steps is the planned one, in the run that goes on and in one that was never killed, whatever is
    # measured then
    steps_of(1500)
    (tmp_path / "whole.work").mkdir()
    (tmp_path / "whole.work" / "plan.json").write_bytes(plan)
    results = []
    for name in ("killed", "whole"):
        results.append(recover(place / "pruned", cache=place / "cache", out=tmp_path / name, minutes=0.2, batch_size=8))
    assert results[0].steps_planned == results[1].steps_planned == json.loads(plan)["steps"] == 60
    assert files_of(out) == files_of(tmp_path / "whole")


def test_another_or_damaged_checkpoint_is_refused(place: Path, tmp_path: Path, steps_of: Any) -> None:
    steps_of(600)
    with open_cache(place / "cache") as cache:
        source = open_source(place / "pruned", cache)

        def again(**changes: Any) -> None:
            settings = RecoverySettings(**{"minutes": 0.02, "batch_size": 8, **changes})
            recover_network(copy.deepcopy(source.model.backbone), source, settings, work=tmp_path)

        again()
        with pytest.raises(InputError, match=r"learning_rate: 0\.0001 there, 0\.01 here") as caught:
            again(learning_rate=0.01)
        assert "\n" not in str(caught.value)
        state = next(tmp_path.glob("state-*.safetensors"))
        state.write_bytes(state.read_bytes()[:-1])
        with pytest.raises(CorruptError, match="was changed since it was written"):
            again()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minutes": 0.0}, "minutes must be 'auto' or a number above 0"),
        ({"minutes": float("nan")}, "minutes must be 'auto' or a number above 0"),
        ({"minutes": "soon"}, "minutes must be 'auto' or a number above 0"),
        ({"targets": "words"}, "--targets must be 'features', 'logits' or 'labels', got 'words'"),
        ({"views": 0}, "--views must be at least 1, got 0"),
        ({"views": 3}, "--views must be at most 1, the number .* holds, got 3: name the float model with --teacher"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number above 0"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"teacher": "pruned"}, "--teacher must be the float model as it was merged"),
    ],
)
def test_each_mistake_is_one_clear_line(place: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    settings = {**QUICK, **changes}
    if "teacher" in settings:
        settings["teacher"] = place / settings["teacher"]
    with pytest.raises(InputError, match=message) as caught:
        recover(place / "pruned", cache=place / "cache", out=tmp_path / "r", **settings)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_images_that_are_gone_are_named(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "photos", tmp_path / "photos")
    featcache.build_cache(
        tmp_path / "photos", tmp_path / "cache", backbone="test_efficientnet", weights="random:3", precision="fp32",
        engine="torch",
    )  # fmt: skip
    with open_cache(tmp_path / "cache") as cache:
        first = cache.samples().listing.absolute(int(cache.select(split="train").indices[0]))
        Path(first).unlink()
        source = open_source(place / "model", cache)
        with pytest.raises(InputError, match="must be the image that the teacher saw") as caught:
            recover_network(
                copy.deepcopy(source.model.backbone), source, RecoverySettings(minutes=0.01), work=tmp_path / "work"
            )
    assert "\n" not in str(caught.value)


def test_nothing_is_overwritten_unasked(place: Path, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    with pytest.raises(ExistsError):
        recover(place / "pruned", cache=place / "cache", out=tmp_path / "r", **QUICK)
    with pytest.raises(InputError, match="minutes must be"):
        prune(place / "model", cache=place / "cache", out=tmp_path / "p", amount=0.3, recover=-1.0)


def test_minutes_as_people_write_them() -> None:
    assert parse_minutes("auto", option="--minutes") == "auto"
    assert parse_minutes("2.5", option="--minutes") == 2.5
    assert parse_minutes("off", option="--recover", words=("off", "auto")) == "off"
    for text in ("off", "0", "-1", "nan", "inf", "ten"):
        with pytest.raises(InputError, match=r"--minutes must be 'auto' or minutes above 0 and at most 10080, got"):
            parse_minutes(text, option="--minutes")


def test_auto_is_ten_minutes_at_most(
    place: Path, tmp_path: Path, steps_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class EnoughError(Exception):
        pass

    def stop(*_: object, **__: object) -> None:
        raise EnoughError

    monkeypatch.setattr(recovery_module.RunDirectory, "train", stop)
    for per_minute, steps in ((1.5, 15), (6000.0, recovery_module.AUTO_LEAST_STEPS)):
        steps_of(per_minute)
        with open_cache(place / "cache") as cache, pytest.raises(EnoughError):
            source = open_source(place / "pruned", cache)
            network = copy.deepcopy(source.model.backbone)
            recover_network(network, source, RecoverySettings(batch_size=8), work=tmp_path / str(steps))
        assert json.loads((tmp_path / str(steps) / "plan.json").read_text())["steps"] == steps


@pytest.mark.parametrize("bias", [False, True])
def test_frozen_norms_give_the_same_outputs_and_gradients(bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=bias), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6, bias=bias),
        nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.copy_(torch.rand(6, generator=generator) + 0.5)
    network.eval()
    images = torch.randn(4, 3, 12, 12, generator=generator)

    def gradients() -> list[torch.Tensor]:
        network.zero_grad()
        outputs = network(images)
        outputs.square().sum().backward()
        return [outputs.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]

    expected = gradients()
    pairs = find_batchnorms(network, height=12, width=12)
    with frozen_norms(network, pairs, height=12, width=12) as joined:
        assert joined == len(pairs) == 2
        found = gradients()
    assert all("forward" not in vars(module) for module in network.modules())
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    for one, other in zip(expected, gradients(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_command(place: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-c", "import featcache.cli; featcache.cli.main()", "recover", str(place / "pruned"),
        "--cache", str(place / "cache"), "--out", str(tmp_path / "r"), "--minutes", "0.02", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    printed = json.loads(done.stdout)
    assert printed["split"] == "test" and printed["wall_seconds"] > 0 and "steps of" in done.stderr
    bad = CliRunner().invoke(app, [*command[3:-3], "--minutes", "soon"])
    assert isinstance(bad.exception, InputError) and "\n" not in str(bad.exception)
    assert "--minutes must be 'auto' or minutes" in str(bad.exception)
