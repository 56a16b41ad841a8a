"""`Desk`: the data sets that are open, and the thread that trains their heads again after each change."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.cache import open_cache
from featcache.errors import FeatcacheError
from featcache.extract.inputs.registry import find_input
from featcache.serve.logs import log
from featcache.serve.refusals import RefusedError
from featcache.serve.studio.collection import Collection
from featcache.serve.studio.database import Database
from featcache.serve.studio.events import Events
from featcache.serve.studio.fitting import L2, MOST_PASSES, Fitted, fit, interval, likely_errors, out_of_fold
from featcache.serve.studio.labelled_rows import LabelledRows
from featcache.serve.studio.penalty import Choice, choose_penalty, is_due
from featcache.serve.studio.workspace import Workspace

_PAUSE_SECONDS = 1.0  # without a label, after which a head that was cut short is gone on with


@dataclass(slots=True)
class _Open:
    """A data set on the desk. `fitted` is of the labels of `revision`, which `milliseconds` of work made of them.

    `choice`: the penalty as it was chosen last, None before the first time. `passes`: what the next head may take.
    """

    collection: Collection
    choice: Choice | None = None
    fitted: Fitted | None = None
    rows: LabelledRows = field(default_factory=LabelledRows)
    revision: int = -1
    passes: int = 0
    milliseconds: float = 0.0
    doubts: tuple[int, npt.NDArray[np.int64], npt.NDArray[np.float32]] | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)


def quick_passes(images: int) -> int:
    """Return how many passes over so many images answer a label soon; few images are settled by them.

    >>> quick_passes(1_000), quick_passes(10_000), quick_passes(100_000)
    (40, 4, 2)
    """
    return max(2, 40_000 // max(images, 1))


class Desk:
    """What is open of `workspace`. Thread-safe. `close` ends its thread."""

    def __init__(self, workspace: Workspace, database: Database, events: Events) -> None:
        self._workspace, self._database, self._events = workspace, database, events
        self._open: dict[int, _Open] = {}
        self._lock = threading.RLock()
        self._changed = threading.Condition()
        self._waiting: set[int] = set()
        self._fitting = False
        self._unsettled: set[int] = set()
        self._undecided: set[int] = set()
        self._closing = False
        self._threads = [
            threading.Thread(target=work, name=f"featcache-studio-{name}", daemon=True)
            for name, work in (("fit", self._work), ("penalty", self._choose))
        ]
        for thread in self._threads:
            thread.start()

    def datasets(self) -> list[dict[str, Any]]:
        """Return what `describe` says in short of every data set in the workspace."""
        found = []
        for artefact in self._workspace.artefacts():
            if artefact.kind != "cache":
                continue
            try:
                with open_cache(self._workspace.root / artefact.name) as cache:
                    for name in cache.datasets:
                        number, made = self._number(artefact.name, name)
                        if not made:
                            kind = find_input(cache.recipe.input)
                            found.append(
                                {"id": number, "cache": artefact.name, "name": name, "input": kind.name,
                                 "shown": kind.shown, "images": len(cache.samples(name)),
                                 "backbone": cache.recipe.model}
                            )  # fmt: skip
            except (FeatcacheError, OSError) as error:  # damaged, or being made: the others are listed
                log("cache left out", level=logging.WARNING, cache=artefact.name, reason=str(error))
        return found

    def _number(self, cache: str, name: str) -> tuple[int, bool]:
        with self._database.transaction() as write:
            write("INSERT OR IGNORE INTO datasets(cache, name) VALUES(?, ?)", (cache, name))
            ((number, made),) = write("SELECT id, made FROM datasets WHERE cache=? AND name=?", (cache, name))
            return int(number), bool(made)

    def collection(self, number: int) -> Collection:
        """Return the data set of that number, read into memory at its first use, and again after a build.

        Raises `RefusedError` (404) where there is none; else as `Collection`.
        """
        return self._opened(number).collection

    def _opened(self, number: int) -> _Open:
        with self._lock:
            found = self._open.get(number)
            if found is None:
                rows = self._database.read("SELECT cache, name FROM datasets WHERE id=?", (number,))
                if not rows:
                    raise RefusedError(404, f"a data set's number must be one of /api/datasets, got {number}")
                ((cache, name),) = rows
                path = self._workspace.existing("cache", cache)
                found = self._open[number] = _Open(Collection(self._database, path, cache, name))
                self.touch(number)
            elif found.collection.reload_if_built():
                found.fitted, found.revision, found.choice, found.doubts = None, -1, None, None
                self.touch(number)
            return found

    # --- the head of the moment ---

    def touch(self, number: int) -> None:
        """Let the head of a data set be trained again, soon."""
        with self._changed:
            self._waiting.add(number)
            self._changed.notify_all()

    def fitted(self, number: int) -> tuple[Fitted | None, int]:
        """Return the head of a data set, None while there is none, and the revision of the labels it was trained on."""
        found = self._opened(number)
        return found.fitted, found.revision

    def head_revision(self, number: int) -> int:
        """Return the revision of the labels that the head is of, -1 before the first; it never waits."""
        found = self._open.get(number)
        return -1 if found is None else found.revision

    def describe_head(self, number: int) -> dict[str, Any]:
        """Return what is known of the head: what it was trained on, and what it is worth on val, with its interval."""
        found = self._opened(number)
        fitted = found.fitted
        low, high = interval(fitted.correct, fitted.total) if fitted else (0.0, 1.0)
        return {
            "revision": found.revision,
            "labels": fitted.labels if fitted else 0,
            "classes": [found.collection.classes[c] for c in fitted.classes] if fitted else [],
            "correct": fitted.correct if fitted else 0,
            "held_out": fitted.total if fitted else 0,
            "accuracy": fitted.correct / fitted.total if fitted and fitted.total else None,
            "low": low,
            "high": high,
            "l2": fitted.solution.l2 if fitted else None,
            "l2_by": found.choice.by if fitted and found.choice else None,
            "settled": fitted.settled if fitted else True,
            "milliseconds": round(found.milliseconds, 1),
        }

    def doubts(self, number: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return the samples whose label is probably wrong, the surest first, and the out-of-fold probabilities."""
        found = self._opened(number)
        with found.lock:
            fitted, revision = found.fitted, found.revision
            if fitted is None:
                return np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
            if found.doubts is None or found.doubts[0] != revision:
                collection = found.collection
                labels = collection.labels.copy()
                probabilities = out_of_fold(
                    collection.features, labels, collection.groups, train=collection.trainable, fitted=fitted
                )
                found.doubts = revision, likely_errors(probabilities, labels, fitted.classes), probabilities
            return found.doubts[1], found.doubts[2]

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    if not self._changed.wait(_PAUSE_SECONDS if self._unsettled else None):
                        self._waiting.add(self._unsettled.pop())
                if self._closing:
                    return
                number, self._fitting = self._waiting.pop(), True
                self._unsettled.discard(number)
            try:
                self._fit(number)
            except (FeatcacheError, OSError) as error:
                log("head not trained", level=logging.WARNING, dataset=number, reason=str(error))
            except Exception as error:  # noqa: BLE001 - a bug: it is told, and the next change is tried again
                log("bug", level=logging.ERROR, error=error, doing="training a head after a change of labels")
            with self._changed:
                self._fitting = False
                self._changed.notify_all()

    def _fit(self, number: int) -> None:
        found = self._opened(number)
        collection = found.collection
        with collection.lock:
            labels, history = collection.labels.copy(), collection.history()
        # a label is answered soon; in a pause its head is gone on with, for twice as long each time
        found.passes = quick_passes(len(labels)) if history.revision != found.revision else 2 * found.passes
        began = time.perf_counter()
        fitted = fit(
            collection.features, labels, train=collection.trainable, val=collection.splits == 1, before=found.fitted,
            l2=L2 if found.choice is None else found.choice.l2, kept=found.rows, passes=found.passes,
        )  # fmt: skip
        found.fitted, found.revision = fitted, history.revision
        found.milliseconds = (time.perf_counter() - began) * 1e3
        if fitted is not None:
            collection.store.note_accuracy(
                revision=history.revision, labels=fitted.labels, correct=fitted.correct, total=fitted.total
            )
        self._events.publish("head", dataset=number, **self.describe_head(number))
        if fitted is not None and not fitted.settled and found.passes < MOST_PASSES:
            with self._changed:
                self._unsettled.add(number)
        if fitted is not None and is_due(fitted.labels, found.choice):
            with self._changed:
                self._undecided.add(number)

    # --- its penalty, chosen beside the work ---

    def _choose(self) -> None:
        if sys.platform == "linux":  # there a thread has a priority of its own: a label's head goes before
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        while True:
            with self._changed:
                while not self._undecided and not self._closing:
                    self._changed.wait()
                if self._closing:
                    return
                number = self._undecided.pop()
            try:
                self._choose_for(self._opened(number), number)
            except _ClosingError:
                return
            except (FeatcacheError, OSError) as error:
                log("penalty not chosen", level=logging.WARNING, dataset=number, reason=str(error))
            except Exception as error:  # noqa: BLE001 - a bug: it is told, and the penalty stays
                log("bug", level=logging.ERROR, error=error, doing="choosing a penalty")

    def _choose_for(self, found: _Open, number: int) -> None:
        collection, before, fitted = found.collection, found.choice, found.fitted
        if fitted is None or not is_due(fitted.labels, before):
            return
        with collection.lock:
            labels, generation = collection.labels.copy(), collection.generation
        choice = choose_penalty(
            collection.features, labels, collection.groups, train=collection.trainable, val=collection.splits == 1,
            before_look=self._wait_for_fits,
        )  # fmt: skip
        if choice is not None and found.choice is before and collection.generation == generation:
            found.choice = choice
            self.touch(number)

    def _wait_for_fits(self) -> None:
        """Return once no head is being trained nor waits to be. Raises `_ClosingError` where the desk closes."""
        with self._changed:
            while (self._fitting or self._waiting) and not self._closing:
                self._changed.wait()
            if self._closing:
                raise _ClosingError

    def close(self) -> None:
        """End the threads, once what they do is done."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()


class _ClosingError(Exception):
    """The desk closes: nothing is chosen any more."""
