"""Use what was exported: predict, evaluate and time a BUNDLE with its own runtime and Pillow, without torch."""

from __future__ import annotations

from featcache.runtime.benchmark import Benchmark, bench
from featcache.runtime.bundle import Bundle, open_bundle
from featcache.runtime.evaluation import Evaluation, evaluate
from featcache.runtime.plot import write_plot
from featcache.runtime.prediction import Prediction, predict

__all__ = [
    "Benchmark",
    "Bundle",
    "Evaluation",
    "Prediction",
    "bench",
    "evaluate",
    "open_bundle",
    "predict",
    "write_plot",
]
