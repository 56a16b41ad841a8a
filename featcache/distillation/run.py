"""`distill`: train a small network on what a cache holds of a large one's answers.

    OUT.work/views.u8, views.json       the student's pixels, rendered once
    OUT.work/progress.json, state-…     the last checkpoint (`featcache.distillation.state`)
    OUT.work/constant/                  the checkpoint from before the learning rate fell: a longer run goes on from it
    OUT.work/student.safetensors        the student so far, as `load_backbone` reads it

The directory goes when the run is done, unless it is to be kept.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from featcache.backbone.checkpoint import read_checkpoint
from featcache.cache import open_cache
from featcache.distillation.join import Images, Joined, join_images
from featcache.distillation.loop import Schedule, Trainer, train
from featcache.distillation.plan import Plan, plan_targets
from featcache.distillation.replay import StreamedViews, rendered_bytes, replay_views
from featcache.distillation.settings import DistillSettings
from featcache.distillation.state import load_tensors, read_notes, save_state
from featcache.distillation.student import create_student, write_student
from featcache.distillation.targets import CachedTargets
from featcache.errors import InputError, StorageError
from featcache.heads.base import Head
from featcache.images.view_spec import ViewSpec
from featcache.system.files import refuse_existing
from featcache.system.interrupts import deferred_interrupts

CHECKPOINT_SECONDS = 120.0
_FORGETTING = 0.98  # of the running means of the losses
_EVALUATION_BATCH = 256


@dataclass(frozen=True, slots=True)
class DistillReport:
    """What a distillation did.

    `parameters`, `bytes`: of the student's file, without what was dropped. `losses`: running means at the end;
    ``features`` is the share of the teacher's variance not explained. `val_accuracy`: of the student's classifier on
    the val split's plain views; None without labels or split. `feature_bytes_per_view`, `soft_label_bytes_per_view`:
    what is read of the teachers for one view of one image. `view_bytes`: of the student's rendered pixels.
    `steps_now`, `train_seconds`: of this call, `resumed_from` being the step it began at.
    """

    out: str
    student: str
    parameters: int
    bytes: int
    num_features: int
    images: int
    views: int
    classes: int
    steps: int
    steps_now: int
    resumed_from: int
    losses: Mapping[str, float]
    val_accuracy: float | None
    n_val: int
    feature_bytes_per_view: int
    soft_label_bytes_per_view: int
    view_bytes: int
    precision: str
    device: str
    train_seconds: float
    images_per_second: float | None
    wall_seconds: float
    failures: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        failures = [{"path": path, "reason": reason} for path, reason in self.failures]
        return {**dataclasses.asdict(self), "failures": failures, "failed": len(self.failures)}


def distill(
    images: str | Path,
    teacher: str | Path | Sequence[str | Path],
    *,
    student: str,
    out: str | Path,
    teacher_head: str | Path | Head | None = None,
    targets: str | None = None,
    views: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    input_size: int = 96,
    epochs: int = 30,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.02,
    temperature: float = 2.0,
    alpha: float = 0.5,
    feature_weight: float = 1.0,
    jitter: float = 0.0,
    average: float = 0.999,
    precision: str = "auto",
    seed: int = 0,
    start: str | Path | None = None,
    classifier: bool = True,
    overwrite: bool = False,
    keep_work: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    say: Callable[[str], None] = lambda line: None,
) -> DistillReport:
    """Train timm's network `student` from scratch on the answers in the cache `teacher`; write it to the file `out`.

    Killed at any instant, the same call goes on from the last checkpoint in ``OUT.work`` and ends with the same
    weights. The teacher's network is never loaded: its features, and soft labels made of its logits or `teacher_head`,
    come from the cache, for the plain view and each augmented one (``build --views``); the student sees the same crop.

    `images`: a folder or CSV; images of the train split and unlabelled ones are learned from, joined to the teacher by
    the sha256 of their bytes. `teacher`: one cache, or several to be learned from at once. `targets`: ``features``
    (squared error of a projection, dropped at the end, against standardised features), ``logits`` (soft labels, and
    hard ones where there are any) or ``both``; None for both where there are soft labels, else features. `views`: how
    many of the cached views, default all. `start`: a student's file, or the work directory of another run, whose
    weights to begin with. `classifier`: keep the classifier over the images' classes in the file. `keep_work`: leave
    the work directory, so that the run can be made longer. `say`: called with a line now and then. The rest:
    `DistillSettings`.

    Raises `InputError` where teacher and images do not join, a view is not cached, the student cannot take its input
    or another run is unfinished in ``OUT.work``; `BackboneError` for an unknown student; `CorruptError` for a damaged
    checkpoint; `ExistsError` where `out` exists.
    """
    started = time.perf_counter()
    place = Path(out)
    work = place.with_name(f"{place.name}.work")
    refuse_existing(place, overwrite=overwrite)
    with ExitStack() as stack:
        paths = [teacher] if isinstance(teacher, str | Path) else list(teacher)
        caches = [stack.enter_context(open_cache(path)) for path in paths]
        joined = join_images(images, caches)
        plan = plan_targets(caches, teacher_head, wanted=targets, views=views, classes=joined.classes)
        settings = DistillSettings(
            student, dict(model_kwargs or {}), input_size, plan.targets, temperature, alpha, feature_weight, epochs,
            batch_size, learning_rate, weight_decay, jitter=jitter, average=average, precision=precision, seed=seed,
        )  # fmt: skip
        hard = len(joined.classes) if plan.targets != "features" and alpha < 1 else 0
        shared = plan.soft is not None and plan.soft.shared
        spec = plan.view_spec(input_size)
        network = create_student(
            settings,
            projections=plan.feature_widths,
            soft=plan.soft.n_classes if plan.soft else 0,
            hard=hard,
            shared=shared,
        )
        run = _Run(work, settings, joined, spec, plan, names=joined.classes if classifier and (hard or shared) else ())
        try:
            work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{str(work)!r} must be a place to write, got: {error.strerror}") from error
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        bf16 = precision == "bf16" or (precision == "auto" and has_bf16(device))
        trainer = Trainer(
            network, settings, mean=spec.preprocessing.mean, std=spec.preprocessing.std, labels=joined.train.labels,
            bf16=bf16, device=device,
        )  # fmt: skip
        schedule = Schedule(len(joined.train), views=len(spec.views), settings=settings)
        run.resume(trainer, schedule, start=None if start is None else Path(start), say=say)
        resumed_from = trainer.number
        pixels = replay_views(work / "views.u8", joined.train, spec)
        view_bytes = 0 if isinstance(pixels, StreamedViews) else rendered_bytes(len(joined.train), spec)
        source = CachedTargets(
            caches, joined.train.digests, views=spec.views, features=plan.targets != "logits", soft=plan.soft,
            temperature=temperature, seed=seed,
        )  # fmt: skip
        stack.callback(source.close)
        per_view = source.bytes_per_view
        say(
            f"{len(joined.train)} images, {len(spec.views)} views; per view {per_view['features']} bytes of features, "
            f"{per_view['soft_labels']} of soft labels; pixels "
            + (f"{view_bytes:,} bytes" if view_bytes else "decoded each time")
        )
        seconds = run.train(trainer, schedule, pixels, source, every=checkpoint_seconds, say=say)
        accuracy = run.evaluate(trainer)
        size = run.write(trainer, place, {"val_accuracy": accuracy})
    if not keep_work:
        shutil.rmtree(work)
    taken = schedule.steps - resumed_from
    return DistillReport(
        out=os.fspath(place),
        student=student,
        parameters=sum(p.numel() for p in network.network.parameters()),
        bytes=size,
        num_features=network.num_features,
        images=len(joined.train),
        views=len(spec.views),
        classes=len(run.names),
        steps=schedule.steps,
        steps_now=taken,
        resumed_from=resumed_from,
        losses=dict(run.losses),
        val_accuracy=accuracy,
        n_val=len(joined.val) if accuracy is not None else 0,
        feature_bytes_per_view=per_view["features"],
        soft_label_bytes_per_view=per_view["soft_labels"],
        view_bytes=view_bytes,
        precision="bf16" if bf16 else "fp32",
        device=device.type,
        train_seconds=seconds,
        images_per_second=taken * schedule.batch / seconds if taken else None,
        wall_seconds=time.perf_counter() - started,
        failures=joined.failures,
    )


class _Run:
    """One run's directory, what it is a run of, and the running means of its losses."""

    def __init__(
        self,
        work: Path,
        settings: DistillSettings,
        joined: Joined,
        spec: ViewSpec,
        plan: Plan,
        *,
        names: Sequence[str],
    ) -> None:
        self.work, self.settings, self.joined, self.spec, self.names = work, settings, joined, spec, names
        self.losses: dict[str, float] = {}
        told = settings.to_json()
        self._epochs = told.pop("epochs")
        self._identity = {
            **told,
            "images": joined.train.identity,
            "teachers": list(plan.fingerprints),
            "teacher_head": plan.head_digest,
            "views": list(spec.views),
        }

    def resume(self, trainer: Trainer, schedule: Schedule, *, start: Path | None, say: Callable[[str], None]) -> None:
        """Take over this directory's checkpoint, or the weights of the run in `start`."""
        notes = read_notes(self.work)
        if notes is None:
            if start is not None:
                trainer.start_from(_weights_to_begin_with(start))
            return
        self._refuse_other(notes)
        folder = self.work
        if notes["epochs"] != self._epochs:
            cooldown = self.settings.cooldown_start(schedule.steps)
            limit = min(cooldown, self.settings.cooldown_start(notes["epochs"] * schedule.steps_per_epoch))
            if notes["step"] > limit:
                folder = self.work / "constant"
                notes = read_notes(folder)
                if notes is None or notes["step"] > cooldown:
                    raise InputError(
                        f"a run can be made longer, or shorter while its learning rate is constant; the one in "
                        f"{str(self.work)!r} is past that for epochs={self._epochs}: delete it to start again"
                    )
        trainer.restore(load_tensors(folder, notes), int(notes["step"]))
        self.losses.update(notes["losses"])
        say(f"going on from step {trainer.number} of {schedule.steps}")

    def _refuse_other(self, notes: Mapping[str, Any]) -> None:
        stored = notes.get("identity", {})
        differing = [
            f"{name}: {stored.get(name)!r} there, {value!r} here"
            for name, value in self._identity.items()
            if stored.get(name) != value
        ]
        if differing:
            raise InputError(
                f"the unfinished run in {str(self.work)!r} must be gone on with as it was begun, got other settings "
                f"({'; '.join(differing)}): repeat them, or delete that directory to start again"
            )

    def train(
        self,
        trainer: Trainer,
        schedule: Schedule,
        pixels: Any,
        source: CachedTargets,
        *,
        every: float,
        say: Callable[[str], None],
    ) -> float:
        """Take the steps that are left, with a checkpoint every so many seconds and on an interrupt."""
        last, at = time.perf_counter(), trainer.number
        cooldown = self.settings.cooldown_start(schedule.steps)
        with (
            deferred_interrupts() as interrupt,
            tqdm(total=schedule.steps, initial=at, desc="distill", unit="step", disable=None) as bar,
        ):

            def after(number: int, parts: dict[str, float]) -> bool:
                nonlocal last, at
                for name, value in parts.items():
                    before = self.losses.get(name, value)
                    self.losses[name] = _FORGETTING * before + (1 - _FORGETTING) * value
                bar.update(1)
                if number == cooldown:
                    (self.work / "constant").mkdir(exist_ok=True)
                    self._save(self.work / "constant", trainer)
                now = time.perf_counter()
                stop = interrupt.is_set()
                if now - last >= every or number == schedule.steps or stop:
                    self._save(self.work, trainer)
                    self.write(trainer, self.work / "student.safetensors", {})
                    rate = (number - at) * schedule.batch / (now - last)
                    epoch = number / schedule.steps_per_epoch
                    listed = ", ".join(f"{name} {value:.4f}" for name, value in self.losses.items())
                    say(f"step {number} of {schedule.steps}, epoch {epoch:.2f}: {listed}; {rate:.0f} images/s")
                    last, at = time.perf_counter(), number
                return not stop

            return train(trainer, schedule, pixels, source, after_step=after)

    def _save(self, folder: Path, trainer: Trainer) -> None:
        notes = {"epochs": self._epochs, "identity": self._identity, "losses": dict(self.losses)}
        save_state(folder, trainer.number, trainer.tensors(), notes)

    def write(self, trainer: Trainer, place: Path, notes: Mapping[str, Any]) -> int:
        """Write the averaged student to the file `place`; return its bytes."""
        told = {"featcache_distill": {"steps": trainer.number, **self._identity, **notes}}
        with trainer.averaged_weights() as student:
            return write_student(
                place,
                student,
                settings=self.settings,
                preprocessing=self.spec.preprocessing,
                classes=self.names,
                notes=told,
            )

    def evaluate(self, trainer: Trainer) -> float | None:
        """Return the averaged student's accuracy on the plain views of the val images; None where it has no classes."""
        val: Images = self.joined.val
        if trainer.student.label_classifier is None or not len(val):
            return None
        views = StreamedViews(val, dataclasses.replace(self.spec, views=(0,)))
        right = 0
        with trainer.averaged_weights() as student:
            for start in range(0, len(val), _EVALUATION_BATCH):
                positions = np.arange(start, min(len(val), start + _EVALUATION_BATCH))
                found = trainer.predict(views.batch(positions, np.zeros_like(positions)), student)
                right += int((found == val.labels[positions]).sum())
        return right / len(val)


def _weights_to_begin_with(start: Path) -> Mapping[str, torch.Tensor]:
    """Return the averaged weights, by the names of `Trainer.tensors`, of a student's file or of a run's work directory.

    A file lacks what was dropped at the end, the projections and classifiers: those begin at random.
    """
    if start.is_file():
        tensors, _ = read_checkpoint(start)
        return {f"averaged.network.{name}": tensor.float() for name, tensor in tensors.items()}
    notes = read_notes(start)
    if notes is None:
        raise InputError(f"start must be a student's file or the work directory of another run, {str(start)!r} is none")
    return load_tensors(start, notes)


def has_bf16(device: torch.device) -> bool:
    """Return whether `device` multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and _has_bf16_instructions()


def _has_bf16_instructions() -> bool:
    """Return whether the processor's flags name them: oneDNN also says yes where it emulates them, slowly."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
