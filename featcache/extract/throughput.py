"""How many images a second this machine computes with the engine that a build would take."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from featcache.backbone.available import AvailableBackbone
from featcache.engines.interface import Engine
from featcache.errors import FeatcacheError
from featcache.extract.extraction import default_workers
from featcache.extract.inputs.registry import IMAGE
from featcache.extract.opening import open_extractor
from featcache.extract.request import Request
from featcache.system.threads import one_torch_thread, processor_count


def timed(backbone: AvailableBackbone, *, seconds: float, say: Callable[[str], None]) -> AvailableBackbone:
    """Return `backbone` with its images per second, one of texts as it is.

    `say`: called with a line before, and for one that does not load, which is returned as it is.
    """
    if backbone.input != IMAGE:
        return backbone
    say(f"timing {backbone.name} ({backbone.where}) for {seconds:g} s")
    try:
        opened = open_extractor(Request(backbone.name, backbone.weights))
    except FeatcacheError as error:  # one that does not load must not hide the others
        say(f"{backbone.name} cannot be timed: {error}")
        return backbone
    assert isinstance(opened.engine, Engine)
    with opened.engine as engine:
        return dataclasses.replace(backbone, images_per_second=images_per_second(engine, seconds=seconds))


def images_per_second(engine: Engine, *, seconds: float) -> float:
    """Return how many images `engine` computes in a second on as many threads as a build has, over `seconds`."""
    threads = default_workers([engine], processors=processor_count())
    shape = (engine.batch_size, *engine.input_shape)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for _ in range(threads):
        engine.run(images)  # what is made at the first call is not timed
    end = threading.Event()

    def work() -> int:
        count = 0
        while not end.is_set():
            engine.run(images)
            count += len(images)
        return count

    with one_torch_thread(), ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        running = [pool.submit(work) for _ in range(threads)]
        end.wait(seconds)
        end.set()
        done = sum(thread.result() for thread in running)
        return done / (time.perf_counter() - started)
