"""`distill`: train a small network on what a cache holds of a large one's answers.

Its work directory (`featcache.distillation.work_directory`) goes when the run is done, unless it is to be kept.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from featcache.cache import FeatureCache, open_cache
from featcache.distillation.evaluation import val_accuracy
from featcache.distillation.join import join_images
from featcache.distillation.lesson import choose_lesson
from featcache.distillation.replay import StreamedViews, rendered_bytes, replay_views
from featcache.distillation.report import DistillReport
from featcache.distillation.schedule import Schedule
from featcache.distillation.settings import DistillSettings
from featcache.distillation.student import create_student
from featcache.distillation.targets import CachedTargets
from featcache.distillation.trainer import Trainer, has_bf16
from featcache.distillation.work_directory import WorkDirectory
from featcache.errors import InputError, StorageError
from featcache.heads.base import Head
from featcache.recipe import Preprocessing
from featcache.system.files import refuse_existing

CHECKPOINT_SECONDS = 120.0


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

    Parameters
    ----------
    images
        A folder or CSV; images of the train split and unlabelled ones are learned from, joined to the teacher by the
        sha256 of their bytes.
    teacher
        One cache, or several to be learned from at once.
    student, model_kwargs
        Name and arguments of the network, for ``timm.create_model``.
    out
        The file to write, which `load_backbone` takes as weights.
    teacher_head
        A head trained on the teacher's cache, or its directory: soft labels are what it says.
    targets
        ``features`` (squared error of a projection, dropped at the end, against standardised features), ``logits``
        (soft labels, and hard ones where there are any) or ``both``; None for both where there are soft labels, else
        features.
    views
        How many of the cached views are learned from, default all.
    input_size, epochs, batch_size, learning_rate, weight_decay, average, precision, seed
        As in `DistillSettings`: the student's input and how it is trained.
    temperature, alpha, feature_weight, jitter
        As in `DistillSettings`: what the parts of the loss weigh, and how much the images are changed.
    start
        A student's file, or the work directory of another run, whose weights to begin with.
    classifier
        Whether the classifier over the images' classes stays in the file.
    overwrite
        Whether `out` may exist and be replaced.
    keep_work
        Whether the work directory stays, so that the run can be made longer.
    checkpoint_seconds
        Between checkpoints.
    say
        Called with a line now and then.

    Returns
    -------
    DistillReport
        Sizes, losses, the accuracy on val, and how long it took.

    Raises
    ------
    InputError
        Where a teacher is none of images, teacher and images do not join, a view is not cached, the student cannot take
        its input, or another run is unfinished in ``OUT.work``.
    BackboneError
        For an unknown student.
    CorruptError
        For a damaged checkpoint.
    ExistsError
        Where `out` exists and may not be replaced.
    StorageError
        Where the disk refuses.

    Examples
    --------
    >>> from featcache import distill, load_backbone
    >>> report = distill("photos", "cache", student="test_resnet", out="small", input_size=32, epochs=1, batch_size=4)
    >>> report.losses.keys()
    dict_keys(['features'])
    >>> load_backbone(None, weights="small").num_features == report.num_features
    True
    """
    started = time.perf_counter()
    place = Path(out)
    work = place.with_name(f"{place.name}.work")
    refuse_existing(place, overwrite=overwrite)
    with ExitStack() as stack:
        paths = [teacher] if isinstance(teacher, str | Path) else list(teacher)
        caches = [stack.enter_context(open_cache(path)) for path in paths]
        for cache in caches:
            _refuse_other_inputs(cache)
        joined = join_images(images, caches)
        for note in joined.notes:
            say(f"note: {note}")
        lesson = choose_lesson(caches, teacher_head, requested=targets, views=views, classes=joined.classes)
        settings = DistillSettings(
            student, dict(model_kwargs or {}), input_size, lesson.targets, temperature=temperature, alpha=alpha,
            feature_weight=feature_weight, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate,
            weight_decay=weight_decay, jitter=jitter, average=average, precision=precision, seed=seed,
        )  # fmt: skip
        hard = len(joined.classes) if lesson.targets != "features" and alpha < 1 else 0
        shared = lesson.soft is not None and lesson.soft.shared
        spec = lesson.view_spec(input_size)
        network = create_student(
            settings,
            projections=lesson.feature_widths,
            soft=lesson.soft.n_classes if lesson.soft else 0,
            hard=hard,
            shared=shared,
        )
        kept = joined.classes if classifier and (hard or shared) else ()
        run = WorkDirectory(work, settings, joined, spec, lesson, classes=kept)
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
        run.begin(trainer, schedule, start=None if start is None else Path(start), say=say)
        resumed_from = trainer.number
        pixels = replay_views(work / "views.u8", joined.train, spec)
        view_bytes = 0 if isinstance(pixels, StreamedViews) else rendered_bytes(len(joined.train), spec)
        source = CachedTargets(
            caches, joined.train.digests, views=spec.views, features=lesson.targets != "logits", soft=lesson.soft,
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
        accuracy = val_accuracy(trainer, joined.val, spec) if network.label_classifier is not None else None
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
        classes=len(run.classes),
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


def _refuse_other_inputs(teacher: FeatureCache) -> None:
    """Raise `InputError` for a teacher of something else than images: what a student would see are pixels."""
    if not isinstance(teacher.recipe.preprocessing, Preprocessing):
        raise InputError(
            f"a student network must have a teacher of images, {str(teacher.path)!r} is one of input kind "
            f"{teacher.recipe.input!r}: train --teacher distils that into a head"
        )
