"""Train a compressed network toward the float one's cached features: the loop of `distill`, from where it stands.

The network may be any module from normalised images to features: a pruned backbone, or one with rounding inside. Its
pixels are the seeded views whose float features a cache holds; labels are not needed.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from featcache.cache import FeatureCache, open_cache
from featcache.compression.frozen_norms import frozen_norms
from featcache.compression.refitting import Source
from featcache.distillation.join import Images
from featcache.distillation.learner import FeatureLearner
from featcache.distillation.replay import StreamedViews, replay_views
from featcache.distillation.run_directory import RunDirectory
from featcache.distillation.schedule import Schedule
from featcache.distillation.settings import TrainingSettings
from featcache.distillation.soft_source import SoftSource
from featcache.distillation.targets import CachedTargets
from featcache.distillation.trainer import Trainer, has_bf16
from featcache.distillation.validation import Validation
from featcache.engines import open_engine
from featcache.errors import InputError, MissingError, StorageError
from featcache.extract.build import Extractor, build_cache
from featcache.heads import Head
from featcache.images.view_spec import ViewSpec
from featcache.model.folding import find_batchnorms
from featcache.model.merged import MergedModel
from featcache.recipe import Preprocessing
from featcache.system.files import write_atomically
from featcache.system.json import DocumentKind, parse_json, read_document
from featcache.train.fit import refit_head

RecoverTargets = Literal["features", "logits", "labels"]
Minutes = float | Literal["auto"]

LEARNING_RATE = 1e-4
BATCH_SIZE = 32
WARMUP_STEPS = 10
LONGEST_AUTO = 10.0  # minutes
AUTO_EPOCHS = 20
AUTO_LEAST_STEPS = 200
MOST_MINUTES = 7 * 24 * 60.0
MOST_AUTO_VIEWS = 8
_VAL_IMAGES = 512
_CHECKS = 12  # of the val loss in a run
_PATIENCE = 4
CHECKPOINT_SECONDS = 60.0
_PLAN = DocumentKind(
    "a plan",
    make="make one with 'featcache recover'",
    renew="delete its directory to start again",
    keys=("identity", "steps", "views"),
)


@dataclass(frozen=True, slots=True)
class RecoverySettings:
    """How a network is recovered.

    `minutes`: of training, or ``auto``. `targets`: ``features``, ``logits`` (these and what the float head says of
    them) or ``labels`` (all these and the labels). `views`: how many seeded views, None for what the time allows.
    The rest as in `TrainingSettings`. `keep_zeros`: weights that are zero stay so.
    """

    minutes: Minutes = "auto"
    targets: RecoverTargets = "logits"
    views: int | None = None
    learning_rate: float = LEARNING_RATE
    batch_size: int = BATCH_SIZE
    weight_decay: float = 1e-4
    alpha: float = 0.5
    feature_weight: float = 1.0
    average: float = 0.98
    precision: str = "auto"
    seed: int = 0
    keep_zeros: bool = True

    def __post_init__(self) -> None:
        if self.targets not in ("features", "logits", "labels"):
            raise InputError(f"--targets must be 'features', 'logits' or 'labels', got {self.targets!r}")
        if self.minutes != "auto" and not (isinstance(self.minutes, int | float) and 0 < self.minutes <= MOST_MINUTES):
            raise InputError(
                f"minutes must be 'auto' or a number above 0 and at most {MOST_MINUTES:.0f}, got {self.minutes!r}"
            )
        if self.views is not None and self.views < 1:
            raise InputError(f"--views must be at least 1, got {self.views!r}")
        self.training(1)

    def training(self, epochs: int) -> TrainingSettings:
        """Return the loop's settings for so many epochs."""
        return TrainingSettings(
            alpha=self.alpha, feature_weight=self.feature_weight, epochs=epochs, batch_size=self.batch_size,
            learning_rate=self.learning_rate, weight_decay=self.weight_decay, warmup_steps=WARMUP_STEPS, cooldown=0.5,
            average=self.average, precision=self.precision, seed=self.seed,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a recovery did.

    `val_loss_before`, `val_loss_after`: distance from the float network's answers on `val_images` images that were not
    trained on, in the units of the loss; `kept`: whether it fell, else the network is as it was. `steps`: those whose
    weights were kept, of `steps_planned`; `epochs`: passes over the images until training ended.
    """

    kept: bool
    steps: int
    steps_planned: int
    epochs: float
    views: int
    images: int
    val_images: int
    val_loss_before: float
    val_loss_after: float
    targets: str
    precision: str
    train_seconds: float
    images_per_second: float | None

    def to_lineage(self, settings: RecoverySettings) -> dict[str, Any]:
        """Return what a MODEL's lineage holds of it: nothing that another run of the same would measure otherwise."""
        values = dataclasses.asdict(self)
        del values["train_seconds"], values["images_per_second"]
        return {**values, "settings": dataclasses.asdict(settings)}


def parse_minutes(text: str, *, option: str, words: tuple[str, ...] = ("auto",)) -> Any:
    """Return the time that `text` asks for: one of `words` as it is, or minutes as a float.

    Raises `InputError` naming `option` for anything else.
    """
    if text in words:
        return text
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes <= MOST_MINUTES:
        listed = ", ".join(repr(word) for word in words)
        raise InputError(f"{option} must be {listed} or minutes above 0 and at most {MOST_MINUTES:.0f}, got {text!r}")
    return minutes


def recover_network(
    network: nn.Module,
    source: Source,
    settings: RecoverySettings,
    *,
    work: Path,
    teacher: MergedModel | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    say: Callable[[str], None] = lambda line: None,
) -> Recovery:
    """Train `network` in place toward the float features in `source`'s cache; what val says is worse is not kept.

    Killed at any instant, the same call goes on from the checkpoint in `work` and ends with the same weights: how many
    steps fit into the minutes is measured once and kept there.

    Parameters
    ----------
    network
        Normalised images (b, 3, height, width) → features (b, width), or a tuple of outputs as a Backbone gives.
    source
        The cache with the float features, and the model for its preprocessing, its outputs and its head's settings.
    settings
        How long and toward what.
    work
        A directory for checkpoints and pixels, made where it is not there. The caller removes it.
    teacher
        The float model, so that features of more views than the cache holds can be computed.
    checkpoint_seconds
        Between checkpoints.
    say
        Called with a line now and then.

    Returns
    -------
    Recovery
        What was done, and whether it was kept.

    Raises
    ------
    InputError
        Where there are too few images, views are asked for that nobody can compute, or another run is unfinished in
        `work`.
    MissingError
        Where images are gone.
    StorageError
        Where the disk refuses.

    Examples
    --------
    >>> import copy, tempfile
    >>> from featcache.cache import open_cache
    >>> from featcache.compression.refitting import open_source
    >>> with open_cache("cache") as cache, tempfile.TemporaryDirectory() as folder:
    ...     source = open_source("model", cache)
    ...     network = copy.deepcopy(source.model.backbone)
    ...     recovery = recover_network(network, source, RecoverySettings(minutes=0.01), work=Path(folder))
    >>> recovery.images > 0 and recovery.val_loss_after <= recovery.val_loss_before
    True
    """
    cache, views = source.cache, source.cache.recipe.views
    if settings.views is not None and settings.views > views and teacher is None:
        raise InputError(
            f"--views must be at most {views}, the number {str(cache.path)!r} holds, got {settings.views}: name the "
            "float model with --teacher to compute more"
        )
    train, val = _images(source, settings.seed)
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{str(work)!r} must be a place to write, got: {error.strerror}") from error
    head = _float_head(source, teacher) if settings.targets != "features" else None
    with ExitStack() as stack:
        given = stack.enter_context(_Closing(_targets(cache, train, range(views), source, settings, head)))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        learner = FeatureLearner(
            copy.deepcopy(network).requires_grad_(True), mean=given.moments(0)[0], scale=given.moments(0)[1],
            head=None if head is None else head.to_module(), soft=head is not None,
            labels=head is not None and settings.targets == "labels",
        )  # fmt: skip
        if settings.keep_zeros:
            _keep_zeros(learner.network)
        preprocessing = source.model.preprocessing
        bf16 = settings.precision == "bf16" or (settings.precision == "auto" and has_bf16(device))
        trainer = Trainer(
            learner, settings.training(1), mean=preprocessing.mean, std=preprocessing.std, labels=train.labels,
            bf16=bf16, device=device,
        )  # fmt: skip
        height, width = preprocessing.height, preprocessing.width
        pairs = find_batchnorms(network, height=height, width=width)
        stack.enter_context(frozen_norms(learner.network.eval(), pairs, height=height, width=width))
        identity = {
            **dataclasses.asdict(settings),
            "images": train.identity,
            "val": val.identity,
            "cache": cache.fingerprint,
            "teacher": teacher is not None,
            "network": _digest(network),
        }
        plan = _plan(
            work / "plan.json", identity, trainer, train, settings, preprocessing, most_views=None if teacher else views
        )
        spec = dataclasses.replace(ViewSpec.of(cache.recipe), views=tuple(range(plan["views"])))
        targets, val_targets = given, _targets(cache, val, [0], source, settings, head, moments=given)
        stack.enter_context(_Closing(val_targets))
        if plan["views"] > views:
            assert teacher is not None
            more = stack.enter_context(_with_more_views(source, teacher, plan["views"], work / "teacher"))
            targets = _targets(more, train, spec.views, source, settings, head, moments=given)
            stack.enter_context(_Closing(targets))
        steps = plan["steps"]
        schedule = Schedule(len(train), views=len(spec.views), settings=trainer.settings, steps=steps)
        (work / "val").mkdir(exist_ok=True)
        validation = Validation(
            len(val), replay_views(work / "val" / "views.u8", val, dataclasses.replace(spec, views=(0,))), val_targets,
            every=max(1, math.ceil(steps / _CHECKS)), patience=_PATIENCE,
        )  # fmt: skip
        run = RunDirectory(
            work, identity={**identity, "steps": steps, "views": plan["views"]},
            epochs=steps / schedule.steps_per_epoch, name="recover", validation=validation,
        )  # fmt: skip
        run.resume(trainer, schedule, say=say)
        resumed_from = trainer.number
        # a view that is seen once at most is decoded when its turn comes
        once = steps <= schedule.steps_per_epoch * len(spec.views)
        pixels = StreamedViews(train, spec) if once else replay_views(work / "views.u8", train, spec)
        say(f"{len(train)} images, {plan['views']} views, {steps} steps of {schedule.batch} images")
        seconds = run.train(trainer, schedule, pixels, targets, every=checkpoint_seconds, say=say)
    kept = validation.best_step > 0
    if kept:
        best = {name.removeprefix("network."): tensor.cpu() for name, tensor in validation.best.items()}
        network.load_state_dict(best)
    taken = trainer.number - resumed_from
    return Recovery(
        kept=kept,
        steps=validation.best_step,
        steps_planned=steps,
        epochs=trainer.number / schedule.steps_per_epoch,
        views=plan["views"],
        images=len(train),
        val_images=len(val),
        val_loss_before=validation.start,
        val_loss_after=validation.least,
        targets=settings.targets if head is not None else "features",
        precision="bf16" if bf16 else "fp32",
        train_seconds=seconds,
        images_per_second=taken * schedule.batch / seconds if taken else None,
    )


class _Closing:
    """A `CachedTargets` as a context manager that gives it."""

    def __init__(self, targets: CachedTargets) -> None:
        self._targets = targets

    def __enter__(self) -> CachedTargets:
        return self._targets

    def __exit__(self, *_: object) -> None:
        self._targets.close()


def _images(source: Source, seed: int) -> tuple[Images, Images]:
    """Return the images to train on and those to stop by: the val split, else a tenth of the train split."""
    samples, cache = source.cache.samples(source.dataset), source.cache
    train = cache.select(split="train", dataset=source.dataset, labelled=False).indices
    val = cache.select(split="val", dataset=source.dataset, labelled=False).indices
    generator = np.random.default_rng([seed, 2])
    if not len(val):
        drawn = generator.permutation(len(train))
        count = max(1, len(train) // 10)
        train, val = train[np.sort(drawn[count:])], train[np.sort(drawn[:count])]
    if len(val) > _VAL_IMAGES:
        val = val[np.sort(generator.permutation(len(val))[:_VAL_IMAGES])]
    if len(train) < 2:
        raise InputError(f"a recovery needs two images or more of the train split, got {len(train)}")
    labels = samples.labels if samples.task == "classification" else np.full(len(samples), -1, dtype=np.int64)

    def take(indices: npt.NDArray[np.int64]) -> Images:
        paths = tuple(str(samples.listing.absolute(int(i))) for i in indices)
        return Images(paths, samples.digests[indices], labels[indices])

    return take(train), take(val)


def _float_head(source: Source, teacher: MergedModel | None) -> Head | None:
    """Return the head on the float features, to be asked for its logits; None where there are no classes."""
    model = source.model
    if model.fitted_head.task != "classification":
        return None
    if teacher is not None:
        return teacher.fitted_head
    if model.recipe.model_digest is None:
        return model.fitted_head
    settings = dict(model.fitted_head.settings)
    return refit_head(source.cache, settings, dataset=source.dataset).head  # the one compressed heads come from


def _targets(
    cache: FeatureCache,
    images: Images,
    views: Any,
    source: Source,
    settings: RecoverySettings,
    head: Head | None,
    *,
    moments: CachedTargets | None = None,
) -> CachedTargets:
    soft = None
    if head is not None:
        soft = SoftSource(0, head, head.classes, np.arange(len(head.classes)), shared=True)
    return CachedTargets(
        [cache], images.digests, views=list(views), features=True, soft=soft,
        temperature=settings.training(1).temperature, seed=settings.seed, outputs=source.model.backbone.outputs,
        moments=None if moments is None else [moments.moments(0)],
    )  # fmt: skip


def _plan(
    place: Path,
    identity: Mapping[str, Any],
    trainer: Trainer,
    train: Images,
    settings: RecoverySettings,
    size: Preprocessing,
    *,
    most_views: int | None,
) -> dict[str, int]:
    """Return how many steps and views the time is good for: as decided when this run began, else measured now.

    `most_views`: how many there are; None where more can be computed.
    """
    batch = min(settings.batch_size, len(train))
    per_epoch = len(train) // batch
    wanted = parse_json(json.dumps(identity).encode())
    if place.exists():
        stored = read_document(place, _PLAN)
        if stored["identity"] == wanted:
            return {"steps": int(stored["steps"]), "views": int(stored["views"])}
    seconds = trainer.seconds_per_step(batch, height=size.height, width=size.width)
    if settings.minutes == "auto":
        steps = min(max(AUTO_EPOCHS * per_epoch, AUTO_LEAST_STEPS), math.floor(60 * LONGEST_AUTO / seconds))
    else:
        steps = math.floor(60 * settings.minutes / seconds)
    steps = max(1, steps)
    views = settings.views
    if views is None:
        views = max(1, min(MOST_AUTO_VIEWS, round(steps / per_epoch / 2))) if most_views is None else most_views
    plan = {"identity": wanted, "steps": steps, "views": views}
    write_atomically(place, (json.dumps(plan, indent=1) + "\n").encode())
    return {"steps": steps, "views": views}


def _with_more_views(source: Source, teacher: MergedModel, views: int, place: Path) -> FeatureCache:
    """Return a cache with the float features of so many views; a killed build of it is gone on with."""
    recipe = dataclasses.replace(source.cache.recipe, views=views)
    samples = source.cache.samples(source.dataset)
    samples.require_images()
    backbone = teacher.backbone
    with open_engine(backbone, engine=recipe.engine, precision=recipe.precision, cached=False) as engine:
        recipe = dataclasses.replace(recipe, engine_version=engine.version, precision=engine.precision)
        report = build_cache(
            samples, place, dataset=source.dataset, split_seed=samples.split_seed, extractor=Extractor(engine, recipe)
        )
    gone = report.failed - len(samples.failures) - len(samples.listing.failures)
    if gone > 0:
        raise MissingError(
            f"the recovery needs all images of {samples.root!r} again, {gone} cannot be read any more, the first being "
            f"{report.failures[0][0]!r} ({report.failures[0][1]}): put them back, or build the cache again"
        )
    return open_cache(place)


def _keep_zeros(network: nn.Module) -> None:
    """Let the weights of `network` that are zero stay so: what was pruned is not to grow again."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            mask = module.weight.detach() != 0
            if not bool(mask.all()):
                module.weight.register_hook(_masking(mask))  # type: ignore[no-untyped-call]


def _masking(mask: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient * mask.to(gradient.device)


def _digest(network: nn.Module) -> str:
    state = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        state.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        state.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()
