"""``/api/datasets``: samples in any order, labels, suggestions, and what the head of the moment is worth."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Path, Query, Response

from featcache.serve.refusals import RefusedError
from featcache.serve.studio.collection import SPLITS, Collection
from featcache.serve.studio.comparison import compare, contenders
from featcache.serve.studio.documents import (
    PROBLEMS,
    AcceptRequest,
    Changed,
    ClassRequest,
    Compared,
    Confusion,
    Contender,
    Dataset,
    DatasetEntry,
    Doubt,
    Duplicates,
    HeadState,
    LabelRequest,
    Labels,
    Order,
    PlaneMap,
    Point,
    RevisionRequest,
    Sample,
    SampleRequest,
    Standing,
)
from featcache.serve.studio.fitting import Fitted, interval
from featcache.serve.studio.labels import History
from featcache.serve.studio.likeness import duplicates
from featcache.serve.studio.ordering import View, ordered
from featcache.serve.studio.state import Studio
from featcache.serve.studio.thumbnails import SIDES

_TOP = 5
_LOOK_SECONDS = 0.02
Id = Annotated[int, Path(ge=0, lt=2**31, description="The data set's number.")]
Side = Annotated[str, Query(max_length=300, description="The id of a contender.", examples=["head:heads/first"])]
Short = Annotated[str | None, Query(max_length=200)]


def datasets_router(studio: Studio) -> APIRouter:
    """Return the addresses of data sets."""
    desk, events = studio.desk, studio.events
    router = APIRouter(prefix="/api/datasets", tags=["data sets"], responses=PROBLEMS)

    def told(number: int, history: History, changed: int) -> dict[str, Any]:
        answer = {"changed": changed, "revision": history.revision, "undo": history.undo, "redo": history.redo}
        if changed:
            events.publish("labels", dataset=number, **answer)
            desk.touch(number)
        return answer

    @router.get("", summary="Data sets of all caches in the workspace")
    def datasets() -> list[DatasetEntry]:
        return [DatasetEntry(**entry) for entry in desk.datasets()]

    @router.get("/{number}", summary="A data set as it stands")
    def dataset(number: Id) -> Dataset:
        collection = desk.collection(number)
        history = collection.history()
        return Dataset(
            id=number, cache=collection.name, name=collection.dataset, input=collection.kind.name,
            shown=collection.kind.shown, images=len(collection), backbone=collection.backbone,
            revision=history.revision, generation=collection.generation, undo=history.undo, redo=history.redo,
            classes=list(collection.classes), counts=collection.counts(),
            failures=[{"path": path, "reason": reason} for path, reason in collection.failures],  # type: ignore[misc]
        )  # fmt: skip

    # --- samples ---

    @router.get("/{number}/samples", summary="The numbers of samples, filtered and in order", response_model=Order)
    def samples(
        number: Id, order: Short = "path", label: Short = None, predicted: Short = None, split: Short = None,
        search: Short = None, similar_to: Annotated[int | None, Query(ge=0, lt=2**31)] = None,
    ) -> Response:  # fmt: skip
        collection = desk.collection(number)
        fitted, _ = desk.fitted(number)
        view = View(order or "path", similar_to, label, predicted, split, search)
        found = ordered(collection, fitted, view)
        answer = Order(revision=collection.history().revision, generation=collection.generation, samples=found.tolist())
        return Response(answer.model_dump_json(), media_type="application/json")

    @router.post("/{number}/samples", summary="Samples as they stand")
    def describe(number: Id, asked: SampleRequest) -> list[Sample]:
        collection = desk.collection(number)
        fitted, _ = desk.fitted(number)
        return [_sample(collection, fitted, sample) for sample in asked.samples]

    @router.get("/{number}/samples/{sample}/picture", response_class=Response,
                summary="A sample as a person sees it: a small JPEG, or the text",
                responses={200: {"content": {"image/jpeg": {}, "text/plain": {}}}})  # fmt: skip
    async def picture(
        number: Id, sample: Annotated[int, Path(ge=0, lt=2**31)],
        side: Annotated[int, Query(description=f"One of {SIDES}.")] = SIDES[0],
    ) -> Response:  # fmt: skip
        if side not in SIDES:
            raise RefusedError(400, f"side must be one of {SIDES}, got {side}")
        collection = await studio.in_thread(desk.collection, number)
        digest = collection.digest(collection.check_sample(sample))
        media_type, data = await studio.thumbnails.get(
            collection.kind, digest, lambda: collection.source(sample), side=side
        )
        return Response(data, media_type=media_type, headers={"cache-control": "private, max-age=86400"})

    # --- labels ---

    @router.get("/{number}/labels", summary="The class of every sample")
    def labels(number: Id) -> Labels:
        collection = desk.collection(number)
        with collection.lock:
            return Labels(revision=collection.history().revision, labels=collection.labels.tolist())

    @router.post("/{number}/labels", summary="Label samples")
    def label(number: Id, asked: LabelRequest) -> Changed:
        collection = desk.collection(number)
        labels = [asked.label] * len(asked.samples)
        return Changed(**told(number, *collection.set_labels(asked.samples, labels, revision=asked.revision)))

    @router.post("/{number}/undo", summary="Take the last change back")
    def undo(number: Id, asked: RevisionRequest) -> Changed:
        return Changed(**told(number, *desk.collection(number).undo(revision=asked.revision)))

    @router.post("/{number}/redo", summary="Do again what was taken back last")
    def redo(number: Id, asked: RevisionRequest) -> Changed:
        return Changed(**told(number, *desk.collection(number).redo(revision=asked.revision)))

    @router.post("/{number}/classes", summary="Add a class")
    def add_class(number: Id, asked: ClassRequest) -> Dataset:
        desk.collection(number).add_class(asked.name)
        events.publish("classes", dataset=number)
        return dataset(number)

    @router.get("/{number}/labels.csv", summary="Labels as a table: path,label,split; of texts text,label,split",
                response_class=Response, responses={200: {"content": {"text/csv": {}}}})  # fmt: skip
    def table(number: Id) -> Response:
        return Response(
            desk.collection(number).table().encode("utf-8", "backslashreplace"), media_type="text/csv; charset=utf-8",
            headers={"content-disposition": 'attachment; filename="labels.csv"'},
        )  # fmt: skip

    @router.post("/{number}/suggestions/accept", summary="Label unlabelled train images as the head is sure they are")
    def accept(number: Id, asked: AcceptRequest) -> Changed:
        collection = desk.collection(number)
        fitted, revision = desk.fitted(number)
        if fitted is None or revision < 0:
            raise RefusedError(409, "there must be a head to accept suggestions of: label images of two classes first")
        with collection.lock:
            unlabelled = (collection.labels < 0) & collection.trainable
            sure = fitted.probabilities.max(axis=1) >= asked.threshold
            rows = np.flatnonzero(unlabelled & sure)
            labels = [collection.class_name(int(label)) for label in fitted.predicted[rows]]
            return Changed(**told(number, *collection.set_labels(rows.tolist(), labels, revision=asked.revision)))

    # --- the head of the moment ---

    @router.get("/{number}/head", summary="The head of the moment, and its held-out accuracy")
    async def head(
        number: Id,
        revision: Annotated[int, Query(ge=0, lt=2**31, description="Wait for one of these labels, or the newest.")] = 0,
        seconds: Annotated[float, Query(ge=0, le=30, description="How long to wait.")] = 0.0,
    ) -> HeadState:
        newest = await studio.in_thread(lambda: desk.collection(number).history().revision)
        wanted = min(revision, newest)
        end = time.monotonic() + seconds
        # no thread is held meanwhile: forty who wait would stop everybody else
        while desk.head_revision(number) < wanted and time.monotonic() < end and not events.closed:
            await asyncio.sleep(_LOOK_SECONDS)
        return HeadState(**await studio.in_thread(desk.describe_head, number))

    @router.get("/{number}/accuracy", summary="Held-out accuracy over the number of labels")
    def accuracy(number: Id) -> list[Point]:
        points = []
        for revision, labels, correct, total in desk.collection(number).store.accuracies():
            low, high = interval(correct, total)
            points.append(Point(revision=revision, labels=labels, correct=correct, held_out=total, low=low, high=high))
        return points

    @router.get("/{number}/confusion", summary="Labels against what the head says")
    def confusion(number: Id, split: Annotated[str, Query(max_length=10)] = "val") -> Confusion:
        if split not in SPLITS:
            raise RefusedError(400, f"split must be one of {', '.join(SPLITS)}, got {split[:40]!r}")
        collection = desk.collection(number)
        fitted, _ = desk.fitted(number)
        size = len(collection.classes)
        counts = np.zeros((size, size), dtype=np.int64)
        if fitted is not None:
            rows = np.flatnonzero((collection.labels >= 0) & (collection.splits == SPLITS.index(split)))
            np.add.at(counts, (collection.labels[rows], fitted.predicted[rows]), 1)
        return Confusion(split=split, classes=list(collection.classes), counts=counts.tolist())

    @router.get("/{number}/contenders", summary="Heads and backbones that can be compared on this data set")
    def list_contenders(number: Id) -> list[Contender]:
        found = contenders(studio.workspace, desk, desk.collection(number))
        return [Contender(kind=one.kind, id=one.id, name=one.name) for one in found]

    @router.get("/{number}/comparison", summary="Two of the contenders on the labelled val images")
    def comparison(number: Id, first: Side = "now", second: Side = "now") -> Compared:
        found = compare(studio.workspace, desk, desk.collection(number), first, second)
        ends = [interval(correct, found.held_out) for correct in found.correct]
        sides = [
            Standing(correct=correct, held_out=found.held_out, low=low, high=high)
            for correct, (low, high) in zip(found.correct, ends, strict=True)
        ]
        return Compared(first=sides[0], second=sides[1], only_first=found.only[0], only_second=found.only[1], p=found.p)

    @router.get("/{number}/doubts", summary="Labels that are probably wrong, the surest first")
    def doubts(number: Id) -> list[Doubt]:
        collection = desk.collection(number)
        rows, probabilities = desk.doubts(number)
        fitted, _ = desk.fitted(number)
        return [] if fitted is None else [_doubt(collection, fitted, probabilities, int(row)) for row in rows[:1000]]

    @router.get("/{number}/duplicates", summary="Groups of images that are equal or nearly so")
    def equal(
        number: Id, likeness: Annotated[float, Query(ge=0.8, le=1, description="Least cosine of features.")] = 0.995
    ) -> Duplicates:
        collection = desk.collection(number)
        return Duplicates(groups=duplicates(collection.features, collection.digests, likeness=likeness))

    @router.get("/{number}/map", summary="Where the samples lie in a plane, by their features")
    def plane(
        number: Id, kind: Annotated[Literal["components", "neighbours"], Query(description="Which map.")] = "components"
    ) -> PlaneMap:
        collection = desk.collection(number)
        placed = studio.maps.components(collection) if kind == "components" else studio.maps.neighbours(collection)
        rounded = np.round(placed.points.astype(np.float64), 4)
        points = [None if math.isnan(point[0]) else tuple(point) for point in rounded.tolist()]
        return PlaneMap(
            kind=kind, generation=collection.generation, points=points, made=placed.made, missing=placed.missing,
            gone=placed.gone,
        )  # fmt: skip

    return router


def _sample(collection: Collection, fitted: Fitted | None, sample: int) -> Sample:
    collection.check_sample(sample)
    text, failure = collection.text(sample)
    told: dict[str, Any] = {"text": text, "failure": failure}
    if fitted is not None and sample < len(fitted.probabilities):
        row = fitted.probabilities[sample]
        best = np.argsort(-row)[:_TOP]
        names = [collection.classes[fitted.classes[column]] for column in best]
        told |= {
            "predicted": names[0],
            "probability": round(float(row[best[0]]), 4),
            "top": [(name, round(float(row[column]), 4)) for name, column in zip(names, best, strict=True)],
        }
    return Sample(
        id=sample, path=collection.paths[sample], digest=collection.digest(sample),
        split=SPLITS[collection.splits[sample]], label=collection.class_name(int(collection.labels[sample])), **told,
    )  # fmt: skip


def _doubt(collection: Collection, fitted: Fitted, probabilities: Any, row: int) -> Doubt:
    label = int(collection.labels[row])
    own = np.flatnonzero(fitted.classes == label)
    best = int(probabilities[row].argmax())
    return Doubt(
        id=row, label=collection.class_name(label) or "", likelier=collection.classes[fitted.classes[best]],
        probability=round(float(probabilities[row, best]), 4),
        own_probability=round(float(probabilities[row, own[0]]), 4) if len(own) else 0.0,
    )  # fmt: skip
