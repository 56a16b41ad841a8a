"""What a head is fitted on: rows of a cache joined with labels and splits, checked before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featcache.datasets.remarks import hindrance_to_training
from featcache.errors import InputError
from featcache.heads.solvers.parts import Workers
from featcache.train.blocks import Features, RowsOfCache, StreamedFeatures, check_finite, rows_per_block
from featcache.train.cache_parts import CachePart, partition_rows

if TYPE_CHECKING:
    from featcache.cache import FeatureCache
    from featcache.cache.cache import Selection
    from featcache.datasets.samples import Samples


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one split: `features` (n, d) float32, `targets`, and `indices` (n,) of their samples.

    `features` are an array, or stay in the cache and are streamed from it. `targets`: (n,) int64 class indices, -1
    where unlabelled; for multi-label and regression (n, k) float32.
    """

    features: Features
    targets: npt.NDArray[Any]
    indices: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.features)

    def subset(self, kept: npt.NDArray[np.bool_]) -> Rows:
        """Return the rows where `kept` (n,) is true."""
        return Rows(self.features[kept], self.targets[kept], self.indices[kept])


@dataclass(frozen=True, slots=True)
class TrainingData:
    """All rows a fit looks at. `val`, `test` are None where the data set has no such split; `unlabelled` likewise.

    `columns`: the store columns laid side by side; `block_widths`: how many features each of them gives.
    `notes`: one line each, what the user should know about the data.
    """

    dataset: str
    task: str
    classes: tuple[str, ...]
    columns: tuple[str, ...]
    block_widths: tuple[int, ...]
    train: Rows
    val: Rows | None
    test: Rows | None
    unlabelled: Rows | None
    samples: Samples
    unlabelled_samples: Samples | None
    notes: tuple[str, ...]

    @property
    def streamed(self) -> bool:
        """Return whether the features are read from the cache at every pass, being too many for memory."""
        return isinstance(self.train.features, StreamedFeatures)

    @property
    def n_images(self) -> int:
        """Return how many images the train rows are views of."""
        return len(np.unique(self.train.indices))

    def first_view(self) -> Rows:
        """Return the train rows of the first view: one per image."""
        n = self.n_images
        return Rows(self.train.features[:n], self.train.targets[:n], self.train.indices[:n])


def load_training_data(
    cache: FeatureCache,
    *,
    dataset: str | None = None,
    outputs: Sequence[str] | None = None,
    views: Sequence[int] = (0,),
    drop_duplicates: bool = False,
    with_unlabelled: bool = False,
    unlabelled: str | None = None,
    memory_bytes: int | None = None,
    folds: int = 0,
    workers: Workers | None = None,
) -> TrainingData:
    """Return the rows of `dataset` in `cache`, one block of columns per output.

    `views`: the stored views that become training rows (n_train = images · views); val and test see the plain view 0
    only. `with_unlabelled`: also load the unlabelled train samples, and all samples of data set `unlabelled` of the
    same cache. Raises `InputError` for non-finite features, one class, or a class without a training row.

    Where the features would take more than `memory_bytes` (None: no limit), with the standardised copy that is fitted
    on and, without a val split, those of `folds` folds, they stay in the cache and are streamed; non-finite ones are
    then found when they are first read. With `workers` each of them reads and holds a part of every split.
    """
    samples = cache.samples(dataset)
    names = tuple(outputs) if outputs else (cache.recipe.outputs[0],)
    selections = {split: cache.select(split=split, dataset=dataset) for split in ("train", "val", "test")}
    notes, kept = _find_duplicates(selections, samples, drop=drop_duplicates)
    train = selections["train"]
    train_indices, train_rows = train.indices[kept], train.rows[kept]
    train_targets = train.labels[kept]
    _check_targets(samples, train_targets, train_indices, cache)
    cache.outputs(names)
    cache.check_views(views)
    shapes = {column.name: math.prod(column.shape) for column in cache.columns}
    width = sum(shapes[name] for name in names)

    free_samples, free_rows, free_indices = None, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    if with_unlabelled:
        free_samples = samples if unlabelled is None else cache.samples(unlabelled)
        split = "train" if unlabelled is None else None
        every = cache.select(split=split, dataset=free_samples.dataset, labelled=False)
        free_indices = every.indices
        if unlabelled is None:
            free_indices = free_indices[samples.labels[free_indices] < 0]
        free_rows = every.rows[np.isin(every.indices, free_indices)]

    n_fit_rows = (len(train_rows) + len(free_rows)) * len(views)
    n_scored_rows = len(selections["val"].rows) + len(selections["test"].rows)
    problems = 1 if len(selections["val"].rows) else 1 + folds
    needed = (
        4 * width * (2 * problems * n_fit_rows + n_scored_rows)
    )  # float32; each problem has its rows and a copy of them
    streamed, block_rows = False, 0
    if workers is None and memory_bytes is not None and needed > memory_bytes:
        streamed, block_rows = True, rows_per_block(width, memory_bytes=memory_bytes)
        notes.append(
            f"training would hold {needed / 1e9:.3g} GB of features, allowed are {memory_bytes / 1e9:.3g} GB: they are "
            "streamed from the cache, which takes longer"
        )

    def load(
        rows: npt.NDArray[np.int64], indices: npt.NDArray[np.int64], which: Sequence[int], of: Samples
    ) -> Features:
        n = len(which)
        if workers is not None:
            kind = np.min_scalar_type(max(which))
            every_view = np.repeat(np.asarray(which, dtype=kind), len(rows))
            place = str(cache.path) if workers.elsewhere else cache
            every = CachePart(
                place, cache.fingerprint, of.dataset, names, width, np.tile(rows, n), every_view, np.tile(indices, n)
            )
            return partition_rows(every, workers)
        if streamed:
            all_views = np.repeat(np.asarray(which, dtype=np.int64), len(rows))
            part = RowsOfCache(cache, names, np.tile(rows, n), all_views, np.tile(indices, n), lambda: of)
            return StreamedFeatures([part], num_features=width, block_rows=block_rows)
        features = cache.gather(rows, output=list(names), views=list(which))
        check_finite(features, indices, lambda: of)
        return features

    def load_split(split: str) -> Rows | None:
        chosen = selections[split]
        if not len(chosen.rows):
            return None
        return Rows(load(chosen.rows, chosen.indices, (0,), samples), chosen.labels, chosen.indices)

    repeats = len(views)
    train_data = Rows(
        load(train_rows, train_indices, views, samples),
        np.concatenate([train_targets] * repeats),
        np.concatenate([train_indices] * repeats),
    )
    free = None
    if free_samples is not None and len(free_rows):
        features = load(free_rows, free_indices, views, free_samples)
        free = Rows(features, np.full(len(features), -1), np.concatenate([free_indices] * repeats))
    return TrainingData(
        dataset=samples.dataset,
        task=samples.task,
        classes=samples.classes,
        columns=names,
        block_widths=tuple(shapes[name] for name in names),
        train=train_data,
        val=load_split("val"),
        test=load_split("test"),
        unlabelled=free,
        samples=samples,
        unlabelled_samples=free_samples,
        notes=tuple(notes),
    )


