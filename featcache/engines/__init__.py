"""Run a backbone fast: one small interface, one file per engine.

    engine = open_engine(backbone)                 # OpenVINO on a processor, torch on a GPU
    (features,) = engine.run(images)               # (n, height, width, 3) uint8 → (n, num_features) float32

Normalisation is inside the graph and the batch has one fixed shape, the last one being padded: on one machine and
version a row is bit for bit the same whatever stands next to it, wherever it stands, in whatever order.
"""

from featcache.engines.interface import PRECISIONS, CompiledNetwork, Engine, Features, Images
from featcache.engines.opening import open_cached_engine, open_engine
from featcache.engines.registry import engine_names, register_engine

__all__ = [
    "PRECISIONS",
    "CompiledNetwork",
    "Engine",
    "Features",
    "Images",
    "engine_names",
    "open_cached_engine",
    "open_engine",
    "register_engine",
]
