"""`backbones`: what is at hand, and how fast this machine computes it with the engine that a build would take."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from featcache.backbone.available import AvailableBackbone, available_backbones
from featcache.engines.interface import Engine
from featcache.errors import FeatcacheError
from featcache.extract.extraction import default_workers
from featcache.extract.inputs.registry import IMAGE
from featcache.extract.opening import open_extractor
from featcache.extract.request import Request
from featcache.system.threads import one_torch_thread, processor_count


def backbones(
    paths: Iterable[str | Path] = (),
    *,
    measure: bool = False,
    seconds: float = 2.0,
    say: Callable[[str], None] = lambda line: None,
) -> list[AvailableBackbone]:
    """Return the backbones at hand, those with the best linear heads first; nothing is downloaded.

    Parameters
    ----------
    paths : iterable of path
        Weights files, folders of such, and directories of text encoders to list beside the embedded backbone and what
        lies in the model hub's local cache.
    measure : bool
        Time those of images here, each opened as a build would open it. That includes neither decoding nor storing.
    seconds : float
        How long to time each.
    say : callable
        Called with a line before each is timed, and for each that is there but cannot be used.

    Returns
    -------
    list of AvailableBackbone
        Images' before texts'; without a figure behind those with one.

    Raises
    ------
    MissingError
        For a path that is not there.
    WeightsError, FormatError, BackboneError
        For a path that is no weights file of a named network and no text encoder.

    Examples
    --------
    >>> import featcache
    >>> embedded = featcache.backbones()[-1]
    >>> embedded.name, embedded.input_size, embedded.num_features
    ('featcache_nano', (96, 96), 1024)
    """
    found = available_backbones(paths, note=say)
    return [_timed(one, seconds=seconds, say=say) if measure and one.input == IMAGE else one for one in found]


def _timed(backbone: AvailableBackbone, *, seconds: float, say: Callable[[str], None]) -> AvailableBackbone:
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
