"""Two heads, or two backbones, on the same labelled val images: how often each is right, and where only one is.

A contender is named ``now``, the head of the moment; ``head:NAME``, a HEAD of the workspace that was trained on this
cache; or ``dataset:NUMBER``, another data set's backbone, with a head of these labels on its features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from featcache.cache import open_cache
from featcache.errors import FeatcacheError, InputError
from featcache.heads import Head, load_head
from featcache.heads.io import read_head_json
from featcache.serve.refusals import RefusedError
from featcache.serve.studio.collection import Collection
from featcache.serve.studio.desk import Desk
from featcache.serve.studio.fitting import L2, fit
from featcache.serve.studio.penalty import choose_penalty
from featcache.serve.studio.workspace import Workspace
from featcache.train.score import sign_test

UNKNOWN = -1  # an answer that is none of the data set's classes: wrong
VAL = 1


@dataclass(frozen=True, slots=True)
class Contender:
    """What can be compared: `kind` ``now``, ``head`` or ``dataset``, its `id` in a request, and a `name`."""

    kind: Literal["now", "head", "dataset"]
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """On `held_out` images: how many each side answers rightly, the images that only one does, and McNemar's p."""

    held_out: int
    correct: tuple[int, int]
    only: tuple[list[int], list[int]]
    p: float


def contenders(workspace: Workspace, desk: Desk, collection: Collection) -> list[Contender]:
    """Return what the head of the moment can be compared with, itself first."""
    found = [Contender("now", "now", "")]
    for artefact in workspace.artefacts():
        if artefact.kind == "head" and _is_of(workspace, artefact.name, collection):
            found.append(Contender("head", f"head:{artefact.name}", artefact.name))
    for entry in desk.datasets():
        if entry["cache"] != collection.name and entry["input"] == collection.kind.name:
            name = f"{entry['name']} ({entry['backbone']})"
            found.append(Contender("dataset", f"dataset:{entry['id']}", name))
    return found


def _is_of(workspace: Workspace, name: str, collection: Collection) -> bool:
    try:
        document = read_head_json(workspace.root / name)
    except FeatcacheError:  # damaged, or of a later version: no contender
        return False
    return document.get("task") == "classification" and document.get("fingerprint") == collection.fingerprint


def compare(workspace: Workspace, desk: Desk, collection: Collection, first: str, second: str) -> Comparison:
    """Return how two contenders answer the labelled val images of `collection` that both have features of.

    Raises
    ------
    RefusedError
        404 for a contender that is not there, 409 where there is no head, or no labelled val image.
    InputError
        For a head of another cache.
    """
    with collection.lock:
        labels, generation = collection.labels.copy(), collection.generation
    rows = np.flatnonzero((labels >= 0) & (collection.splits == VAL))
    answers = [_answers(workspace, desk, collection, labels, rows, name) for name in (first, second)]
    if collection.generation != generation:
        raise RefusedError(409, "images must stay while heads are compared, a build has changed them: compare again")
    shared = answers[0][1] & answers[1][1]
    rows = rows[shared]
    if not len(rows):
        raise RefusedError(409, "both must have features of a labelled val image, there is none: label val images")
    right = [given[shared] == labels[rows] for given, _ in answers]
    only = rows[right[0] & ~right[1]].tolist(), rows[right[1] & ~right[0]].tolist()
    correct = int(right[0].sum()), int(right[1].sum())
    return Comparison(len(rows), correct, only, sign_test(len(only[0]), len(only[1])))


Answers = tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]  # the class of each row, and whether it could be asked


def _answers(
    workspace: Workspace, desk: Desk, collection: Collection, labels: npt.NDArray[np.int32],
    rows: npt.NDArray[np.int64], name: str,
) -> Answers:  # fmt: skip
    kind, _, value = name.partition(":")
    if name == "now":
        fitted, _ = desk.fitted(collection.id)
        if fitted is None or len(fitted.probabilities) != len(labels):  # a build has just changed the images
            raise RefusedError(409, "there must be a head to compare: label train images of two classes first")
        return fitted.predicted[rows], np.ones(len(rows), bool)
    if kind == "head":
        return _of_head(load_head(workspace.existing("head", value)), collection, rows)
    if kind == "dataset" and value.isascii() and value.isdigit() and len(value) < 10:
        return _of_backbone(desk.collection(int(value)), collection, labels, rows)
    raise RefusedError(404, f"a contender must be now, head:NAME or dataset:NUMBER, got {name[:100]!r}")


def _of_head(head: Head, collection: Collection, rows: npt.NDArray[np.int64]) -> Answers:
    if head.task != "classification" or head.fingerprint != collection.fingerprint:
        raise InputError("the head must have been trained on this cache to tell classes apart, it was not")
    outputs = list(dict.fromkeys(column.partition("@")[0] for column in head.columns))
    with open_cache(collection.path) as cache, cache.reader() as reader:
        places = np.asarray(reader.find(collection.digests[rows]))
        features = cache.gather(places[places >= 0], output=outputs)
    numbers = np.array([_number(collection, one) for one in head.classes], dtype=np.int32)
    given = np.full(len(rows), UNKNOWN, dtype=np.int32)
    given[places >= 0] = numbers[head.predict(features)]
    return given, places >= 0


def _number(collection: Collection, name: str) -> int:
    return collection.classes.index(name) if name in collection.classes else UNKNOWN


def _of_backbone(
    other: Collection, collection: Collection, labels: npt.NDArray[np.int32], rows: npt.NDArray[np.int64]
) -> Answers:
    """Train a head of `labels` on the other's features of the images that both have, in the splits of `collection`."""
    with other.lock:
        theirs = {digest.tobytes(): place for place, digest in enumerate(other.digests)}
        features = other.features
    place = np.array([theirs.get(digest.tobytes(), -1) for digest in collection.digests], dtype=np.int64)
    both = np.flatnonzero(place >= 0)
    if not len(both):
        raise InputError("the other data set must have images of this one, it has none: build it of the same images")
    features, known = features[place[both]], labels[both]
    splits = {"train": collection.trainable[both], "val": collection.splits[both] == VAL}
    choice = choose_penalty(features, known, collection.groups[both], **splits)
    fitted = fit(features, known, **splits, l2=L2 if choice is None else choice.l2)
    if fitted is None:
        raise RefusedError(409, "there must be labels of two classes among the train images that both have")
    given = np.full(len(collection), UNKNOWN, dtype=np.int32)
    given[both] = fitted.predicted
    return given[rows], place[rows] >= 0
