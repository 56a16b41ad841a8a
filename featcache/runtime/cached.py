"""Predictions from stored features: the images a cache knows need no decoding and no backbone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featcache.cache import open_cache
from featcache.errors import InputError
from featcache.heads import Head, load_head
from featcache.runtime.classifier import is_model
from featcache.store.interface import KEY_BYTES
from featcache.system.sources.batches import Source, prepared_batches

_HASHED_AT_ONCE = 1024


def load_fitted(path: str | os.PathLike[str]) -> Head:
    """Return the head of the MODEL or HEAD at `path`."""
    if is_model(path):
        from featcache.model.directory import load_model

        return load_model(path).fitted_head
    return load_head(path)


def cached_logits(
    fitted: Head, sources: Sequence[Source], cache: str | os.PathLike[str]
) -> tuple[list[int], npt.NDArray[np.float32]]:
    """Return the positions in `sources` of the inputs whose bytes the cache knows, and their logits (n, n_classes).

    Raises `InputError` where the head was trained on another cache.
    """
    with open_cache(cache) as opened:
        if fitted.fingerprint not in (None, opened.fingerprint):
            raise InputError(
                f"the head must have been trained on the cache {os.fspath(cache)!r}; their fingerprints differ: "
                "name the cache it was trained on, or leave it out"
            )
        digests = np.zeros((len(sources), KEY_BYTES), dtype=np.uint8)
        failures: dict[int, str] = {}
        for batch in prepared_batches(sources, _digest, failures=failures, batch_size=_HASHED_AT_ONCE):
            digests[batch.indices] = batch.values
        readable = np.ones(len(sources), dtype=bool)
        readable[list(failures)] = False
        with opened.reader() as reader:
            rows = np.asarray(reader.find(digests))
        known = np.flatnonzero(readable & (rows >= 0))
        if not len(known):
            return [], np.zeros((0, len(fitted.classes)), dtype=np.float32)
        outputs = list(dict.fromkeys(column.partition("@")[0] for column in fitted.columns))
        features = opened.gather(rows[known], output=outputs)
    return known.tolist(), fitted.predict_logits(features)


def _digest(data: bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(hashlib.sha256(data).digest(), dtype=np.uint8)