def _find_duplicates(
    selections: dict[str, Selection], samples: Samples, *, drop: bool
) -> tuple[list[str], npt.NDArray[np.bool_]]:
    """Return notes on equal images under several labels or splits, and which train samples are kept.

    Equal bytes share one store row, so the row numbers say which images are equal.
    """
    train = selections["train"].rows
    elsewhere = np.concatenate([selections["val"].rows, selections["test"].rows])
    leaked = np.isin(train, elsewhere)
    all_rows = np.concatenate([train, elsewhere])
    labels = [selections[split].labels for split in ("train", "val", "test")]
    flat = np.concatenate(labels) if len(all_rows) else np.empty(0, dtype=np.int64)
    if flat.ndim == 2:
        flat = np.unique(flat, axis=0, return_inverse=True)[1].reshape(-1)
    conflicting = np.zeros(len(train), dtype=bool)
    if len(np.unique(all_rows)) < len(all_rows):
        pairs = np.unique(np.stack([all_rows, flat]), axis=1)
        rows, counts = np.unique(pairs[0], return_counts=True)
        conflicting = np.isin(train, rows[counts > 1])
    notes = []
    what = "dropped from train" if drop else "kept: drop them with drop_duplicates (--drop-duplicates)"
    if leaked.any():
        notes.append(f"{int(leaked.sum())} training images also stand in val or test; {what}")
    if conflicting.any():
        notes.append(f"{int(conflicting.sum())} training images also stand under another label; {what}")
    kept = ~(leaked | conflicting) if drop else np.ones(len(train), dtype=bool)
    return notes, kept


def _check_targets(
    samples: Samples, targets: npt.NDArray[Any], kept: npt.NDArray[np.int64], cache: FeatureCache
) -> None:
    """Raise `InputError` where the `kept` samples (indices) of the train split, with `targets`, make no head."""
    where = f"data set {samples.dataset!r} of {str(cache.path)!r}"
    in_train = np.zeros(len(samples), dtype=bool)
    in_train[kept] = True
    if (hindrance := hindrance_to_training(samples.listing, in_train, samples.failures)) is not None:
        raise InputError(f"{hindrance} ({where})")
    if samples.task == "regression" and not np.isfinite(targets).all():  # as caches of earlier versions may hold
        raise InputError(f"regression targets must be finite numbers, got NaN or infinity in {where}: build it again")
