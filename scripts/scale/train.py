"""Training on rows in parts against rows in memory: gap, reads of the storage, bytes of traffic, and memory, counted.

    python scripts/scale/train.py [--rows 200000] [--features 256] [--classes 10] [--parts 2] [--penalties 6]

Features as a network's: classes in a latent space of steep spectrum, all non-negative, columns of widely different
scale. The parts are in this process, so that what is counted does not depend on the machine; the bytes of a pass are
those that actors on other machines would get and send.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from itertools import pairwise

import numpy as np

from featcache.heads.solvers import Problem, prepare, solve_path
from featcache.heads.solvers.partitioned import distribute
from featcache.heads.solvers.parts import LocalWorkers

BLOCK = 8192


class Generated:
    """Rows made block by block from their numbers, as a storage would give them; `reads` counts those given."""

    def __init__(self, start: int, stop: int, features: int, classes: int) -> None:
        self.start, self.shape, self.classes, self.reads = start, (stop - start, features), classes, 0
        fixed = np.random.default_rng(0)
        self.latent = min(64, features)
        self.centres = fixed.normal(size=(classes, self.latent)).astype(np.float32)
        spectrum = (1.0 / np.sqrt(1.0 + np.arange(self.latent))).astype(np.float32)
        self.mixing = fixed.normal(size=(self.latent, features)).astype(np.float32) * spectrum[:, None]
        self.scales = np.exp(fixed.normal(size=features)).astype(np.float32)

    def __iter__(self):
        n, width = self.shape
        for first in range(0, n, BLOCK):
            m = min(BLOCK, n - first)
            drawn = np.random.default_rng([1, self.start + first])
            hidden = drawn.standard_normal((m, self.latent), dtype=np.float32) * 2.0
            hidden += self.centres[labels_of(self.start + first, m, self.classes)]
            rows = np.maximum(hidden @ self.mixing + 0.3 * drawn.standard_normal((m, width), dtype=np.float32), 0.0)
            self.reads += m
            yield first, rows * self.scales


def labels_of(start: int, count: int, classes: int) -> np.ndarray:
    return (np.arange(start, start + count) * 2654435761 % 2**32) % classes


def compare(*, rows: int, features: int, classes: int, parts: int, penalties: int) -> dict:
    """Return the figures of an L2 and a group L1 path, in parts and in memory."""
    bounds = (np.linspace(0, rows, parts + 1).astype(int) // BLOCK * BLOCK).tolist()
    bounds[-1] = rows
    sources = [Generated(a, b, features, classes) for a, b in pairwise(bounds)]
    labels = labels_of(0, rows, classes)
    workers = LocalWorkers(parts)
    began = time.perf_counter()
    problem = Problem(features=distribute(workers, sources), targets=labels, n_classes=classes)
    prepared = prepare(problem)
    setup = workers.traffic.kept + workers.traffic.sent + workers.traffic.received
    whole = np.concatenate([block for source in sources for _, block in source])
    reads_by_comparison = rows
    in_memory = prepare(Problem(features=whole, targets=labels, n_classes=classes))
    paths = {
        "l2": {"values": np.logspace(-1, -3, penalties)},
        "group_l1": {"n_values": penalties, "l2": 1e-3},
    }
    figures: dict = {
        "rows": rows, "features": features, "classes": classes, "parts": parts, "penalties": penalties,
        "setup_bytes_per_row": round(setup / rows, 1),
    }  # fmt: skip
    for name, settings in paths.items():
        before = workers.traffic.sent + workers.traffic.received + workers.traffic.kept
        rounds = workers.traffic.rounds
        t0 = time.perf_counter()
        ours = solve_path(problem, penalty=name, prepared=prepared, **settings)
        t1 = time.perf_counter()
        theirs = solve_path(in_memory.problem, penalty=name, prepared=in_memory, **settings)
        t2 = time.perf_counter()
        moved = workers.traffic.sent + workers.traffic.received + workers.traffic.kept - before
        asked = workers.traffic.rounds - rounds
        figures[name] = {
            "largest_gap": max(s.gap for s in ours),
            "largest_gap_in_memory": max(s.gap for s in theirs),
            "objective_difference": max(
                abs(a.objective / b.objective - 1.0) for a, b in zip(ours, theirs, strict=True)
            ),
            "passes": sum(s.passes for s in ours),
            "passes_in_memory": sum(s.passes for s in theirs),
            "rounds": asked,
            "traffic_mb": round(moved / 1e6, 3),
            "traffic_kb_per_round_and_part": round(moved / 1e3 / asked / parts, 2),
            "seconds": round(t1 - t0, 2),
            "seconds_over_in_memory": round((t1 - t0) / (t2 - t1), 2),
        }
    figures["reads_of_each_row"] = (sum(source.reads for source in sources) - reads_by_comparison) / rows
    figures["peak_mb_with_both"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    figures["seconds"] = round(time.perf_counter() - began, 1)
    figures["computed_for_1e7_x_1024"] = project(figures, n=10**7, d=1024)
    return figures


def project(figures: dict, *, n: int, d: int, machines: int = 8) -> dict:
    """Return what the counts give for more rows: computed, not run. Weights and sums grow with d, setup with rows."""
    d0, parts = figures["features"], figures["parts"]
    result: dict = {
        "machines": machines,
        "rows_gb_per_machine": round(4e-9 * n * d / machines, 1),
        "setup_mb": round(figures["setup_bytes_per_row"] * n / 1e6),
        "gram_mb": round(8e-6 * d * d * machines, 1),
    }
    for name in ("l2", "group_l1"):
        result[f"{name}_path_mb"] = round(figures[name]["traffic_mb"] * d / d0 * machines / parts, 1)
    return result


def section(arguments: argparse.Namespace) -> dict:
    """Return the figures for `scripts/bench_scale.py`."""
    return compare(rows=arguments.rows or 200_000, features=256, classes=10, parts=2, penalties=6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("rows", 200_000), ("features", 256), ("classes", 10), ("parts", 2), ("penalties", 6)):
        parser.add_argument(f"--{name}", type=int, default=default)
    print(json.dumps(compare(**vars(parser.parse_args())), indent=1))


if __name__ == "__main__":
    main()
