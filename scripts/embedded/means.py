"""Each means alone in a short run, and then what was chosen together: the table of the card."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from embedded.loop import Settings
from embedded.school import School, short_run

STEPS = 400
BASE: dict[str, Any] = {"warmup": 300}
TOGETHER: dict[str, Any] = {"optimizer": "muon", "learning_rate": 5e-3, "relational": 1.0, "whitened": 0.5}
# What it is called: what it changes in the base.
MEANS: dict[str, dict[str, Any]] = {
    "base": {},
    "MobileNetV3-small": {"network": "mobilenetv3_small_100"},
    "MobileNetV2 0.75": {"network": "mobilenetv2_075"},
    "mobilenetv2 teaches alone": {"teachers": ("mobilenetv2_100",)},
    "edgetpu teaches alone": {"teachers": ("mobilenet_edgetpu_100",)},
    "targets half whitened": {"whitened": 0.5},
    "targets whitened": {"whitened": 1.0},
    "relational targets": {"relational": 1.0},
    "no labels": {"soft": 0.0, "hard": 0.0},
    "Muon": {"optimizer": "muon"},
    "learning rate 4e-3": {"learning_rate": 4e-3},
    "cut-mix": {"cutmix": 0.5},
    "no colour": {"recolour": 0.0},
    "no averaged weights": {"average": 0.0},
    "falling rate throughout": {"hold": 0.0},
    "48, then 64 pixels": {"sides": ((0.5, 48), (0.5, 64))},
    "96 pixels": {"sides": ((1.0, 96),)},
    "together": TOGETHER,
    "together, no labels": {**TOGETHER, "soft": 0.0, "hard": 0.0},
    "together, mobilenetv2 alone, no labels": {
        **TOGETHER,
        "teachers": ("mobilenetv2_100",),
        "soft": 0.0,
        "hard": 0.0,
    },
}


def try_means(
    school: School, home: Path, names: Sequence[str], say: Callable[[str], None], *, steps: int = STEPS
) -> None:
    """Run those of `names` that were not run, on this many threads each, and keep their figures in HOME/means.jsonl."""
    kept = home / "means.jsonl"
    known = {json.loads(line)["name"] for line in kept.read_text().splitlines()} if kept.exists() else set()
    for name in names:
        if name in known:
            continue
        settings = Settings(**{**BASE, **MEANS[name]})
        place = home / "means" / name.replace(" ", "-")
        found, teachers = short_run(school, settings, steps, place, say)
        line = {
            "name": name, "steps": steps, "views": steps * settings.batch, "threads": torch.get_num_threads(),
            "teachers": round(teachers, 4), "views_per_second": pace_of(place),
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
    return (
        f"| {one['name']} | {one['distance']:.3f} | {100 * one['val']:.1f} | {100 * one['unseen']:.1f} | "
        f"{one['views_per_second']:.0f} |"
    )
