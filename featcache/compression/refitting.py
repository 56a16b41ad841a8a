"""Refit the head on the compressed backbone's own features: what makes most of what compression lost come back.

The features are extracted into a temporary cache by the machinery that built the first one, from the same images. A
refit that val says is worse than the old head on these features is dropped.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.cache import FeatureCache, open_cache
from featcache.compression.keeping import reason_to_drop
from featcache.errors import InputError, MissingError
from featcache.extract.build import build_cache
from featcache.extract.inputs import Extractor, find_input
from featcache.heads import Head
from featcache.model.directory import GOLDEN_FOLDER, load_model
from featcache.model.golden import GOLDEN_FILE, Golden
from featcache.model.merged import MergedModel, check_same_classes
from featcache.train.fit import refit_head
from featcache.train.score import score_logits

SPLITS = ("test", "val", "train")  # in the order of preference for the headline figure


@dataclass(frozen=True, slots=True)
class SplitRows:
    """Features (n, d) float32 of the labelled images of one split, and their labels or targets, in sample order."""

    features: npt.NDArray[np.float32]
    targets: npt.NDArray[Any]


Features = Mapping[str, SplitRows]


@dataclass(frozen=True, slots=True)
class Source:
    """A compression's input: the model, its golden samples or None, and the features its head was trained on."""

    model: MergedModel
    golden: Golden | None
    cache: FeatureCache
    dataset: str


def open_source(
    model: MergedModel | str | os.PathLike[str], cache: FeatureCache, *, dataset: str | None = None
) -> Source:
    """Return `model` (or the one in that directory) with the data set to work on, both checked to belong together.

    Raises `InputError` where they do not, and for a model that is quantized already.
    """
    merged = model if isinstance(model, MergedModel) else load_model(model)
    golden = None
    if not isinstance(model, MergedModel) and (Path(model) / GOLDEN_FOLDER / GOLDEN_FILE).exists():
        golden = Golden.load(Path(model) / GOLDEN_FOLDER)
    made_from = next((step["cache"] for step in merged.lineage if step.get("verb") == "merge"), cache.fingerprint)
    if made_from != cache.fingerprint:
        raise InputError(
            f"--cache must be the one the model was merged from ({made_from[:12]}), {str(cache.path)!r} is another "
            f"({cache.fingerprint[:12]})"
        )
    if merged.quantization is not None:
        raise InputError("the model must not be quantized already: prune first, then quantize, or take the float model")
    samples = cache.samples(dataset)
    check_same_classes(merged, samples.classes, f"data set {samples.dataset!r} of {str(cache.path)!r}")
    return Source(merged, golden, cache, samples.dataset)


def float_features(source: Source) -> Features:
    """Return the features of the model that is to be compressed: cached ones, or its own where it was pruned."""
    if source.model.recipe.model_digest is None:
        return _features(source.cache, source.dataset, source.model.backbone.outputs)
    recipe = dataclasses.replace(source.model.recipe, views=1)
    extractor = find_input(recipe.input).extractor_of_module(source.model.backbone, recipe)
    with extractor.engine, tempfile.TemporaryDirectory() as folder, _extract(source, extractor, Path(folder)) as cache:
        return _features(cache, source.dataset, recipe.outputs)


@dataclass(frozen=True, slots=True)
class Refit:
    """The compressed backbone's `features`, and the `head` to ship on them.

    `kept`: whether that is the head fitted on these features; else it is the old one, and `notes` say why.
    """

    features: Features
    head: Head
    kept: bool
    notes: tuple[str, ...]


