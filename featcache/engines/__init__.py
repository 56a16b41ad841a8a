"""Run a backbone fast: one small interface, one file per engine.

    engine = open_engine(backbone)                 # OpenVINO on a processor, torch on a GPU
    (features,) = engine.run(images)               # (n, height, width, 3) uint8 → (n, num_features) float32

Normalisation is inside the graph and the batch has one fixed shape, the last one being padded: on one machine and
version a row is bit for bit the same whatever stands next to it, wherever it stands, in whatever order.
"""

from featcache.engines.interface import ENGINE_NAMES, PRECISIONS, Engine, EngineName, Features, Images
from featcache.engines.opening import open_cached_engine, open_engine

__all__ = [
    "ENGINE_NAMES",
    "PRECISIONS",
    "Engine",
    "EngineName",
    "Features",
    "Images",
    "open_cached_engine",
    "open_engine",
]
