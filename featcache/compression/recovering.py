"""`recover`: train a compressed model toward the float one's cached features, then refit its head."""

from __future__ import annotations

import copy
import dataclasses
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featcache.backbone.backbone import Backbone
from featcache.cache import FeatureCache, borrow_cache
from featcache.compression.keeping import CHANCE
from featcache.compression.recovery import (
    BATCH_SIZE,
    CHECKPOINT_SECONDS,
    LEARNING_RATE,
    Minutes,
    RecoverTargets,
    RecoverySettings,
    recover_network,
)
from featcache.compression.refitting import (
    Features,
    Source,
    SplitRows,
    compare_accuracy,
    extract_and_refit,
    float_features,
    open_source,
)
from featcache.engines import open_engine
from featcache.errors import InputError
from featcache.extract.inputs import Extractor
from featcache.heads import Head
from featcache.model.directory import save_model
from featcache.model.golden import Golden
from featcache.model.merged import MergedModel, with_network
from featcache.model.reference import logits_of_images
from featcache.system.files import refuse_existing
from featcache.train.score import sign_test

NOT_KEPT = "val says that training made the network no better: it stays as it was"


@dataclass(frozen=True, slots=True)
class RecoverResult:
    """What `recover` returns.

    Accuracies are on the `n` images of `split`, the best one there is (test, val, else train): of the model given and
    of the one written; `val_accuracy_before`, `val_accuracy_after`: the same on val. `gained`, `lost`: images of
    `split` that only the recovered, only the given model gets right (classification). `kept`: whether val says that
    training made it better; else the model written is the one given. The other fields are `Recovery`'s.
    """

    model: str
    split: str
    n: int
    accuracy_before: float
    accuracy_after: float
    val_accuracy_before: float | None
    val_accuracy_after: float | None
    gained: int | None
    lost: int | None
    kept: bool
    epochs: float
    views: int
    steps: int
    steps_planned: int
    images: int
    val_images: int
    val_loss_before: float
    val_loss_after: float
    targets: str
    precision: str
    train_seconds: float
    images_per_second: float | None
    wall_seconds: float
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**dataclasses.asdict(self), "notes": list(self.notes)}


def recover(
    model: MergedModel | str | os.PathLike[str],
    *,
    cache: FeatureCache | str | os.PathLike[str],
    out: str | os.PathLike[str],
    minutes: Minutes = "auto",
    teacher: MergedModel | str | os.PathLike[str] | None = None,
    targets: RecoverTargets = "logits",
    views: int | None = None,
    learning_rate: float = LEARNING_RATE,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    dataset: str | None = None,
    images: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    say: Callable[[str], None] = lambda line: None,
) -> RecoverResult:
    """Train a pruned model toward the float features in the cache, refit its head, and write it.

    Killed at any instant, the same call goes on from the last checkpoint in ``OUT.work`` and writes the same bytes.

    Parameters
    ----------
    model
        A MODEL directory, or the model itself; not quantized.
    cache
        The one that the float model was merged from, with its images where they were: its features are the targets.
    out
        The MODEL directory to write.
    minutes
        Of training, beside which features of more views are computed and the head is refitted; ``auto``: 20 passes
        over the images, or ten minutes' worth of them. How many steps that is gets measured once.
    teacher
        The float model, whose features are then computed for more views than the cache holds.
    targets
        ``features``, ``logits`` (these, and what the float head says of them) or ``labels`` (all these and the
        labels). No labels are needed for the first two.
    views
        How many seeded views; default: all of the cache's, or with a teacher as many as the time is good for.
    learning_rate, batch_size
        Of AdamW.
    seed
        Of the order of the images.
    dataset
        Which one of the cache, where it has several.
    images
        Where the images of the cache lie by now, if no longer where they were built from.
    overwrite
        Replace what is at `out`.
    checkpoint_seconds
        Between checkpoints.
    say
        Called with a line now and then.

    Returns
    -------
    RecoverResult
        Accuracy before and after, and what was done for it.

    Raises
    ------
    InputError
        Where model, teacher and cache do not belong together, a setting is out of range, or another run is unfinished
        in ``OUT.work``.
    MissingError
        Where images are gone.
    CorruptError
        For a damaged checkpoint.
    ExistsError
        Where `out` exists and `overwrite` is false.
    StorageError
        Where the disk refuses.

    Examples
    --------
    >>> from featcache import prune, recover
    >>> pruned = prune("model", cache="cache", out="pruned", method="magnitude", amount=0.5)
    >>> result = recover("pruned", cache="cache", out="recovered", minutes=0.01)
    >>> result.val_loss_after <= result.val_loss_before
    True
    """
    began = time.perf_counter()
    settings = RecoverySettings(
        minutes=minutes, targets=targets, views=views, learning_rate=learning_rate, batch_size=batch_size, seed=seed
    )
    place = Path(out)
    refuse_existing(place, overwrite=overwrite)
    work = work_of(place)
    with borrow_cache(cache, images=images, dataset=dataset) as opened:
        source = open_source(model, opened, dataset=dataset)
        before = float_features(source)
        backbone = copy.deepcopy(source.model.backbone)
        recovery = recover_network(
            backbone, source, settings, work=work, teacher=None if teacher is None else _teacher(teacher, source),
            checkpoint_seconds=checkpoint_seconds, say=say,
        )  # fmt: skip
        final, head, after = source.model, source.model.fitted_head, before
        notes: tuple[str, ...] = ()
        kept = recovery.kept
        if kept:
            final, after, notes = _refitted(source, backbone)
            head = final.fitted_head
            if _worse_beyond_chance(source.model.fitted_head, head, before=before, after=after):
                final, head, after, kept = source.model, source.model.fitted_head, before, False
        if not kept:
            notes = (*notes, NOT_KEPT)
        comparison = compare_accuracy(source.model.fitted_head, head, before=before, after=after)
        step = {
            "verb": "recover",
            **dataclasses.replace(recovery, kept=kept).to_lineage(settings),
            "accuracy": dataclasses.asdict(comparison),
        }
        final = MergedModel(
            final.backbone, head, recipe=final.recipe, surgery=final.surgery, lineage=[*source.model.lineage, step]
        )
        golden = source.golden
        if golden is not None:
            golden = Golden(golden.kind, "torch fp32", golden.images, logits_of_images(final, golden.images))
        path = save_model(final, place, golden=golden, overwrite=overwrite)
    shutil.rmtree(work)
    return RecoverResult(
        model=str(path),
        split=comparison.split,
        n=comparison.n,
        accuracy_before=comparison.accuracy_float,
        accuracy_after=comparison.accuracy_after_refit,
        val_accuracy_before=comparison.val_accuracy_float,
        val_accuracy_after=comparison.val_accuracy_after_refit,
        gained=comparison.gained,
        lost=comparison.lost,
        wall_seconds=time.perf_counter() - began,
        notes=notes,
        **dataclasses.asdict(dataclasses.replace(recovery, kept=kept)),
    )


