"""`ServedModel`: one bundle, verified and loaded, and the way an input of a request goes through it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.errors import CorruptError, InputError
from featcache.runtime.bundle import MANIFEST_FILE
from featcache.serve.batching import Batcher, Logits, Prepared
from featcache.serve.forms import RequestForm
from featcache.serve.known import KnownInputs
from featcache.serve.lanes import Lanes, open_lanes
from featcache.serve.metrics import ModelMetrics
from featcache.serve.places import Place
from featcache.serve.settings import ServeSettings
from featcache.verification import verify


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What the model says of one input: its `logits` (k,), and whether they come from stored features."""

    logits: Logits
    cached: bool = False


class ServedModel:
    """A bundle that answers. It is used inside `in_use`, so that whoever retires it knows when nobody does any more."""

    def __init__(
        self, place: Place, lanes: Lanes, form: RequestForm, known: KnownInputs | None, settings: ServeSettings,
        decoders: ThreadPoolExecutor, metrics: ModelMetrics,
    ) -> None:  # fmt: skip
        self.place, self.lanes, self.form, self.known, self.metrics = place, lanes, form, known, metrics
        self.classifier = lanes.classifier
        self._decoders = decoders
        self._users = 0
        self._retired = False
        self._batcher = Batcher(
            lanes.classifier.run,
            max_batch=lanes.batch,
            max_delay=settings.max_delay_ms / 1e3,
            workers=lanes.workers,
            lone=None if lanes.lone is None else lanes.lone.run,
            stack=lanes.classifier.input.stack,
            together=lanes.classifier.input.together,
            ran=metrics.batch_ran,
        )

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the model loaded inside the block. Called by the thread of the event loop alone, as is `retire`."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            self._close_unused()

    def retire(self) -> None:
        """Let the model be closed as soon as no request uses it."""
        self._retired = True
        self._close_unused()

    def _close_unused(self) -> None:
        if self._retired and not self._users:
            self._decoders.submit(self._close)  # it waits for the last batch, which the event loop must not

    def _close(self) -> None:
        self._batcher.close()
        self.lanes.close()

    def classify(self, data: bytes) -> Future[Answer]:
        """Return the answer to come for the bytes of an image or a text; it raises `SampleError` for what is none."""
        answer: Future[Answer] = _started()
        self._batcher.announce()
        self._decoders.submit(self._prepare, data, answer)
        return answer

    def _prepare(self, data: bytes, answer: Future[Answer]) -> None:
        try:
            stored = None if self.known is None else self.known.logits(data)
            prepared = None if stored is not None else self.form.prepare(data)
        except BaseException as error:  # noqa: BLE001 - it is raised where the answer is awaited
            self._batcher.withdraw()
            answer.set_exception(error)
            return
        if prepared is None:
            assert stored is not None
            self._batcher.withdraw()
            answer.set_result(Answer(stored, cached=True))
        else:
            self._batcher.put(prepared, _passed_to(answer))

    def run(self, inputs: Sequence[bytes | Prepared]) -> list[Future[Answer]]:
        """Return the answers to come for `inputs`: bytes, as `classify`, or what is prepared already."""
        answers: list[Future[Answer]] = []
        for one in inputs:
            if isinstance(one, bytes):
                answers.append(self.classify(one))
                continue
            answer: Future[Answer] = _started()
            self._batcher.announce()
            self._batcher.put(one, _passed_to(answer))
            answers.append(answer)
        return answers


def _started() -> Future[Any]:
    """Return a future that cannot be cancelled: whoever awaited it may have gone, its input runs all the same."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


def _passed_to(answer: Future[Answer]) -> Future[Logits]:
    """Return a future of logits that settles `answer`."""
    logits: Future[Logits] = _started()

    def settle(done: Future[Logits]) -> None:
        error = done.exception()
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(Answer(done.result()))

    logits.add_done_callback(settle)
    return logits


def load_lanes(place: Place, settings: ServeSettings) -> Lanes:
    """Return the bundle at `place`, every byte of it verified as `featcache verify` does, loaded, and run.

    Raises
    ------
    CorruptError
        Where a byte is not as it was exported, the bundle is written to meanwhile, or its model does not answer as it
        says.
    InputError
        Where it is something else than a bundle, or has no such format.
    MissingError
        Where there is nothing.
    """
    found = verify(place.path)
    if found.kind != "bundle":
        raise InputError(f"BUNDLE must be a bundle, {os.fspath(place.path)!r} is a {found.kind}: export it first")
    if found.problems:
        more = f" (and {len(found.problems) - 1} more)" if len(found.problems) > 1 else ""
        raise CorruptError(
            f"{os.fspath(place.path)!r} must be a bundle as it was exported, got: {found.problems[0]}{more}; "
            "export the bundle again"
        )
    manifest = _manifest_of(place.path)
    lanes = open_lanes(place.path, settings)
    if _manifest_of(place.path) != manifest:
        lanes.close()
        raise CorruptError(f"{os.fspath(place.path)!r} must stay as it is while it is loaded, it was written to")
    return lanes


def _manifest_of(path: Path) -> bytes:
    return (path / MANIFEST_FILE).read_bytes()
