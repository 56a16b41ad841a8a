"""`Lanes`: how a model is run here, found by trying as it is loaded.

A network of many layers gains nothing from batches on a processor: each image more in a batch pushes the others out of
its caches, and threads that share one image wait for each other at every layer. Then each thread takes an image, or a
text, of its own. Where larger batches are faster (small networks, formats that compute with all threads), they are
taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache.runtime.classifier import Classifier, open_classifier
from featcache.serve.settings import ServeSettings

_TRIES = 3
_WORTH_A_BATCH = 0.95  # of an input's seconds in a batch half as large
_WORTH_A_COPY = 0.8  # of the seconds of a lone input


@dataclass(frozen=True, slots=True)
class Lanes:
    """What runs batches: `classifier`, by `workers` threads at once, `batch` images each at most.

    `lone`: the same file loaded to compute one input with all threads, where that answers sooner; None: it does not.
    """

    classifier: Classifier
    workers: int
    batch: int
    lone: Classifier | None

    def close(self) -> None:
        """Release what the runtimes hold."""
        self.classifier.runner.close()
        if self.lone is not None:
            self.lone.runner.close()


def open_lanes(bundle: Path, settings: ServeSettings) -> Lanes:
    """Return the bundle loaded and run; raises as `open_classifier`, and what the first run raises."""
    threads = settings.thread_count
    classifier = open_classifier(bundle, format=settings.format, threads=1)
    lone = None
    try:
        workers = threads if classifier.runner.concurrent else 1
        if workers < threads:
            classifier.runner.close()
            classifier = open_classifier(bundle, format=settings.format, threads=threads)
        batch = fastest_batch(classifier, settings.max_batch)
        if workers > 1:
            lone = open_classifier(bundle, format=settings.format, threads=threads)
            if _seconds(lone, 1, time.perf_counter) > _WORTH_A_COPY * _seconds(classifier, 1, time.perf_counter):
                lone.runner.close()
                lone = None
    except BaseException:
        for opened in (classifier, lone):
            if opened is not None:
                opened.runner.close()
        raise
    return Lanes(classifier, workers, batch, lone)


def fastest_batch(classifier: Classifier, most: int) -> int:
    """Return the number of inputs, 1, 2, 4, … up to `most`, that a batch computes fastest, input for input."""
    # where the calling thread computes alone, its own time: whatever else the machine does is no part of that
    clock = time.thread_time if classifier.runner.concurrent else time.perf_counter
    best, least = 1, _seconds(classifier, 1, clock)
    while 2 * best <= most:
        seconds = _seconds(classifier, 2 * best, clock) / (2 * best)
        if seconds > _WORTH_A_BATCH * least:
            break
        best, least = 2 * best, seconds
    return best


def _seconds(classifier: Classifier, count: int, clock: Callable[[], float]) -> float:
    """Return the least seconds of a batch, after one that is not counted."""
    batch = np.repeat(classifier.input.example(), count, axis=0)
    classifier.run(batch)
    found = []
    for _ in range(_TRIES):
        before = clock()
        classifier.run(batch)
        found.append(clock() - before)
    return min(found)
