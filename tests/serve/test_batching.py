"""Batches: what waits is run together, a lone image never waits, and an error reaches everybody it concerns."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import pytest

from featcache.errors import CorruptError
from featcache.serve.batching import Batcher

IMAGE = np.full((2, 2, 3), 7, dtype=np.uint8)


class Model:
    """Counts its batches; answers with each image's mean; waits at a gate that a test may close."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.begun = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def run(self, images: np.ndarray) -> np.ndarray:
        self.begun.set()
        assert self.gate.wait(10)
        self.sizes.append(len(images))
        return images.mean(axis=(1, 2, 3), dtype=np.float32)[:, None]


def put(batcher: Batcher, image: np.ndarray = IMAGE) -> Future:
    answer: Future = Future()
    batcher.announce()
    batcher.put(image, answer)
    return answer


def test_a_lone_image_does_not_wait_for_others() -> None:
    model = Model()
    batcher = Batcher(model.run, max_batch=8, max_delay=30)
    started = time.monotonic()
    assert put(batcher).result(5).tolist() == [7.0]
    assert time.monotonic() - started < 5
    batcher.close()


def test_inputs_that_do_not_go_together_are_batches_of_their_own() -> None:
    """Those that are left behind are the next batch, and are answered without anything further coming."""
    model = Model()
    model.gate.clear()

    def alike(waiting: Sequence[np.ndarray]) -> int:
        return next((i for i, one in enumerate(waiting) if one.shape != waiting[0].shape), len(waiting))

    batcher = Batcher(model.run, max_batch=8, max_delay=30, together=alike)
    answers = [put(batcher, np.full((side, side, 3), side, dtype=np.uint8)) for side in (1, 2, 2, 3, 3, 3)]
    model.gate.set()
    assert [answer.result(5).tolist() for answer in answers] == [[float(side)] for side in (1, 2, 2, 3, 3, 3)]
    assert model.sizes == [1, 2, 3]
    batcher.close()


def test_a_batch_waits_for_images_being_decoded() -> None:
    model = Model()
    batcher = Batcher(model.run, max_batch=8, max_delay=30)
    batcher.announce()  # another one is on its way
    first = put(batcher)
    time.sleep(0.05)
    assert not first.done()
    second: Future = Future()
    batcher.put(IMAGE, second)
    assert [first.result(5).tolist(), second.result(5).tolist()] == [[7.0], [7.0]]
    assert model.sizes == [2]
    batcher.close()


def test_a_batch_waits_no_longer_than_the_delay_and_not_for_what_was_withdrawn() -> None:
    model = Model()
    batcher = Batcher(model.run, max_batch=8, max_delay=0.05)
    batcher.announce()
    assert put(batcher).result(5).tolist() == [7.0]  # the announced one never came
    batcher.withdraw()
    batcher.close()
    patient = Batcher(model.run, max_batch=8, max_delay=30)
    patient.announce()
    answer = put(patient)
    patient.withdraw()
    assert answer.result(5).tolist() == [7.0]
    patient.close()


def test_images_that_come_while_one_runs_are_the_next_batches_of_at_most_the_size() -> None:
    model = Model()
    model.gate.clear()
    batcher = Batcher(model.run, max_batch=4, max_delay=0)
    answers = [put(batcher)]
    assert model.begun.wait(5)
    answers += [put(batcher, np.full_like(IMAGE, i)) for i in range(9)]
    model.gate.set()
    assert [answer.result(5).tolist() for answer in answers] == [[7.0], *([float(i)] for i in range(9))]
    assert model.sizes == [1, 4, 4, 1]
    batcher.close()


def test_an_error_is_that_of_every_image_of_the_batch_and_of_no_other() -> None:
    def run(images: np.ndarray) -> np.ndarray:
        if images.max() == 9:
            raise ValueError("nine")
        return np.full((len(images), 1), np.nan if images.max() == 8 else 1, dtype=np.float32)

    batcher = Batcher(run, max_batch=1, max_delay=0)
    with pytest.raises(ValueError, match="nine"):
        put(batcher, np.full_like(IMAGE, 9)).result(5)
    with pytest.raises(CorruptError, match="finite numbers"):
        put(batcher, np.full_like(IMAGE, 8)).result(5)
    assert put(batcher).result(5).tolist() == [1.0]
    batcher.close()


def test_close_runs_what_waits() -> None:
    model = Model()
    model.gate.clear()
    batcher = Batcher(model.run, max_batch=1, max_delay=0)
    answers = [put(batcher) for _ in range(3)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    model.gate.set()
    closing.join(10)
    assert not closing.is_alive()
    assert all(answer.done() for answer in answers)


def test_threads_that_share_a_queue_go_on() -> None:
    model = Model()
    for most in (1, 4):
        batcher = Batcher(model.run, max_batch=most, max_delay=0.01, workers=2)
        for _ in range(5):  # a thread that finds nothing left waits for more
            answers = [put(batcher) for _ in range(most + 1)]
            assert [answer.result(5).tolist() for answer in answers] == [[7.0]] * len(answers)
        batcher.close()


def test_as_many_batches_are_under_way_as_there_are_threads() -> None:
    together = threading.Barrier(2)

    def run(images: np.ndarray) -> np.ndarray:
        together.wait(10)  # passes only where two threads are here
        return np.ones((len(images), 1), dtype=np.float32)

    batcher = Batcher(run, max_batch=1, max_delay=0, workers=2)
    answers = [put(batcher) for _ in range(6)]
    assert [answer.result(10).tolist() for answer in answers] == [[1.0]] * 6
    batcher.close()


def test_an_image_with_no_other_beside_it_is_run_for_the_soonest_answer() -> None:
    model, wide = Model(), Model()
    batcher = Batcher(model.run, max_batch=1, max_delay=0, workers=2, lone=wide.run)
    put(batcher).result(5)
    wide.gate.clear()
    answers = [put(batcher) for _ in range(3)]
    time.sleep(0.05)
    wide.gate.set()
    for answer in answers:
        answer.result(5)
    assert wide.sizes[0] == 1 and model.sizes
    assert len(wide.sizes) + len(model.sizes) == 4
    batcher.close()
