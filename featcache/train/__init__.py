"""Train heads from caches: selection, penalty paths, distillation, calibration. Imports no torch, no scikit-learn."""

from featcache.train.fit import train_head
from featcache.train.result import FitResult, PathPoint, compare

__all__ = ["FitResult", "PathPoint", "compare", "train_head"]