def _teacher(teacher: MergedModel | str | os.PathLike[str], source: Source) -> MergedModel:
    """Return the float model, checked to be the one whose features the cache holds."""
    model = open_source(teacher, source.cache, dataset=source.dataset).model
    if model.recipe.model_digest is not None:
        raise InputError("--teacher must be the float model as it was merged, got one that was changed since")
    return model


def recovered_step(
    source: Source, compressed: MergedModel, minutes: Minutes, *, out: Path, say: Callable[[str], None]
) -> tuple[MergedModel, dict[str, Any]]:
    """Return `compressed`, made of `source`'s model, with its network recovered, and what the lineage says of that.

    Work is kept in ``OUT.work``, so that the same call goes on after a kill; `finish_step` removes it. The head is left
    to be refitted.
    """
    settings = RecoverySettings(minutes=minutes)
    teacher = source.model if source.model.recipe.model_digest is None else None
    backbone = copy.deepcopy(compressed.backbone)
    recovery = recover_network(backbone, source, settings, work=work_of(out), teacher=teacher, say=say)
    model = with_network(compressed, backbone.network) if recovery.kept else compressed
    return model, recovery.to_lineage(settings)


def finish_step(out: Path) -> None:
    """Remove what `recovered_step` kept to go on from."""
    shutil.rmtree(work_of(out))


def work_of(out: Path) -> Path:
    """Return where work on `out` is kept to go on from."""
    return out.with_name(f"{out.name}.work")


def _refitted(source: Source, backbone: Backbone) -> tuple[MergedModel, Features, tuple[str, ...]]:
    """Return the source's model with the trained `backbone` and a head fitted on its features; these; and notes."""
    model = with_network(source.model, backbone.network)
    plan = source.cache.recipe
    with open_engine(model.backbone, engine=plan.engine, precision=plan.precision, cached=False) as engine:
        recipe = dataclasses.replace(
            model.recipe, engine=engine.name, engine_version=engine.version, precision=engine.precision
        )
        refit = extract_and_refit(source, Extractor(engine, recipe))
    final = MergedModel(model.backbone, refit.head, recipe=recipe, surgery=model.surgery, lineage=model.lineage)
    return final, refit.features, refit.notes


def _worse_beyond_chance(old: Head, new: Head, *, before: Features, after: Features) -> bool:
    """Return whether `new` gets fewer val images right than `old` did, beyond chance (McNemar, exact)."""
    if old.task != "classification" or "val" not in before or "val" not in after:
        return False

    def right(head: Head, rows: SplitRows) -> Any:
        return head.predict(rows.features) == rows.targets

    was, is_now = right(old, before["val"]), right(new, after["val"])
    gained, lost = int(np.sum(is_now & ~was)), int(np.sum(was & ~is_now))
    return lost > gained and sign_test(gained, lost) < CHANCE
