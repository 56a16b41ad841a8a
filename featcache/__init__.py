"""featcache: run a frozen backbone once, keep its features, train heads from them in seconds, ship the result.

Public names are resolved on first use, so that importing the package loads neither torch nor timm.

>>> import featcache
>>> featcache.__version__
'0.1.0'
"""

from __future__ import annotations

import importlib
from typing import Any

from featcache.system.process import prepare_process

prepare_process()

__version__ = "0.1.0"

_HOMES = {
    "FeatcacheError": "errors",
    "Recipe": "recipe",
    "Preprocessing": "recipe",
    "build_cache": "extract.build",
    "build_caches": "extract.build",
    "open_cache": "cache",
    "FeatureCache": "cache",
    "train_head": "train.fit",
    "compare_heads": "train.comparison",
    "LinearOptions": "train.options",
    "MlpOptions": "train.options",
    "PrototypeOptions": "train.options",
    "KnnOptions": "train.options",
    "TrainOptions": "train.options",
    "DistillationOptions": "train.options",
    "load_head": "heads",
    "save_head": "heads",
    "backbones": "extract.at_hand",
    "load_backbone": "backbone.load",
    "distill": "distillation",
    "merge": "model.merging",
    "MergedModel": "model.merged",
    "prune": "compression",
    "quantize": "compression",
    "recover": "compression",
    "compress": "pipeline.compressing",
    "export": "bundle.exporting",
    "predict": "runtime",
    "evaluate": "runtime",
    "verify": "verification",
    "run": "pipeline.job",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'featcache' has no attribute {name!r}")
    return getattr(importlib.import_module(f"featcache.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
