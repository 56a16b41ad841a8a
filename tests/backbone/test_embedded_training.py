"""How the embedded backbone is trained: it goes on as if never stopped, and its views are what the teachers saw."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from featcache.backbone.checkpoint import read_checkpoint
from featcache.backbone.embedded import embedded_weights
from featcache.backbone.load import load_backbone
from featcache.backbone.nano import NANO, STAGES, STEM
from featcache.backbone.timm_import import import_timm

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the scripts' own package be imported."""
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made_photos(count: int = 64, classes: int = 4) -> Any:
    from embedded.photos import Photos

    draw = np.random.default_rng(0)
    return Photos(
        draw.integers(0, 256, (count, 64, 64, 3), np.uint8), np.arange(count) % classes, tuple("abcd"[:classes])
    )


def made_lessons() -> Any:
    """Return lessons of 64 photos in three views, whose two teachers are random numbers."""
    from embedded.kept import KeptLessons
    from embedded.targets import soft_head, standardised
    from embedded.views import crop_boxes

    photos = made_photos()
    draw = np.random.default_rng(1)
    answered = [draw.normal(size=(3, len(photos), width)).astype(np.float16) for width in (12, 20)]
    plain = [torch.from_numpy(table[0]).float() for table in answered]
    scales = [standardised(one) for one in plain]
    seen = [scale(one) for scale, one in zip(scales, plain, strict=True)]
    head = soft_head(seen, torch.from_numpy(photos.labels), 4, steps=3)
    return KeptLessons(photos, crop_boxes(len(photos), 3, 1), answered, scales, head)


def trained(home: Path, settings: Any, *steps: int) -> dict[str, Tensor]:
    """Return the weights after the last of `steps`, each a call of its own."""
    from embedded.loop import train
    from embedded.school import new_student

    found: dict[str, Tensor] = {}
    for last in steps:
        lessons = made_lessons()
        found = train(new_student(settings, lessons, home, home), lessons, settings, last, home, lambda line: None)
    return found


def settings_of(**changed: Any) -> Any:
    from embedded.loop import Settings

    return dataclasses.replace(Settings(batch=16, hold=1.0, cutmix=0.5, relational=0.5), **changed)


@pytest.mark.parametrize(("optimizer", "frozen"), [("adamw", True), ("muon", False)])
def test_run_that_was_stopped_ends_with_the_same_bytes(tmp_path: Path, optimizer: str, frozen: bool) -> None:
    settings = settings_of(optimizer=optimizer, frozen_norms=frozen)
    whole, parts = trained(tmp_path / "a", settings, 4), trained(tmp_path / "b", settings, 2, 4)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert any(not torch.equal(whole[name], new) for name, new in trained(tmp_path / "c", settings, 3).items())
    assert torch.equal(whole["network.bn1.running_mean"], torch.zeros(STEM)) == frozen