def extract_and_refit(source: Source, extractor: Extractor) -> Refit:
    """Return the compressed backbone's features and a head trained on them with the old one's settings.

    Where val says that the new head is worse on these features than the old one, the old one stays. Without a val split
    nothing can be said and the new one ships. `extractor`: of the compressed backbone. Raises `MissingError`
    where images of the data set are gone, `InputError` for a head that scales its outputs apart.
    """
    settings, recipe = dict(source.model.fitted_head.settings), extractor.recipe
    if len(recipe.outputs) < len(source.model.backbone.outputs) and settings.pop("block_scales", None) is not None:
        raise InputError("a head with block_scales must keep its outputs apart, which an integer graph does not")
    if settings.get("outputs") is not None:
        settings["outputs"] = list(recipe.outputs)
    recipe = dataclasses.replace(recipe, views=source.cache.recipe.views if settings.get("views") else 1)
    extractor = dataclasses.replace(extractor, recipe=recipe)
    with tempfile.TemporaryDirectory() as folder, _extract(source, extractor, Path(folder)) as cache:
        fit = refit_head(cache, settings, dataset=source.dataset)
        features = _features(cache, source.dataset, recipe.outputs)
    old = source.model.fitted_head
    val = features.get("val")
    reason = None if val is None else reason_to_drop(old, fit.head, val.features, val.targets)
    if reason is None:
        return Refit(features, fit.head, True, fit.notes)
    # the settings stay those of the refit: what would be trained from this cache
    kept = dataclasses.replace(
        old, columns=fit.head.columns, fingerprint=fit.head.fingerprint, settings=fit.head.settings
    )
    return Refit(features, kept, False, (*fit.notes, f"the refitted head is not kept, the old one is: {reason}"))


def _extract(source: Source, extractor: Extractor, folder: Path) -> FeatureCache:
    """Return a new cache in `folder` with the rows that `extractor` computes from the inputs of the data set."""
    samples = source.cache.samples(source.dataset)
    samples.require_images()
    report = build_cache(
        samples,
        folder / "cache",
        dataset=source.dataset,
        split_seed=samples.split_seed,
        extractor=extractor,
    )
    gone = report.failed - len(samples.failures) - len(samples.listing.failures)
    if gone > 0:
        raise MissingError(
            f"the refit needs all images of {samples.root!r} again, {gone} cannot be read any more, the first being "
            f"{report.failures[0][0]!r} ({report.failures[0][1]}): put them back, or build the cache again"
        )
    return open_cache(folder / "cache")


def _features(cache: FeatureCache, dataset: str, outputs: tuple[str, ...]) -> Features:
    by_split = {}
    for split in SPLITS:
        features, targets = cache.numpy(split=split, dataset=dataset, output=list(outputs))
        if len(features):
            by_split[split] = SplitRows(features, targets)
    return by_split


@dataclass(frozen=True, slots=True)
class AccuracyComparison:
    """The accuracy fields of a `CompressResult`."""

    split: str
    n: int
    accuracy_float: float
    accuracy_before_refit: float
    accuracy_after_refit: float
    gained: int | None
    lost: int | None
    val_accuracy_float: float | None
    val_accuracy_after_refit: float | None


def compare_accuracy(
    old: Head, new: Head, *, before: Features, after: Features, unfitted: Head | None = None
) -> AccuracyComparison:
    """Return what `old` scores on the float model's features and on the compressed one's, and what `new` scores there.

    The pairs of images are the same in both, in the same order; `InputError` where they are not. `unfitted`: the old
    head as it reads the compressed features, where it had to be changed for that.
    """
    split = next(name for name in SPLITS if name in before and name in after)
    exact, rough = before[split], after[split]
    if not np.array_equal(exact.targets, rough.targets):
        raise InputError(f"the images of split {split!r} must be those of the cache, others were found: build it again")

    def score(head: Head, rows: SplitRows) -> float:
        return score_logits(head.predict_logits(rows.features), rows.targets, task=head.task).value

    gained = lost = None
    if old.task == "classification":
        right_before = old.predict(exact.features) == exact.targets
        right_after = new.predict(rough.features) == rough.targets
        gained, lost = int((right_after & ~right_before).sum()), int((right_before & ~right_after).sum())
    with_val = "val" in before and "val" in after
    return AccuracyComparison(
        split,
        len(exact.targets),
        score(old, exact),
        score(old if unfitted is None else unfitted, rough),
        score(new, rough),
        gained,
        lost,
        score(old, before["val"]) if with_val else None,
        score(new, after["val"]) if with_val else None,
    )
