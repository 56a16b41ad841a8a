"""Which precision to compute in: the faster one where the processor has it and check images show that it is exact."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from featcache.errors import InputError
from featcache.recipe import Precision

MIN_COSINE = 0.999  # of a row to its fp32 row, over the check images


def usable_cores() -> int:
    """Return the processor cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_images(shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Return deterministic structured images (n, height, width, 3) uint8: gradients, edges, waves and noise."""
    n, height, width, _ = shape
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    random = np.random.default_rng(20240229)
    images = np.empty(shape, dtype=np.uint8)
    for i in range(n):
        angle, frequency = random.uniform(0, np.pi), random.uniform(1, 30)
        phase = random.uniform(0, 2 * np.pi, size=3)
        wave = np.sin(2 * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle))[..., None] + phase)
        edge = np.where((x - random.uniform()) * np.cos(angle) + (y - random.uniform()) * np.sin(angle) > 0, 0.6, -0.6)
        noise = random.normal(0, 0.1, size=(height, width, 3))
        images[i] = np.clip(127.5 * (1 + 0.5 * wave + edge[..., None] * (i % 3 - 1) + noise), 0, 255)
    return images


def choose_precision(
    precision: str,
    *,
    available: Sequence[Precision],
    open_network: Callable[[Precision], Any],
    run: Callable[[Any, npt.NDArray[np.uint8]], Sequence[npt.NDArray[np.float32]]],
    shape: tuple[int, ...],
    engine: str,
) -> tuple[Precision, Any]:
    """Return the precision and the network opened in it.

    `precision`: what is asked for, or ``auto``: the last of `available` that gives every row of the check images a
    cosine of at least 0.999 to fp32. Raises `InputError` for one that is not available here.
    """
    if precision != "auto":
        if precision not in available:
            raise InputError(
                f"precision must be one that {engine} computes in on this machine ({', '.join(available)}), got "
                f"{precision!r}: build on a machine that has it, or another cache with --precision fp32"
            )
        chosen = cast(Precision, precision)
        return chosen, open_network(chosen)
    exact = open_network("fp32")
    if "bf16" not in available:
        return "fp32", exact
    images = check_images(shape)
    expected = [np.array(rows, copy=True) for rows in run(exact, images)]
    fast = open_network("bf16")
    worst = min(row_cosine(a, b).min() for a, b in zip(expected, run(fast, images), strict=True))
    return ("bf16", fast) if worst >= MIN_COSINE else ("fp32", exact)


def row_cosine(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return the cosine (n,) of the rows of `a` and `b` (n, …); 1 where both are zero."""
    x, y = (values.reshape(len(values), -1).astype(np.float64) for values in (a, b))
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    same = (np.abs(x - y).max(axis=1) == 0).astype(np.float64)
    return np.divide((x * y).sum(axis=1), norms, out=same, where=norms > 0)