def test_run_without_time_stops_after_a_step_and_goes_on(tmp_path: Path) -> None:
    from embedded.loop import train
    from embedded.school import new_student

    settings, lessons = settings_of(frozen_norms=True), made_lessons()
    student = new_student(settings, lessons, tmp_path, tmp_path)
    assert train(student, lessons, settings, 3, tmp_path, lambda line: None, until=0.0) is None
    whole, parts = trained(tmp_path / "a", settings, 3), trained(tmp_path, settings, 3)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_student_begins_with_its_weights_and_with_ends_that_fit_them(tmp_path: Path) -> None:
    """What is a linear map of its features, the solved ends give; drawn ones give no better than a constant."""
    from embedded.loop import Lesson
    from embedded.school import new_student

    network = import_timm().create_model(NANO, num_classes=0).eval()
    network.load_state_dict(read_checkpoint(embedded_weights())[0], strict=False)
    wanted = torch.randn(1280, 5, generator=torch.Generator().manual_seed(1))

    class Own:
        count, widths, classes = 640, (5,), 5

        def lesson(self, step: int, settings: Any, side: int) -> Lesson:
            coarse = torch.rand(16, 3, 4, 4, generator=torch.Generator().manual_seed(step)) * 2 - 1
            images = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(-1, 1)
            with torch.no_grad():
                targets = network(images) @ wanted
            return Lesson(images, (targets,), targets, torch.zeros(16, dtype=torch.long))

    (tmp_path / "first.safetensors").write_bytes(embedded_weights().read_bytes())
    settings = settings_of(begins="first.safetensors", frozen_norms=True, sides=((1.0, 64),))
    lesson = Own().lesson(1000, settings, 64)
    variance = lesson.features[0].var(0).mean()
    for begins, least, most in (("first.safetensors", 0.0, 0.3), (None, 0.9, float("inf"))):
        student = new_student(dataclasses.replace(settings, begins=begins), Own(), tmp_path, tmp_path / "run").eval()
        _, (predicted,), logits = student(lesson.images)
        for given in (predicted, logits):
            assert least <= float((given.detach() - lesson.features[0]).square().mean() / variance) < most


def test_characters_are_alike_where_they_are_the_same() -> None:
    from embedded.glyphs import draw_glyphs

    images, labels = draw_glyphs(2000, 16, torch.Generator().manual_seed(0))
    again, _ = draw_glyphs(2000, 16, torch.Generator().manual_seed(0))
    assert torch.equal(images, again)
    assert images.abs().max() <= 1
    ink = (images - images[:, :, :1, :1]).abs().mean(1).flatten(1)
    shapes = torch.nn.functional.normalize(ink, dim=1)
    likeness = shapes @ shapes.T
    same = (labels[:, None] == labels) & ~torch.eye(len(labels), dtype=torch.bool)
    assert likeness[same].mean() > likeness[~same].mean() + 0.1


def test_every_means_is_a_setting_and_can_be_named() -> None:
    """What `--only` is told is separated by semicolons."""
    from embedded.means import MEANS, settings_of, steps_of

    assert len({settings_of(name) for name in MEANS}) == len(MEANS), "each is another run"
    assert all(";" not in name and steps_of(name) > 0 for name in MEANS)


def test_architecture_is_as_narrow_as_it_says() -> None:
    network = import_timm().create_model(NANO, num_classes=0)
    inner = [block.conv_dw.out_channels for stage in network.blocks[1:] for block in stage]
    sums = [block.conv_pwl.out_channels for stage in network.blocks[1:] for block in stage]
    assert inner == [one for _, _, widths in STAGES for one in widths]
    assert sums == [width for _, width, widths in STAGES for _ in widths]


def test_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, settings_of(), 1)
    with pytest.raises(SystemExit, match="of other settings"):
        trained(tmp_path, settings_of(batch=8), 2)


def test_processes_share_a_batch_without_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    from embedded import processes

    lessons, settings = made_lessons(), settings_of()
    whole = lessons.lesson(5, settings, 32)
    monkeypatch.setattr(processes, "processes", lambda: 2)
    parts = []
    for number in range(2):
        monkeypatch.setattr(processes, "rank", lambda number=number: number)
        parts.append(lessons.lesson(5, settings, 32))
    for number, share in enumerate(parts):
        torch.testing.assert_close(share.images, whole.images[number::2])
        assert torch.equal(share.labels, whole.labels[number::2])


def test_views_are_those_the_teachers_saw() -> None:
    """A crop cut large and made small is the crop cut small; mirrored, it is that one from the other side."""
    from embedded.views import crop_boxes, cut

    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 64, 3))
    pixels = torch.from_numpy(np.stack([ramp] * 6))
    boxes = torch.from_numpy(crop_boxes(6, 2, 3)[1])
    large, small = cut(pixels, boxes, 128), cut(pixels, boxes, 32)
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(large, 4)[inner], small[inner], atol=0.01, rtol=0)
    mirrored = cut(pixels, boxes, 32, mirrored=torch.ones(6, dtype=torch.bool))
    torch.testing.assert_close(mirrored.flip(3), small, atol=1e-5, rtol=0)
    whole = cut(pixels, torch.from_numpy(crop_boxes(6, 2, 3)[0]), 64)
    torch.testing.assert_close(whole, pixels.permute(0, 3, 1, 2) / 127.5 - 1)


