"""How a model is run here: the batch that is fastest, threads of their own for a runtime that allows it."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from featcache.extract.inputs.deployed_images import DeployedImages
from featcache.formats.interface import Runner
from featcache.recipe import Preprocessing
from featcache.runtime.classifier import Classifier
from featcache.serve import lanes
from featcache.serve.lanes import fastest_batch, open_lanes
from featcache.serve.settings import ServeSettings

PREPROCESSING = Preprocessing(
    height=4, width=4, resize=4, interpolation="bilinear", crop_mode="center", mean=(0.0,) * 3, std=(1.0,) * 3
)


class Sleeper(Runner):
    """Takes so long for a batch, and so long for each of its images."""

    def __init__(self, batch: float, image: float) -> None:
        self.seconds = (batch, image)
        self.closed = False

    def run(self, images: np.ndarray) -> np.ndarray:
        batch, image = self.seconds
        time.sleep(batch + image * len(images))
        return np.zeros((len(images), 2), dtype=np.float32)

    def close(self) -> None:
        self.closed = True


def classifier(runner: Runner) -> Classifier:
    return Classifier(runner, "onnx", ("a", "b"), "classification", None, DeployedImages(PREPROCESSING))


def test_a_network_that_gains_nothing_from_batches_gets_none() -> None:
    assert fastest_batch(classifier(Sleeper(0.0, 0.005)), 16) == 1


def test_a_network_that_costs_by_the_run_gets_the_largest() -> None:
    assert fastest_batch(classifier(Sleeper(0.02, 0.0)), 8) == 8


def opened_by(monkeypatch: pytest.MonkeyPatch, *, concurrent: bool, wide: float) -> list[tuple[int, Sleeper]]:
    """Let a classifier take 20 ms for an image with one thread and `wide` seconds with all; return what is opened."""
    found: list[tuple[int, Sleeper]] = []

    def opened(bundle: Path, *, format: str | None, threads: int) -> Classifier:
        runner = Sleeper(0.0, 0.02 if threads == 1 else wide)
        runner.concurrent = concurrent
        found.append((threads, runner))
        return classifier(runner)

    monkeypatch.setattr(lanes, "open_classifier", opened)
    return found


@pytest.mark.parametrize(("wide", "kept"), [(0.005, True), (0.02, False)])
def test_a_second_copy_is_kept_only_where_it_answers_sooner(
    monkeypatch: pytest.MonkeyPatch, wide: float, kept: bool
) -> None:
    found = opened_by(monkeypatch, concurrent=True, wide=wide)
    made = open_lanes(Path("b"), ServeSettings(threads=4, max_batch=1))
    assert [threads for threads, _ in found] == [1, 4]
    assert (made.workers, made.lone is not None) == (4, kept)
    assert [runner.closed for _, runner in found] == [False, not kept]
    made.close()
    assert all(runner.closed for _, runner in found)


def test_a_runtime_of_one_caller_has_one_thread_that_computes_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    found = opened_by(monkeypatch, concurrent=False, wide=0.005)
    made = open_lanes(Path("b"), ServeSettings(threads=4, max_batch=1))
    assert [(threads, runner.closed) for threads, runner in found] == [(1, True), (4, False)]
    assert (made.workers, made.lone) == (1, None)


def test_nothing_stays_open_where_the_first_run_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    found = opened_by(monkeypatch, concurrent=True, wide=0.005)

    def fail(images: np.ndarray) -> np.ndarray:
        raise ValueError("broken")

    monkeypatch.setattr(Sleeper, "run", lambda self, images: fail(images))
    with pytest.raises(ValueError, match="broken"):
        open_lanes(Path("b"), ServeSettings(threads=4))
    assert all(runner.closed for _, runner in found)


def test_one_session_of_onnx_runtime_answers_several_threads(pets: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    made = open_lanes(pets, ServeSettings(threads=2))
    images = np.random.default_rng(0).integers(0, 256, (8, 1, *_shape(made.classifier)), dtype=np.uint8)
    expected = [made.classifier.run(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            np.testing.assert_array_equal(list(pool.map(made.classifier.run, images)), expected)
    made.close()


def _shape(made: Classifier) -> tuple[int, int, int]:
    return made.preprocessing.height, made.preprocessing.width, 3
