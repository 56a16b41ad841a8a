"""Distil from a cache and against the live teacher, in one run: the time of an epoch, and what the students reach.

    scripts/bench_distill.py IMAGES --teacher CACHE [--teacher-head HEAD] [--json FILE]

CACHE holds IMAGES (class folders with a train and a val split) in two views or more, made by any backbone. The live
teacher is that very backbone in the very engine, fed from rendered pixels: decoding is in no figure. Three students per
seed take the same number of steps over the same images and views: from the cache, against the live teacher, and on the
labels alone. Epochs of both kinds alternate for the timing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featcache.cache import FeatureCache, open_cache
from featcache.distillation.join import Images, join_images
from featcache.distillation.lesson import Lesson, choose_lesson
from featcache.distillation.loop import train
from featcache.distillation.replay import PixelSource, replay_views
from featcache.distillation.schedule import Schedule
from featcache.distillation.settings import DistillSettings
from featcache.distillation.student import create_student
from featcache.distillation.targets import CachedTargets, SoftLabels, largest
from featcache.distillation.trainer import Trainer, has_bf16
from featcache.extract.opening import open_extractor
from featcache.extract.request import Request
from featcache.heads.base import Head, softmax
from featcache.heads.io import load_head
from featcache.images.view_spec import ViewSpec
from featcache.system.machine import describe_machine
from featcache.train.fit import train_head
from featcache.train.options import LinearOptions


class LiveTargets:
    """Targets from the teacher itself, run anew for every step."""

    def __init__(self, cached: CachedTargets, engine: Any, pixels: PixelSource, head: Head, temperature: float) -> None:
        self.feature_widths, self.n_soft_classes = cached.feature_widths, cached.n_soft_classes
        self._cached, self._engine, self._pixels = cached, engine, pixels
        self._head, self._temperature = head, temperature
        self._raw = np.empty((0, 0), dtype=np.float32)
        self.seconds = 0.0

    def features(self, positions: np.ndarray, views: np.ndarray) -> list[np.ndarray]:
        images = self._pixels.batch(positions, views)
        started = time.perf_counter()
        self._raw = run_engine(self._engine, images)
        self.seconds += time.perf_counter() - started
        return [self._cached.standardise(0, self._raw.copy())]

    def soft_labels(self, positions: np.ndarray, views: np.ndarray) -> SoftLabels:
        logits = self._head.predict_logits(self._raw)  # of the features just computed
        classes, probabilities = largest(softmax(logits / np.float32(self._temperature)), 6)
        return SoftLabels(classes, probabilities.astype(np.float16).astype(np.float32))


def run_engine(engine: Any, images: np.ndarray) -> np.ndarray:
    """Return the teacher's features (b, width) of pixels, in batches of the engine's fixed size."""
    parts = []
    for start in range(0, len(images), engine.batch_size):
        block = images[start : start + engine.batch_size]
        padded = np.zeros((engine.batch_size, *block.shape[1:]), dtype=np.uint8)
        padded[: len(block)] = block
        parts.append(np.asarray(engine.run(padded)[0])[: len(block)])
    return np.concatenate(parts)


def pick(images: Images, per_class: int) -> Images:
    """Return the first images of each class."""
    chosen = np.concatenate([np.flatnonzero(images.labels == c)[:per_class] for c in np.unique(images.labels)])
    return Images(tuple(images.paths[i] for i in chosen), images.digests[chosen], images.labels[chosen])


class Bench:
    """What all students share: images, views, the teacher's targets."""

    def __init__(self, args: argparse.Namespace, cache: FeatureCache, scratch: Path) -> None:
        self.args = args
        joined = join_images(args.images, [cache])
        self.train, self.val = pick(joined.train, args.per_class), joined.val
        self.head = (
            load_head(args.teacher_head) if args.teacher_head else train_head(cache, head=LinearOptions(l2=1e-3)).head
        )
        self.lesson: Lesson = choose_lesson([cache], self.head, requested="both", views=2, classes=joined.classes)
        self.spec = self.lesson.view_spec(args.input_size)
        self.pixels = replay_views(scratch / "views.u8", self.train, self.spec)
        self.val_pixels = replay_views(
            scratch / "val.u8", self.val, ViewSpec(self.spec.preprocessing, (0,), 0, self.spec.decoder)
        )
        self.cached = CachedTargets(
            [cache],
            self.train.digests,
            views=self.spec.views,
            features=True,
            soft=self.lesson.soft,
            temperature=2.0,
            seed=0,
        )
        self.engine: Any = None
        if args.rounds or "live" in args.kinds.split(","):  # its pixels take 150 kB a view
            theirs = ViewSpec(cache.recipe.preprocessing, self.spec.views, self.spec.view_seed, self.spec.decoder)
            teacher_pixels = replay_views(scratch / "teacher.u8", self.train, theirs)
            self.engine = open_extractor(Request.from_json(cache.request), adopt=cache.recipe).engine
            self.live = LiveTargets(self.cached, self.engine, teacher_pixels, self.head, 2.0)

    def trainer(self, seed: int, *, labels_only: bool = False) -> tuple[Trainer, Schedule]:
        """Return a fresh student; `labels_only`: no teacher at all."""
        settings = DistillSettings(
            self.args.student, input_size=self.args.input_size, targets="both", alpha=0.0 if labels_only else 0.8,
            epochs=self.args.epochs, batch_size=self.args.batch_size, average=0.98, seed=seed,
            warmup_steps=20,
        )  # fmt: skip
        soft = 0 if labels_only else self.cached.n_soft_classes
        student = create_student(
            settings, projections=() if labels_only else self.cached.feature_widths, soft=soft,
            hard=len(self.head.classes), shared=bool(soft),
        )  # fmt: skip
        device = torch.device("cpu")
        preprocessing = self.spec.preprocessing
        trainer = Trainer(
            student, settings, mean=preprocessing.mean, std=preprocessing.std, labels=self.train.labels,
            bf16=has_bf16(device), device=device,
        )  # fmt: skip
        return trainer, Schedule(len(self.train), views=len(self.spec.views), settings=settings)

    def accuracy(self, trainer: Trainer) -> float:
        """Return the student's accuracy on the plain views of the val images."""
        right = 0
        with trainer.averaged_weights():
            for start in range(0, len(self.val), 250):
                positions = np.arange(start, min(len(self.val), start + 250))
                found = trainer.predict(self.val_pixels.batch(positions, np.zeros_like(positions)))
                right += int((found == self.val.labels[positions]).sum())
        return right / len(self.val)

    def reach(self, seed: int) -> dict[str, float]:
        """Return the accuracies of the three students of one seed after equal updates."""
        found = {}
        for kind in self.args.kinds.split(","):
            started = time.perf_counter()
            trainer, schedule = self.trainer(seed, labels_only=kind == "labels")
            targets = self.live if kind == "live" else self.cached
            train(trainer, schedule, self.pixels, targets, after_step=lambda number, parts: True)
            found[kind] = self.accuracy(trainer)
            print(f"seed {seed} {kind:>6}: {found[kind]:.4f} in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        return found

    def time_epochs(self, rounds: int, steps: int) -> dict[str, Any]:
        """Return seconds of `steps` steps, cached and online by turns, and of teacher and student alone."""
        trainer, schedule = self.trainer(0)
        everything: dict[str, list[float]] = {"cached": [], "online": [], "student": [], "teacher": []}
        plan = [schedule.step(number) for number in range(steps)]
        ready = [self.pixels.batch(what.positions, what.views) for what in plan]
        for number in range(rounds + 1):
            seconds = {}
            for kind in ("cached", "online") if number % 2 else ("online", "cached"):
                targets = self.live if kind == "online" else self.cached
                self.live.seconds, started = 0.0, time.perf_counter()
                for what in plan:
                    trainer.step(schedule.steps, what, self.pixels.batch(what.positions, what.views), targets)
                seconds[kind] = time.perf_counter() - started
                if kind == "online":
                    seconds["teacher"] = self.live.seconds
            kept = Kept(self.cached, plan)
            started = time.perf_counter()
            for what, pixels in zip(plan, ready, strict=True):
                trainer.step(schedule.steps, what, pixels, kept)
            seconds["student"] = time.perf_counter() - started
            if number:  # the first round warms up
                for kind, value in seconds.items():
                    everything[kind].append(value)
        median = {kind: statistics.median(values) for kind, values in everything.items()}
        ratio = statistics.median(
            online / cached for online, cached in zip(everything["online"], everything["cached"], strict=True)
        )
        expected = 1 + median["teacher"] / median["student"]
        return {
            "steps": steps, "batch_size": schedule.batch, "seconds": median, "rounds": everything, "ratio": ratio,
            "one_plus_teacher_over_student": expected, "ratio_over_that": ratio / expected,
        }  # fmt: skip


class Kept:
    """Targets of some steps, in memory: what the student alone is timed with."""

    def __init__(self, cached: CachedTargets, plan: Any) -> None:
        self.feature_widths, self.n_soft_classes = cached.feature_widths, cached.n_soft_classes
        self._kept = {
            what.positions.tobytes(): (
                cached.features(what.positions, what.views),
                cached.soft_labels(what.positions, what.views),
            )
            for what in plan
        }

    def features(self, positions: np.ndarray, views: np.ndarray) -> list[np.ndarray]:
        return self._kept[positions.tobytes()][0]

    def soft_labels(self, positions: np.ndarray, views: np.ndarray) -> SoftLabels:
        return self._kept[positions.tobytes()][1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--teacher-head", type=Path, help="a head trained on CACHE; default: trained here")
    parser.add_argument("--student", default="mobilenetv3_small_050")
    parser.add_argument("--input-size", type=int, default=64)
    parser.add_argument("--kinds", default="cache,live,labels", help="students; without live, runs may be long")
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3, help="0: only the timing")
    parser.add_argument("--rounds", type=int, default=4, help="0: only the accuracies")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report: dict[str, Any] = {
        "machine": describe_machine(), "student": args.student, "input_size": args.input_size, "views": 2
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch, open_cache(args.teacher) as cache:
        report["teacher"] = {
            "model": cache.recipe.model,
            "engine": cache.recipe.engine,
            "precision": cache.recipe.precision,
        }
        bench = Bench(args, cache, Path(scratch))
        report |= {"n_train": len(bench.train), "n_val": len(bench.val), "epochs": args.epochs}
        if args.rounds:
            report["speed"] = speed = bench.time_epochs(args.rounds, args.steps)
            print(
                f"online / cached {speed['ratio']:.2f}, 1 + teacher / student "
                f"{speed['one_plus_teacher_over_student']:.2f}, share {speed['ratio_over_that']:.3f} (wanted: 0.9)",
                file=sys.stderr,
            )
        if args.seeds:
            reached = [bench.reach(seed) for seed in range(args.seeds)]
            means = {kind: statistics.mean(found[kind] for found in reached) for kind in reached[0]}
            report["accuracy"] = {
                "by_seed": reached, "mean": means,
                **{f"cache_minus_{kind}": means["cache"] - means[kind] for kind in ("live", "labels") if kind in means},
            }  # fmt: skip
            print(f"mean of {args.seeds} seeds: {means}", file=sys.stderr)
        bench.cached.close()
        if bench.engine is not None:
            bench.engine.close()
    text = json.dumps(report, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
