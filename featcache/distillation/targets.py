"""What the teacher said, as the student's loss takes it: standardised features and compact soft labels, from a cache.

Soft labels are stored as the largest probabilities of a view and their classes, 24 bytes at most; what remains of the
mass is one more class, "any other". Features stay in the cache and are read from there, batch by batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from featcache.cache.cache import column_name
from featcache.distillation.soft_source import LOGITS, SoftSource
from featcache.heads.base import softmax

if TYPE_CHECKING:
    from featcache.cache import FeatureCache, StoreReader

SOFT_LABEL_BYTES = 24
_PAIR_BYTES = 4  # a class as uint16 and its probability as float16
_STATISTICS_ROWS = 8192
_BLOCK_ROWS = 4096


@dataclass(frozen=True, slots=True)
class SoftLabels:
    """The teacher's largest probabilities of b images: `classes` (b, k) int64 and `probabilities` (b, k) float32.

    k is the number of all classes where those fit. The mass missing to 1 belongs to the other classes together.
    """

    classes: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]


class TargetSource(Protocol):
    """Where a training step's targets come from: a cache, or (to compare) the teacher itself."""

    @property
    def feature_widths(self) -> tuple[int, ...]:
        """Width of each feature target."""

    @property
    def n_soft_classes(self) -> int:
        """Number of the teacher's classes, 0 without soft labels."""

    def features(self, positions: npt.NDArray[np.int64], views: npt.NDArray[np.int64]) -> list[npt.NDArray[np.float32]]:
        """Return standardised features (b, width) of image `positions[i]` in view `views[i]`, of each teacher."""

    def soft_labels(self, positions: npt.NDArray[np.int64], views: npt.NDArray[np.int64]) -> SoftLabels:
        """Return the soft labels of image `positions[i]` in view `views[i]`."""


