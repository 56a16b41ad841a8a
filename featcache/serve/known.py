"""`KnownInputs`: images or texts whose bytes a cache knows are answered from their stored features, not run."""

from __future__ import annotations

import hashlib
import os
import threading

import numpy as np
import numpy.typing as npt

from featcache.cache import FeatureCache, open_cache
from featcache.engines.session import open_session
from featcache.errors import InputError
from featcache.graph.head_part import head_part
from featcache.runtime.bundle import Bundle
from featcache.serve.batching import Logits


class StoredFeatures:
    """The features in a cache, by the bytes of the input. Thread-safe; raises as `featcache.cache.open_cache`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._lock = threading.Lock()
        self.cache = open_cache(path)

    def of(self, data: bytes) -> npt.NDArray[np.float32] | None:
        """Return the features (1, d) of the input with the bytes `data`, None where the cache does not know it."""
        digest = np.frombuffer(hashlib.sha256(data).digest(), dtype=np.uint8).reshape(1, 32)
        with self._lock:
            with self.cache.reader() as reader:
                rows = np.asarray(reader.find(digest))
            return None if rows[0] < 0 else self.cache.gather(rows, output=list(self.cache.recipe.outputs))

    def close(self) -> None:
        """Release the cache."""
        with self._lock:
            self.cache.close()


class KnownInputs:
    """The answers of a bundle's own head to stored features. Thread-safe.

    Parameters
    ----------
    bundle
        One whose network is the cache's, not compressed, with a head trained on the cache.
    stored
        The features.

    Raises
    ------
    InputError
        Where the bundle was made of another cache, its network is no longer the cache's, or it holds no ONNX file.
    """

    def __init__(self, bundle: Bundle, stored: StoredFeatures) -> None:
        _check_made_of(bundle, stored.cache)
        self._stored = stored
        self._session = open_session(head_part(bundle.files("onnx")[0]), threads=1)

    def logits(self, data: bytes) -> Logits | None:
        """Return the logits (k,) of the input with the bytes `data`, None where the cache does not know it."""
        features = self._stored.of(data)
        if features is None:
            return None
        logits: Logits = self._session.run(["logits"], {"features": features})[0][0]
        return logits


def _check_made_of(bundle: Bundle, cache: FeatureCache) -> None:
    path = os.fspath(bundle.path)
    steps = bundle.lineage.get("steps", [])
    merged = [step.get("cache") for step in steps if step.get("verb") == "merge"]
    if merged != [cache.fingerprint]:
        raise InputError(
            f"--cache must be the one that {path!r} was made from, {str(cache.path)!r} is another: name that cache, or "
            "leave it out"
        )
    changed = [str(step.get("verb")) for step in steps if step.get("verb") != "merge"]
    if changed:
        raise InputError(
            f"--cache must hold the features of the bundle's own network, that of {path!r} was changed since "
            f"({', '.join(changed)}): leave --cache out, or serve the bundle of the model that was merged"
        )
    if "onnx" not in bundle.formats:
        raise InputError(f"--cache needs the head in an ONNX file, {path!r} has none: export it with --format onnx")
