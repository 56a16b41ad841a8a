"""Students from a cache: the teacher's own views, the same weights after a kill, one clear line for mistakes."""

from __future__ import annotations

import dataclasses
import json
import os
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
from fake import FakeEngine, fake_recipe
from safetensors.numpy import load_file
from torch.nn import functional

import featcache
from featcache.cache import open_cache
from featcache.distillation import DistillSettings, distill
from featcache.distillation.join import join_images
from featcache.distillation.lesson import choose_lesson
from featcache.distillation.losses import feature_loss, hard_loss, soft_loss
from featcache.distillation.replay import RenderedViews, StreamedViews, replay_views
from featcache.distillation.targets import CachedTargets
from featcache.errors import (
    BackboneError,
    CorruptError,
    ExistsError,
    FeatcacheError,
    InputError,
    WeightsError,
)
from featcache.extract.build import Extractor
from featcache.images.load import load_image
from featcache.images.views import draw_view

STUDENT = "test_efficientnet"
QUICK: dict[str, Any] = {"student": STUDENT, "input_size": 32, "epochs": 2, "batch_size": 8, "precision": "fp32"}


class Teacher(FakeEngine):
    """The fake's features, and logits over many classes that are a fixed function of them."""

    columns = (("features", (48,)), ("logits", (100,)))

    def _infer(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        (features,) = super()._infer(batch)
        weight = np.random.default_rng(0).normal(size=(48, 100)).astype(np.float32)
        return features, 4 * features @ weight


def build_teacher(images: Path, cache: Path, *, views: int = 3, logits: bool = True, **changes: Any) -> Path:
    engine = Teacher() if logits else FakeEngine()
    outputs = ("features", "logits") if logits else ("features",)
    recipe = fake_recipe(outputs=outputs, views=views, **changes)
    featcache.build_cache(images, cache, extractor=Extractor(engine, recipe))  # type: ignore[arg-type]
    return cache


@pytest.fixture
def teacher(photos: Path, tmp_path: Path) -> Path:
    return build_teacher(photos, tmp_path / "teacher")


def test_a_student_is_a_weights_file_that_load_backbone_takes(photos: Path, teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "student.safetensors"
    report = distill(photos, teacher, out=out, alpha=0.8, **QUICK)
    assert report.bytes == out.stat().st_size < 2 * report.parameters + 60_000  # two bytes each, and the header
    assert report.images == len(join_images(photos, []).train) and report.views == 3
    assert report.val_accuracy is not None and report.n_val > 0
    assert set(report.losses) == {"features", "soft", "hard"}
    backbone = featcache.load_backbone(None, weights=out, outputs=("features", "logits"))
    assert backbone.model_name == STUDENT
    assert (backbone.preprocessing.height, backbone.preprocessing.width) == (32, 32)
    assert backbone.preprocessing.mean == (0.5, 0.5, 0.5)
    assert backbone.output_shapes == ((report.num_features,), (2,))
    assert not out.with_name("student.safetensors.work").exists()


def test_the_teachers_network_is_never_loaded(
    photos: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a teacher was loaded")

    monkeypatch.setattr("featcache.backbone.load.load_backbone", refuse)
    monkeypatch.setattr("featcache.engines.open_engine", refuse)
    distill(photos, teacher, out=tmp_path / "student.safetensors", **{**QUICK, "epochs": 1})


def test_a_student_learns_the_teachers_features(photos: Path, teacher: Path, tmp_path: Path) -> None:
    before = distill(photos, teacher, out=tmp_path / "a", targets="features", **{**QUICK, "epochs": 1})
    after = distill(
        photos, teacher, out=tmp_path / "b", targets="features", learning_rate=5e-3, **{**QUICK, "epochs": 60}
    )
    assert set(after.losses) == {"features"} and after.val_accuracy is None
    assert after.losses["features"] < 0.75 * before.losses["features"]


def test_the_student_sees_the_teachers_views(photos: Path, teacher: Path, tmp_path: Path) -> None:
    with open_cache(teacher) as cache:
        spec = choose_lesson([cache], None, requested=None, views=None, classes=("cat", "dog")).view_spec(32)
        train = join_images(photos, [cache]).train
    rendered = replay_views(tmp_path / "views.u8", train, spec)
    assert isinstance(rendered, RenderedViews)
    positions, views = np.arange(len(train)).repeat(3), np.tile(np.arange(3), len(train))
    pixels = rendered.batch(positions, views)
    np.testing.assert_array_equal(pixels, StreamedViews(train, spec).batch(positions, views))
    for row in range(len(positions)):
        data = Path(train.paths[positions[row]]).read_bytes()
        view = draw_view(0, train.digests[positions[row]].tobytes(), int(views[row]))
        expected = load_image(data, spec.preprocessing, decoder="pillow", view=view)
        np.testing.assert_array_equal(pixels[row], expected)


def test_targets_are_the_cached_rows_of_the_image_and_view(photos: Path, teacher: Path) -> None:
    with open_cache(teacher) as cache:
        joined = join_images(photos, [cache])
        lesson = choose_lesson([cache], None, requested=None, views=None, classes=joined.classes)
        targets = CachedTargets(
            [cache], joined.train.digests, views=lesson.views, features=True, soft=lesson.soft, temperature=2.0, seed=0
        )
        n = len(joined.train)
        positions, views = np.arange(n)[::-1].copy(), np.arange(n) % 3
        (features,) = targets.features(positions, views)
        soft = targets.soft_labels(positions, views)
        with cache.reader() as reader:
            rows = reader.find(joined.train.digests)
            every = [
                reader.gather("features" if v == 0 else f"features@{v}", rows).astype(np.float64) for v in range(3)
            ]
            logits = [reader.gather("logits" if v == 0 else f"logits@{v}", rows).astype(np.float64) for v in range(3)]
        stacked = np.concatenate(every)
        for row in range(n):
            at, view = positions[row], views[row]
            expected = (every[view][at] - stacked.mean(axis=0)) / stacked.std(axis=0)
            np.testing.assert_allclose(features[row], expected, atol=1e-3)
            probabilities = np.exp(logits[view][at] / 2) / np.exp(logits[view][at] / 2).sum()
            assert set(soft.classes[row]) == set(np.argsort(-probabilities)[:6])
            np.testing.assert_allclose(soft.probabilities[row], probabilities[soft.classes[row]], atol=1e-3)
        assert targets.bytes_per_view == {"features": 96, "soft_labels": 24}
        targets.close()


def test_soft_loss_is_the_kl_divergence_and_less_where_classes_are_merged() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, wanted = torch.randn(5, 9, generator=generator), torch.randn(5, 9, generator=generator)
    temperature = 3.0
    teacher = functional.softmax(wanted / temperature, dim=1)
    full = temperature**2 * functional.kl_div(
        functional.log_softmax(logits / temperature, dim=1), teacher, reduction="batchmean"
    )
    every = torch.arange(9).expand(5, 9)
    torch.testing.assert_close(soft_loss(logits, every, teacher, temperature=temperature), full)
    top = teacher.topk(4, dim=1)
    merged = soft_loss(logits, top.indices, top.values, temperature=temperature)
    assert 0 < merged < full
    torch.testing.assert_close(
        soft_loss(wanted, top.indices, top.values, temperature=temperature), torch.tensor(0.0), atol=1e-6, rtol=0
    )


def test_losses_of_nothing_learned_and_of_unlabelled_images() -> None:
    generator = torch.Generator().manual_seed(0)
    standardised = torch.randn(4000, 3, generator=generator)
    assert abs(float(feature_loss(torch.zeros(4000, 3), standardised)) - 1) < 0.05
    logits = torch.zeros(4, 10)
    assert float(hard_loss(logits, torch.tensor([-1, -1, -1, -1]))) == 0
    torch.testing.assert_close(hard_loss(logits, torch.tensor([3, -1, -1, 4])), torch.tensor(10.0).log())


def test_unlabelled_images_are_welcome(tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    for i in range(10):
        write_photo(flat / f"{i}.jpg", seed=i)
    teacher = build_teacher(flat, tmp_path / "teacher")
    report = distill(flat, teacher, out=tmp_path / "s.safetensors", **{**QUICK, "epochs": 1})
    assert report.images == 10  # no split is drawn among them
    assert set(report.losses) == {"features", "soft"} and report.classes == 0 and report.val_accuracy is None


def test_soft_labels_of_a_head(photos: Path, teacher: Path, tmp_path: Path) -> None:
    with open_cache(teacher) as cache:
        head = featcache.train_head(cache, head=featcache.LinearOptions(l2=0.1)).head
    report = distill(
        photos, teacher, teacher_head=head, targets="logits", out=tmp_path / "s.safetensors", alpha=0.5, **QUICK
    )
    assert report.soft_label_bytes_per_view == 4  # both classes, half precision
    assert report.feature_bytes_per_view == 0
    assert set(report.losses) == {"soft", "hard"} and report.classes == 2
    stranger = dataclasses.replace(head, fingerprint="f" * 64)
    with pytest.raises(InputError, match="trained on the teacher's cache"):
        distill(photos, teacher, teacher_head=stranger, out=tmp_path / "t.safetensors", **QUICK)


def test_several_teachers(photos: Path, teacher: Path, tmp_path: Path) -> None:
    other = build_teacher(photos, tmp_path / "other", views=2, logits=False, weights_sha256="1" * 64)
    report = distill(photos, [other, teacher], out=tmp_path / "s.safetensors", **{**QUICK, "epochs": 1})
    assert report.views == 2 and report.feature_bytes_per_view == 2 * 96


def test_the_same_seed_gives_the_same_file(photos: Path, teacher: Path, tmp_path: Path) -> None:
    places = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for place, seed in zip(places, (0, 0, 1), strict=True):
        distill(photos, teacher, out=place, seed=seed, jitter=0.3, **QUICK)
    assert places[0].read_bytes() == places[1].read_bytes()
    assert weights_of(places[0]) != weights_of(places[2])


def weights_of(place: Path) -> str:
    return featcache.load_backbone(None, weights=place).weights_sha256


KILLED = """
import sys
import featcache
featcache.distill(
    sys.argv[1], sys.argv[2], out=sys.argv[3], student="test_efficientnet", input_size=32, epochs=500, batch_size=8,
    precision="fp32", jitter=0.3, checkpoint_seconds=0.0,
)
"""


def test_a_killed_run_ends_with_the_same_weights(photos: Path, teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed.safetensors"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(photos), str(teacher), str(out)])
    progress = tmp_path / "killed.safetensors.work" / "progress.json"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if progress.exists() and json.loads(progress.read_text())["step"] >= 2:
            break
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    killed_at = json.loads(progress.read_text())["step"]
    assert killed_at >= 2 and not out.exists()
    steps_per_epoch = len(join_images(photos, []).train) // 8
    settings = {**QUICK, "epochs": max(3, 2 * killed_at // steps_per_epoch), "jitter": 0.3}
    resumed = distill(photos, teacher, out=out, **settings)
    assert resumed.resumed_from == killed_at and resumed.steps_now == resumed.steps - killed_at
    whole = tmp_path / "whole.safetensors"
    assert distill(photos, teacher, out=whole, **settings).resumed_from == 0
    assert out.read_bytes() == whole.read_bytes()


def test_a_run_made_longer_is_the_longer_run(photos: Path, teacher: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "longer.safetensors", tmp_path / "whole.safetensors"
    distill(photos, teacher, out=out, keep_work=True, **QUICK)
    longer = distill(photos, teacher, out=out, overwrite=True, keep_work=True, **{**QUICK, "epochs": 4})
    assert 0 < longer.resumed_from < longer.steps
    distill(photos, teacher, out=whole, **{**QUICK, "epochs": 4})
    assert out.read_bytes() == whole.read_bytes()
    with pytest.raises(InputError, match="past that for epochs=1"):
        distill(photos, teacher, out=out, overwrite=True, **{**QUICK, "epochs": 1})


def test_a_run_can_begin_with_another_ones_weights(photos: Path, teacher: Path, tmp_path: Path) -> None:
    distill(
        photos, teacher, out=tmp_path / "a.safetensors", keep_work=True, learning_rate=5e-3, **{**QUICK, "epochs": 20}
    )
    begun = tmp_path / "a.safetensors.work"
    fresh = distill(photos, teacher, out=tmp_path / "b.safetensors", **{**QUICK, "epochs": 1})
    warm = distill(photos, teacher, out=tmp_path / "c.safetensors", start=begun, **{**QUICK, "epochs": 1})
    assert warm.losses["features"] < fresh.losses["features"]

    def first_layer(name: str) -> np.ndarray:
        tensors = load_file(tmp_path / name)
        return next(v for k, v in sorted(tensors.items()) if v.ndim == 4).astype(np.float32)

    still = {**QUICK, "epochs": 1, "learning_rate": 1e-9}
    distill(photos, teacher, out=tmp_path / "e.safetensors", start=tmp_path / "a.safetensors", **still)
    np.testing.assert_allclose(first_layer("e.safetensors"), first_layer("a.safetensors"), atol=2e-4)
    assert np.abs(first_layer("e.safetensors") - first_layer("b.safetensors")).max() > 2e-3
    with pytest.raises(InputError, match="work directory of another run"):
        distill(photos, teacher, out=tmp_path / "d.safetensors", start=tmp_path / "none", **QUICK)


def test_a_teacher_without_an_image_is_named(photos: Path, teacher: Path, tmp_path: Path) -> None:
    for i in range(4):
        write_photo(photos / "cat" / f"new{i}.jpg", seed=900 + i)
    with pytest.raises(InputError, match=r"hold a row of every training image, \d of \d+ are missing, first 'cat/new"):
        distill(photos, teacher, out=tmp_path / "s.safetensors", **QUICK)


def test_an_image_that_failed_for_the_teacher_is_left_out(photos: Path, tmp_path: Path) -> None:
    (photos / "dog" / "00.jpg").write_bytes(b"not an image")
    teacher = build_teacher(photos, tmp_path / "teacher")
    report = distill(photos, teacher, out=tmp_path / "s.safetensors", **{**QUICK, "epochs": 1})
    failed = [path for path, _ in report.failures]
    assert failed in ([], ["dog/00.jpg"])  # in train, or drawn into another split
    assert report.images == len(join_images(photos, []).train) - len(failed)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"views": 4}, InputError, "views must be 1 to 3, the number the teacher .* holds, got 4"),
        ({"targets": "both", "teacher": "bare"}, InputError, "need soft labels: name a teacher_head"),
        ({"student": "vit_tiny_patch16_224"}, InputError, r"must take an input of 32x32 pixels, it does not \("),
        ({"student": "nosuchnet"}, BackboneError, "must be a timm model, got 'nosuchnet'"),
        ({"targets": "words"}, InputError, "must be 'features', 'logits' or 'both', got 'words'"),
        ({"teacher": "seeded"}, InputError, "must have seen the same views"),
        ({"alpha": 1.5}, InputError, r"alpha must be in \[0, 1\], got 1.5"),
    ],
)
def test_one_clear_line_for_each_mistake(
    photos: Path, teacher: Path, tmp_path: Path, changes: dict[str, Any], kind: type[FeatcacheError], message: str
) -> None:
    caches: Any = teacher
    if changes.get("teacher") == "bare":
        caches = build_teacher(photos, tmp_path / "bare", logits=False)
    elif changes.get("teacher") == "seeded":
        caches = [teacher, build_teacher(photos, tmp_path / "seeded", view_seed=5)]
    settings = {**QUICK, **{name: value for name, value in changes.items() if name != "teacher"}}
    with pytest.raises(kind, match=message) as caught:
        distill(photos, caches, out=tmp_path / "s.safetensors", **settings)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("s.safetensors*"))


def test_an_unfinished_run_is_gone_on_with_as_begun_or_not_at_all(photos: Path, teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.safetensors"
    distill(photos, teacher, out=out, keep_work=True, **QUICK)
    with pytest.raises(InputError, match=r"learning_rate: 0\.002 there, 0\.001 here"):
        distill(photos, teacher, out=out, overwrite=True, learning_rate=1e-3, **QUICK)
    work = tmp_path / "s.safetensors.work"
    state = next(work.glob("state-*.safetensors"))
    damaged = bytearray(state.read_bytes())
    damaged[-1] ^= 1
    state.write_bytes(damaged)
    with pytest.raises(CorruptError, match="was changed since it was written"):
        distill(photos, teacher, out=out, overwrite=True, **QUICK)
    (work / "progress.json").write_text("{")
    with pytest.raises(CorruptError, match="must be JSON"):
        distill(photos, teacher, out=out, overwrite=True, **QUICK)


def test_nothing_is_overwritten_unasked(photos: Path, teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.safetensors"
    out.write_bytes(b"mine")
    with pytest.raises(ExistsError):
        distill(photos, teacher, out=out, **QUICK)
    assert out.read_bytes() == b"mine"


def test_settings_refuse_what_makes_no_sense() -> None:
    for name, value in [("epochs", 0), ("batch_size", 0), ("temperature", 0.0), ("learning_rate", float("nan")),
                        ("average", 1.0), ("jitter", -1.0), ("precision", "fp8"), ("cooldown", 2.0)]:  # fmt: skip
        with pytest.raises(InputError, match=name):
            DistillSettings("x", **{name: value})


def test_the_learning_rate_rises_stays_and_falls() -> None:
    settings = DistillSettings("x", learning_rate=1.0, warmup_steps=9, cooldown=0.2)
    rates = [settings.rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9:80] == [1.0] * 71
    assert rates[79:] == sorted(rates[79:], reverse=True) and 0 < rates[99] < 0.03


def test_a_changed_or_cut_student_is_refused_in_one_line(photos: Path, teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.safetensors"
    distill(photos, teacher, out=out, **{**QUICK, "epochs": 1})
    good = out.read_bytes()
    for bad in (good[:-9], good[: len(good) // 2], good[:-1] + bytes([good[-1] ^ 1]), good.replace(b"0.5", b"0.4", 1)):
        out.write_bytes(bad)
        with pytest.raises(WeightsError) as caught:
            featcache.load_backbone(None, weights=out)
        assert "\n" not in str(caught.value)


def test_the_command(photos: Path, teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.safetensors"
    command = [
        sys.executable, "-c", "import featcache.cli; featcache.cli.main()", "distill", str(photos),
        "--teacher", str(teacher), "--student", STUDENT, "--out", str(out),
        "--input-size", "32", "--epochs", "1", "--batch-size", "8", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    printed = json.loads(done.stdout)
    assert printed["bytes"] == out.stat().st_size and printed["soft_label_bytes_per_view"] == 24
    assert "24 of soft labels" in done.stderr
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 1 and again.stderr.count("\n") == 1 and "exists already" in again.stderr


def test_an_embedded_backbone_is_a_student_in_the_package(
    photos: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "featcache_nano.safetensors"
    monkeypatch.setattr("featcache.backbone.load.embedded_weights", lambda: place)
    with pytest.raises(WeightsError, match="'featcache_nano' must lie in this installation"):
        featcache.load_backbone("featcache_nano")
    distill(photos, teacher, out=place, **{**QUICK, "epochs": 1})
    backbone = featcache.load_backbone("featcache_nano")
    untrained = featcache.load_backbone("featcache_nano", weights="random:0")
    assert backbone.model_name == untrained.model_name == STUDENT
    assert backbone.preprocessing == untrained.preprocessing and backbone.preprocessing.height == 32
    assert untrained.weights_label == "random:0" and untrained.weights_sha256 != backbone.weights_sha256