class CachedTargets:
    """Targets of n images from one or more open teacher caches. Close it: it holds a snapshot of each.

    `digests` (n, 32) uint8: the images, all of which have a row. `views`: the index each place on the view axis means.
    `features`: whether they are targets; `outputs`: which stored ones, laid side by side. `soft`: where soft labels
    come from, at `temperature`; they are drawn up here, once. `seed`: of the images that features are standardised by;
    `moments`: those of other images' targets instead, as the method of that name gives them.
    """

    def __init__(
        self,
        teachers: Sequence[FeatureCache],
        digests: npt.NDArray[np.uint8],
        *,
        views: Sequence[int],
        features: bool,
        soft: SoftSource | None,
        temperature: float,
        seed: int,
        outputs: Sequence[str] = ("features",),
        moments: Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]] | None = None,
    ) -> None:
        self._outputs = tuple(outputs)
        self._readers = [teacher.reader() for teacher in teachers]
        self._views = list(views)
        self._rows = [reader.find(digests) for reader in self._readers]
        self._means: list[npt.NDArray[np.float32]] = []
        self._scales: list[npt.NDArray[np.float32]] = []
        if moments is not None:
            self._means, self._scales = [mean for mean, _ in moments], [scale for _, scale in moments]
        elif features:
            chosen = np.random.default_rng(seed).permutation(len(digests))[:_STATISTICS_ROWS]
            for reader, rows in zip(self._readers, self._rows, strict=True):
                mean, scale = _statistics(reader, rows[np.sort(chosen)], self._views, self._outputs)
                self._means.append(mean)
                self._scales.append(scale)
        self.n_soft_classes = 0
        if soft is not None:
            at = soft.teacher
            self.n_soft_classes = soft.n_classes
            self._classes, self._probabilities = _compact(
                teachers[at], self._readers[at], self._rows[at], self._views, soft, temperature
            )

    @property
    def feature_widths(self) -> tuple[int, ...]:
        """Width of each teacher's features; empty where features are not wanted."""
        return tuple(len(mean) for mean in self._means)

    @property
    def bytes_per_view(self) -> dict[str, int]:
        """Bytes read for one view: of float16 features, and of stored soft labels."""
        soft = 0
        if self.n_soft_classes:
            soft = sum(int(array[0, 0].nbytes) for array in (self._classes, self._probabilities) if array is not None)
        return {"features": sum(2 * width for width in self.feature_widths), "soft_labels": soft}

    def features(self, positions: npt.NDArray[np.int64], views: npt.NDArray[np.int64]) -> list[npt.NDArray[np.float32]]:
        """Return standardised features (b, width) float32 of each teacher."""
        results = []
        for number, width in enumerate(self.feature_widths):
            reader, rows = self._readers[number], self._rows[number]
            values = np.empty((len(positions), width), dtype=np.float32)
            for slot in np.unique(views):
                chosen = np.flatnonzero(views == slot)
                values[chosen] = _gather(reader, rows[positions[chosen]], self._views[slot], self._outputs)
            results.append(self.standardise(number, values))
        return results

    def moments(self, number: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return the mean and 1 / standard deviation (width,) that features of teacher `number` are standardised by."""
        return self._means[number], self._scales[number]

    def standardise(self, number: int, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return features (b, width) of teacher `number` as the loss takes them; `values` is changed."""
        values -= self._means[number]
        values *= self._scales[number]
        return values

    def soft_labels(self, positions: npt.NDArray[np.int64], views: npt.NDArray[np.int64]) -> SoftLabels:
        """Return the stored soft labels, widened."""
        probabilities = self._probabilities[positions, views].astype(np.float32)
        if self._classes is None:
            classes = np.broadcast_to(np.arange(self.n_soft_classes), probabilities.shape)
        else:
            classes = self._classes[positions, views].astype(np.int64)
        return SoftLabels(np.ascontiguousarray(classes, dtype=np.int64), probabilities)

    def close(self) -> None:
        """Release the snapshots."""
        for reader in self._readers:
            reader.close()


def _gather(
    reader: StoreReader, rows: npt.NDArray[np.int64], view: int, outputs: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Return the stored `outputs` (n, width) of one view, each flattened, side by side."""
    parts = [reader.gather(column_name(name, view), rows) for name in outputs]
    return np.concatenate([part.reshape(len(rows), -1) for part in parts], axis=1, dtype=np.float32)


def _statistics(
    reader: StoreReader, rows: npt.NDArray[np.int64], views: Sequence[int], outputs: Sequence[str]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the mean and 1 / standard deviation of each feature, over all views of some images."""
    width = _gather(reader, rows[:1], views[0], outputs).shape[1]
    total, squares, count = np.zeros(width), np.zeros(width), 0
    for view in views:
        values = _gather(reader, rows, view, outputs).astype(np.float64)
        total += values.sum(axis=0)
        squares += (values**2).sum(axis=0)
        count += len(values)
    mean = total / count
    spread = np.sqrt(np.maximum(squares / count - mean**2, 0))
    scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 1e-6)  # a constant teaches nothing
    return mean.astype(np.float32), scale.astype(np.float32)


def _compact(
    teacher: FeatureCache,
    reader: StoreReader,
    rows: npt.NDArray[np.int64],
    views: Sequence[int],
    source: SoftSource,
    temperature: float,
) -> tuple[npt.NDArray[np.uint16] | None, npt.NDArray[np.float16]]:
    """Return classes (n, views, k) uint16, None where all are kept, and their probabilities float16."""
    n_classes, head = source.n_classes, source.head
    whole = n_classes <= SOFT_LABEL_BYTES // 2
    k = n_classes if whole else SOFT_LABEL_BYTES // _PAIR_BYTES
    probabilities = np.empty((len(rows), len(views), k), dtype=np.float16)
    classes = None if whole else np.empty((len(rows), len(views), k), dtype=np.uint16)
    with tqdm(total=len(rows) * len(views), desc="soft labels", unit="view", disable=None) as bar:
        for slot, view in enumerate(views):
            for start in range(0, len(rows), _BLOCK_ROWS):
                block = rows[start : start + _BLOCK_ROWS]
                if head is None:
                    logits = reader.gather(column_name(LOGITS, view), block).astype(np.float32)
                else:
                    logits = head.predict_logits(teacher.gather(block, output=list(head.columns), views=[view]))
                soft = softmax(logits[:, source.order] / np.float32(temperature))
                if classes is not None:
                    top, soft = largest(soft, k)
                    classes[start : start + len(block), slot] = top
                probabilities[start : start + len(block), slot] = soft
                bar.update(len(block))
    return classes, probabilities


def largest(probabilities: npt.NDArray[np.float32], k: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the classes (b, k) of the k largest of `probabilities` (b, n), in no order, and their probabilities."""
    top = np.argpartition(-probabilities, k - 1, axis=1)[:, :k]
    return top, np.take_along_axis(probabilities, top, axis=1)
