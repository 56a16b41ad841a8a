"""Which images or texts are shown, and in which order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featcache.serve.refusals import RefusedError
from featcache.serve.studio.collection import SPLITS, Collection
from featcache.serve.studio.fitting import Fitted
from featcache.serve.studio.likeness import descending

ORDERS = ("path", "uncertainty", "disagreement", "class", "similarity")


@dataclass(frozen=True, slots=True)
class View:
    """What is asked for: an `order` of `ORDERS`, and what must hold of each image; None: anything.

    `similar_to`: the sample that ``similarity`` is to. `label`: its class, "" for none. `predicted`: what the head
    says. `split`: its split. `search`: a part of its path, or of the text, in any case.
    """

    order: str = "path"
    similar_to: int | None = None
    label: str | None = None
    predicted: str | None = None
    split: str | None = None
    search: str | None = None


def ordered(collection: Collection, fitted: Fitted | None, view: View) -> npt.NDArray[np.int64]:
    """Return the samples of `view`. Without a head, orders that need one are by path.

    Raises `RefusedError`: 400 for an order or split that is none, 404 for a class or sample that is not there.
    """
    if view.order not in ORDERS:
        raise RefusedError(400, f"order must be one of {', '.join(ORDERS)}, got {view.order[:40]!r}")
    with collection.lock:
        labels = collection.labels.copy()
        mask = np.ones(len(collection), dtype=bool)
        if view.split is not None:
            if view.split not in SPLITS:
                raise RefusedError(400, f"split must be one of {', '.join(SPLITS)}, got {view.split[:40]!r}")
            mask &= collection.splits == SPLITS.index(view.split)
        if view.label is not None:
            mask &= labels == (_number(collection, view.label) if view.label else -1)
        if view.predicted is not None:
            number = _number(collection, view.predicted)
            mask &= fitted.predicted == number if fitted is not None else False
        if view.search:
            mask &= collection.holding(view.search)
        rows = np.flatnonzero(mask)
        if view.order == "similarity":
            if view.similar_to is None:
                raise RefusedError(400, "order=similarity needs similar_to, the number of a sample")
            likeness = collection.likeness.of(collection.check_sample(view.similar_to))
            return rows[descending(likeness[rows])]
    keys = _keys(view.order, labels, fitted)
    return rows if keys is None else rows[np.lexsort(tuple(key[rows] for key in keys))]


def _keys(
    order: str, labels: npt.NDArray[np.int32], fitted: Fitted | None
) -> tuple[npt.NDArray[np.floating | np.integer], ...] | None:
    """Return what to sort by, the first thing last, as lexsort has it; None for the order that there is."""
    if order == "class" and fitted is None:
        return ((labels < 0).astype(np.int32) * len(labels) + labels,)
    if order == "path" or fitted is None:
        return None
    likeliest = fitted.probabilities.max(axis=1)
    if order == "uncertainty":
        return (likeliest,)
    if order == "disagreement":
        own = fitted.probability_of(labels)
        return (np.where(np.isnan(own), 2.0, own - likeliest),)
    shown = np.where(labels >= 0, labels, fitted.predicted)
    return (-likeliest, (labels < 0).astype(np.int32), shown)


def _number(collection: Collection, name: str) -> int:
    if name not in collection.classes:
        raise RefusedError(404, f"a class must be one of those there are, got {name[:100]!r}")
    return collection.classes.index(name)
