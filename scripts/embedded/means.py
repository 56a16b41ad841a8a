"""Each means alone in a short run, and then what was chosen together: the table of the card."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from embedded.kept import KeptLessons
from embedded.look import look
from embedded.loop import Settings, train
from embedded.networks import LITE, V4, register
from embedded.school import School, lessons_of, new_student
from embedded.targets import as_tensor
from featcache.backbone.nano import NANO

CHOOSING = range(180)  # classes of the short runs by which the means are chosen; the other 20 they never see
STEPS, BEGUN_STEPS = 400, 200  # from drawn weights; from those of a network that sees already
BASE: dict[str, Any] = {"warmup": 300, "network": V4}
# MobileNetV2 narrowed, which MobileNetV2 alone teaches: from drawn weights, and with those that are left of it.
NARROWED: dict[str, Any] = {"network": NANO, "teachers": ("mobilenetv2_100",)}
BEGUN: dict[str, Any] = {
    **NARROWED, "begins": "thinned.safetensors", "frozen_norms": True, "learning_rate": 4e-4, "warmup": 50,
}  # fmt: skip
NO_LABELS: dict[str, Any] = {"soft": 0.0, "hard": 0.0}
TOGETHER: dict[str, Any] = {"optimizer": "muon", "learning_rate": 5e-3, "relational": 1.0, "whitened": 0.5}
# What it is called: what it changes in the base.
MEANS: dict[str, dict[str, Any]] = {
    "base": {},
    "MobileNetV3-small": {"network": "mobilenetv3_small_100"},
    "MobileNetV2 0.75": {"network": "mobilenetv2_075"},
    "EfficientNet-lite0 0.65": {"network": LITE},
    "MobileOne-S0": {"network": "mobileone_s0"},  # RepVGG-like: its branches are merged after training
    "mobilenetv2 teaches alone": {"teachers": ("mobilenetv2_100",)},
    "edgetpu teaches alone": {"teachers": ("mobilenet_edgetpu_100",)},
    "targets half whitened": {"whitened": 0.5},
    "targets whitened": {"whitened": 1.0},
    "relational targets": {"relational": 1.0},
    "no labels": NO_LABELS,
    "Muon": {"optimizer": "muon"},
    "learning rate 4e-3": {"learning_rate": 4e-3},
    "cut-mix": {"cutmix": 0.5},
    "no colour": {"recolour": 0.0},
    "no averaged weights": {"average": 0.0},
    "falling rate throughout": {"hold": 0.0},
    "48, then 64 pixels": {"sides": ((0.5, 48), (0.5, 64))},
    "96 pixels": {"sides": ((1.0, 96),)},
    "together": TOGETHER,
    "together, no labels": {**TOGETHER, **NO_LABELS},
    "together, mobilenetv2 alone, no labels": {
        **TOGETHER,
        "teachers": ("mobilenetv2_100",),
        **NO_LABELS,
    },
    "MobileNetV2 narrowed, drawn": NARROWED,
    "begun": BEGUN,
    "begun, batch norms learn": {**BEGUN, "frozen_norms": False},
    "begun, 1e-3": {**BEGUN, "learning_rate": 1e-3},
    "begun, Muon": {**BEGUN, "optimizer": "muon"},
    "begun, its teacher sees 64 pixels": {**BEGUN, "teachers": ("mobilenetv2_100_at_64",)},
    "begun, half whitened": {**BEGUN, "whitened": 0.5},
    "begun, relational": {**BEGUN, "relational": 1.0},
    "begun, no labels": {**BEGUN, **NO_LABELS},
    "begun, characters": {**BEGUN, "glyphs": 32},
    "begun, cut-mix": {**BEGUN, "cutmix": 0.5},
    "begun, no colour": {**BEGUN, "recolour": 0.0},
    "begun, no averaged weights": {**BEGUN, "average": 0.0},
    "begun, falling rate throughout": {**BEGUN, "hold": 0.0},
    "begun, 48, then 64 pixels": {**BEGUN, "sides": ((0.5, 48), (0.5, 64))},
    "begun, 96 pixels": {**BEGUN, "sides": ((1.0, 96),)},
    "begun, 128 pixels": {**BEGUN, "sides": ((1.0, 128),)},
    "begun, 128 pixels, no labels": {**BEGUN, "sides": ((1.0, 128),), **NO_LABELS},
    "begun, few labels": {**BEGUN, "soft": 0.2, "hard": 0.0},
    "begun, together": {**BEGUN, **NO_LABELS, "relational": 1.0},
    "begun, together, half whitened": {**BEGUN, **NO_LABELS, "relational": 1.0, "whitened": 0.5},
}


def settings_of(name: str) -> Settings:
    """Return the settings of a short run by its name."""
    return Settings(**{**BASE, **MEANS[name]})


def steps_of(name: str) -> int:
    """Return how many steps a short run has, by its name."""
    return BEGUN_STEPS if MEANS[name].get("begins") else STEPS


def try_means(school: School, home: Path, names: Sequence[str], say: Callable[[str], None]) -> None:
    """Run those of `names` that were not run, on this many threads each, and keep their figures in HOME/means.jsonl."""
    register()
    kept = home / "means.jsonl"
    known = {json.loads(line)["name"] for line in kept.read_text().splitlines()} if kept.exists() else set()
    chosen = school.of_classes(CHOOSING)
    unseen = school.photos.of_classes(range(CHOOSING.stop, len(school.photos.classes)))
    lessons: dict[tuple[tuple[str, ...], float | None], KeptLessons] = {}
    for name in names:
        if name in known:
            continue
        settings, steps = settings_of(name), steps_of(name)
        shown = settings.teachers, settings.whitened
        lessons[shown] = lessons.get(shown) or lessons_of(chosen, settings)
        place = home / "means" / name.replace(" ", "-")
        student = new_student(settings, lessons[shown], home, place)
        averaged = train(student, lessons[shown], settings, steps, place, say)
        assert averaged is not None, "it has no time at which to stop"
        student.load_state_dict(averaged)
        answered = [as_tensor(chosen.val_answered[name][0]) for name in settings.teachers]
        targets = [scale(one) for scale, one in zip(lessons[shown].scales, answered, strict=True)]
        found = look(student, chosen.val, targets, unseen, settings.sides[-1][1])
        with torch.no_grad():
            told = lessons[shown].head(torch.cat(targets, 1)).argmax(1).numpy()
        line = {
            "name": name, "steps": steps, "views": steps * settings.batch, "threads": torch.get_num_threads(),
            "teachers": round(float((told == chosen.val.labels).mean()), 4), "views_per_second": pace_of(place),
            **{key: round(value, 4) for key, value in dataclasses.asdict(found).items()},
        }  # fmt: skip
        with kept.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        say(json.dumps(line))


def pace_of(place: Path) -> float:
    """Return the median pace of a run, in views a second, from its curve."""
    paces = sorted(json.loads(line)["views/s"] for line in (place / "curve.jsonl").read_text().splitlines())
    return float(paces[len(paces) // 2])


def row_of(one: Mapping[str, Any]) -> str:
    """Return a row of the card's table."""
    name, views, distance = one["name"], one["views"], one["distance"]
    shares = " | ".join(f"{100 * one[key]:.1f}" for key in ("val", "unseen"))
    return f"| {name} | {views:,} | {distance:.3f} | {shares} | {one['views_per_second']:.0f} |"
