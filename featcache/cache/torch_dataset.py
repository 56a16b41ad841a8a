"""`CachedFeatures`: a torch ``Dataset`` over a cache, for training loops of one's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from featcache.cache.cache import CachePlace, FeatureCache, borrow_cache, column_name, open_cache
from featcache.store import StoreReader


class CachedFeatures(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Items are (features (d,) float32, label): one for each labelled sample of a split and view.

    Items come view after view. A data set holds only paths and row numbers until its first item is asked for, so it may
    be pickled to spawned workers or inherited by forked ones: each process opens the store for itself.

    Parameters
    ----------
    cache
        An open cache, or its directory or URL.
    split
        ``train``, ``val`` or ``test``; None: all samples.
    dataset
        Which data set, where the cache holds several.
    output
        One stored output, or several, each flattened and laid side by side; None: the first.
    views
        The views of each sample, one after another.

    Raises
    ------
    InputError
        Where the cache has no such data set, split, output or view.

    Examples
    --------
    >>> from torch.utils.data import DataLoader
    >>> data = CachedFeatures("cache", split="train")       # as: featcache build photos --cache cache
    >>> features, labels = next(iter(DataLoader(data, batch_size=4)))
    >>> features.dtype, tuple(labels.shape)
    (torch.float32, (4,))
    """

    def __init__(
        self,
        cache: FeatureCache | CachePlace,
        *,
        split: str | None = None,
        dataset: str | None = None,
        output: str | Sequence[str] | None = None,
        views: Sequence[int] = (0,),
    ) -> None:
        with borrow_cache(cache) as opened:
            self.path = opened.path
            self.outputs = opened.outputs(output)
            shapes = {column.name: column.shape for column in opened.columns}
            self.widths = [math.prod(shapes[name]) for name in self.outputs]
            self.views = tuple(opened.check_views(views))
            selection = opened.select(split=split, dataset=dataset)
        self.rows = selection.rows
        self.labels = selection.labels
        self._cache: FeatureCache | None = None
        self._reader: StoreReader | None = None

    def __len__(self) -> int:
        return len(self.views) * len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must be below {len(self)}, got {index}")
        features, labels = self.__getitems__([index])[0]
        return features, labels

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return several items at once (torch's loaders ask this way): one gather per view and output."""
        flat = np.asarray(indices, dtype=np.int64) % len(self)
        view, position = np.divmod(flat, len(self.rows))
        reader = self._open()
        features = np.empty((len(flat), sum(self.widths)), dtype=np.float32)
        for number in np.unique(view):
            chosen = np.flatnonzero(view == number)
            rows = self.rows[position[chosen]]
            left = 0
            for name, width in zip(self.outputs, self.widths, strict=True):
                values = reader.gather(column_name(name, self.views[number]), rows)
                features[chosen, left : left + width] = values.reshape(len(rows), width)
                left += width
        labels = torch.from_numpy(self.labels[position])
        return list(zip(torch.from_numpy(features), labels, strict=True))

    def _open(self) -> StoreReader:
        if self._cache is None or self._reader is None:
            self._cache = open_cache(self.path)
            self._reader = self._cache.reader().__enter__()
        return self._reader

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None, "_reader": None}