def test_whitened_targets_are_alike_in_scale_and_apart() -> None:
    from embedded.targets import whitened

    draw = torch.Generator().manual_seed(0)
    features = torch.randn(500, 3, generator=draw) @ torch.randn(3, 8, generator=draw) + 5
    targets = whitened(features, 3, power=1.0)(features)
    torch.testing.assert_close(targets.T @ targets / 500, torch.eye(3), atol=0.02, rtol=0)


def test_pack_holds_photos_and_is_refused_where_it_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embedded import pack

    photos, begins = made_photos(8), tmp_path / "first"
    begins.write_bytes(b"weights")
    size = pack.write_pack(photos, [], tmp_path, begins, tmp_path / "pack", quality=90)
    back = pack.read_pack(tmp_path / "pack")
    assert size == (tmp_path / "pack" / "photos.npz").stat().st_size + len(b"weights")
    assert back.pixels.shape == photos.pixels.shape
    assert (back.labels.tolist(), back.classes) == (photos.labels.tolist(), photos.classes)
    monkeypatch.setattr(pack, "MOST_BYTES", 100)
    with pytest.raises(SystemExit, match="lower --quality"):
        pack.write_pack(photos, [], tmp_path, begins, tmp_path / "pack")


def test_teachers_go_on_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from embedded import teachers
    from embedded.views import crop_boxes

    asked: list[int] = []

    def answer(images: Tensor) -> np.ndarray:
        asked.append(len(images))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return images.mean((2, 3)).numpy()

    class Mean(teachers.Teacher):
        def build(self, folder: Path) -> torch.nn.Module:
            return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())

    monkeypatch.setattr(teachers, "_fast", lambda network, side: answer)
    photos, boxes = made_photos(10), crop_boxes(10, 2, 1)
    teacher, kept = Mean("mean", "none", 0, 8), tmp_path / "mean.npy"
    with pytest.raises(KeyboardInterrupt):
        teachers.answers(teacher, photos, boxes, tmp_path, kept, lambda line: None)
    table = teachers.answers(teacher, photos, boxes, tmp_path, kept, lambda line: None)
    assert (asked, table.shape) == ([10, 10, 10], (2, 10, 3))
    assert np.abs(table).sum(axis=(1, 2)).min() > 0


@pytest.mark.shared
@pytest.mark.skipif(not (ROOT.parent / "shared" / "weights").is_dir(), reason="no ../shared beside the checkout")
@pytest.mark.slow
def test_packed_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """The form of a lent machine, on a processor: the teachers answer each crop on the spot."""
    from embedded.pack import write_pack
    from embedded.teachers import TEACHERS

    first = tmp_path / "thinned.safetensors"
    first.write_bytes(embedded_weights().read_bytes())
    weights = ROOT.parent / "shared" / "weights"
    write_pack(made_photos(200), list(TEACHERS.values()), weights, first, tmp_path / "pack")
    for more in (("--minutes", "0"), ()):
        command = [
            sys.executable, str(SCRIPTS / "train_embedded.py"), "train", "--home", str(tmp_path / "home"),
            "--pack", str(tmp_path / "pack"), "--device", "cpu", "--steps", "2", *more,
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        finished = [file.name for file in (tmp_path / "home").glob("*.safetensors") if file.name != first.name]
        assert sorted(finished) == ([] if more else ["course.safetensors", "last.safetensors"])
    written = tmp_path / "home" / "last.safetensors"
    assert written.stat().st_size < 3_600_000
    assert load_backbone(None, weights=written).num_features == 1280
