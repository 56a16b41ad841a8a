"""`bench`: how long one image takes in each device file of a bundle and how much memory, here and now."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from featcache.errors import DependencyError
from featcache.formats.interface import Runner
from featcache.formats.memory import resident_bytes
from featcache.formats.registry import find_target
from featcache.graph.cost import GraphCost, cost_json
from featcache.runtime.bundle import open_bundle
from featcache.system.threads import processor_count

_LEAST_RUNS = 20


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds for one image in memory to logits: `median` and 95th percentile of `runs`, on `threads` threads."""

    median: float
    p95: float
    threads: int
    runs: int

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"median": self.median, "p95": self.p95, "threads": self.threads, "runs": self.runs}


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One device file, measured. `latency_ms` is None where it was not run, and `reason` says why.

    `cost`: what its graph costs by counting, None in a bundle that does not say. `resident_bytes`: the memory
    that it took here.
    """

    format: str
    runtime: str | None
    bytes: int
    latency_ms: Latency | None
    reason: str | None
    cost: GraphCost | None
    resident_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        latency = None if self.latency_ms is None else self.latency_ms.to_json()
        return {
            "format": self.format,
            "runtime": self.runtime,
            "bytes": self.bytes,
            "executed": latency is not None,
            "reason": self.reason,
            "latency_ms": latency,
            **cost_json(self.cost, self.resident_bytes),
        }


def bench(
    bundle: str | os.PathLike[str],
    *,
    formats: Sequence[str] | None = None,
    threads: int | None = None,
    seconds: float = 2.0,
) -> list[Benchmark]:
    """Return one measurement per format of the BUNDLE at `bundle` (default: all), `seconds` each, batches of one.

    Decoding is not part of it. A format whose runtime is not on this machine is reported with the reason. Raises
    `DependencyError` where none can be run here.
    """
    opened = open_bundle(bundle)
    count = threads or processor_count()
    chosen = [opened.format_named(name) for name in formats or opened.formats]
    image = opened.input.example()
    measurements = []
    for name in tqdm(chosen, desc="bench", unit="format", disable=None):
        size = sum(path.stat().st_size for path in opened.files(name))
        target = find_target(name)
        cost = opened.costs[name]
        reason = target.available() or target.executable()
        if reason is not None:
            measurements.append(Benchmark(name, None, size, None, reason, cost))
            continue
        with opened.open(name, threads=count) as runner:
            latency = measure_latency(runner, image, threads=count, seconds=seconds)
            resident = resident_bytes(target, runner, opened.files(name), example=image, threads=count)
        runtime = runner.described or target.version()
        measurements.append(Benchmark(name, runtime, size, latency, None, cost, resident))
    if all(entry.latency_ms is None for entry in measurements):
        reasons = "; ".join(f"{entry.format}: {entry.reason}" for entry in measurements)
        raise DependencyError(f"at least one format must be runnable here, got none ({reasons})")
    return measurements


def measure_latency(runner: Runner, image: npt.NDArray[Any], *, threads: int, seconds: float = 0.5) -> Latency:
    """Return how long `runner` takes for `image` (1, height, width, 3), timed for about `seconds`, warmed up."""
    times = runner.time(image, seconds=seconds, least=_LEAST_RUNS)
    used = runner.threads or threads
    return Latency(float(np.median(times)), float(np.percentile(times, 95)), used, len(times))
