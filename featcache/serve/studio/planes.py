"""Images laid out in a plane by their features: principal components at once, t-SNE as long work with its own file.

A map's file belongs to the bytes of images, as rows of a cache do: renamed images stay where they are on it, and images
that came after it are the ones it lacks.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featcache.cache import open_cache
from featcache.errors import CorruptError, DependencyError, InputError
from featcache.system.files import refuse_existing, write_atomically

FORMAT = "featcache-map-1"
_COMPONENTS = 50  # of the features are kept for t-SNE: what is beyond is noise, and costs time
_PERPLEXITY = 30.0  # neighbours that each image is drawn to, as van der Maaten and Hinton (2008) have it
_FEWEST = 5


@dataclass(frozen=True, slots=True, eq=False)
class PlaneMap:
    """Where images lie: `points` (n, 2) float32 in [-1, 1] of the images with `digests` (n, 32) uint8.

    `fingerprint`: of the Recipe of the cache that it was made of.
    """

    points: npt.NDArray[np.float32]
    digests: npt.NDArray[np.uint8]
    fingerprint: str


def make_map(
    cache: str | os.PathLike[str], *, out: str | os.PathLike[str], dataset: str | None = None, overwrite: bool = False
) -> PlaneMap:
    """Return the t-SNE map (Barnes-Hut, on the first 50 principal components) of a data set, written to the file `out`.

    Raises
    ------
    InputError
        For a data set that is not there or has fewer than five different images, and for an `out` that exists.
    DependencyError
        Where scikit-learn is not installed.
    """
    refuse_existing(Path(out), overwrite=overwrite)
    _estimator()  # refused before the cache is read
    with open_cache(Path(cache)) as opened:
        selection = opened.select(dataset=dataset, labelled=False)
        rows, first = np.unique(selection.rows, return_index=True)
        if len(rows) < _FEWEST:
            raise InputError(f"a map needs at least {_FEWEST} different images, got {len(rows)}: add images")
        digests = opened.samples(dataset).digests[selection.indices[first]]
        made = PlaneMap(neighbour_embedding(opened.gather(rows)), np.ascontiguousarray(digests), opened.fingerprint)
    write_map(made, Path(out))
    return made


def write_map(made: PlaneMap, path: Path) -> None:
    """Write a map to the file at `path`, whole or not at all."""
    from safetensors.numpy import save

    data = save(
        {"points": made.points, "digests": made.digests},
        metadata={"format": FORMAT, "fingerprint": made.fingerprint},
    )
    write_atomically(path, data)


def read_map(path: Path) -> PlaneMap:
    """Return the map in the file at `path`. Raises `CorruptError` for any other file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            points, digests = file.get_tensor("points"), file.get_tensor("digests")
    except SafetensorError as error:
        raise CorruptError(f"{str(path)!r} must be a map, got {error}: make it again") from error
    whole = points.shape == (len(digests), 2) and digests.shape[1:] == (32,) and np.isfinite(points).all()
    if metadata.get("format") != FORMAT or not whole or (points.dtype, digests.dtype) != (np.float32, np.uint8):
        raise CorruptError(f"{str(path)!r} must be a map of format {FORMAT}, it is none: make it again")
    return PlaneMap(points, digests, metadata.get("fingerprint", ""))


def neighbour_embedding(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return coordinates (n, 2) in [-1, 1] that keep neighbours together: t-SNE, beginning at principal components.

    Raises `DependencyError` where scikit-learn is not installed.
    """
    n = len(features)
    components = principal_components(features, count=min(_COMPONENTS, n - 1, features.shape[1]))
    start = components[:, :2] * np.float32(1e-4 / max(float(components[:, 0].std()), 1e-12))
    perplexity = min(_PERPLEXITY, (n - 1) / 3)
    points = _estimator()(n_components=2, perplexity=perplexity, init=start, random_state=0).fit_transform(components)
    return _scaled(points - points.mean(axis=0))


def _estimator() -> type:
    try:
        from sklearn.manifold import TSNE
    except ModuleNotFoundError as error:
        raise DependencyError(
            "a map of neighbours needs scikit-learn, which is not installed: pip install 'featcache[sklearn]'"
        ) from error
    return TSNE  # type: ignore[no-any-return]


def principal_components(
    features: npt.NDArray[np.float32], *, count: int = 2, most_rows: int = 5000
) -> npt.NDArray[np.float32]:
    """Return the first `count` principal components (n, count) of standardised `features`, scaled into [-1, 1].

    The directions are those of `most_rows` images spread evenly; every image is projected.
    """
    chosen = features[:: max(len(features) // most_rows, 1)]
    mean, std = chosen.mean(axis=0), chosen.std(axis=0)
    scale = np.where(std > 0, 1 / np.maximum(std, 1e-12), 0).astype(np.float32)
    centred = (chosen - mean) * scale
    rng = np.random.default_rng(0)
    width = min(count + 6, features.shape[1])
    basis = rng.standard_normal((features.shape[1], width)).astype(np.float32)
    for _ in range(8):  # subspace iteration: a picture needs no more
        basis = np.linalg.qr(centred.T @ (centred @ basis))[0].astype(np.float32)
    turned = basis @ np.linalg.svd(centred @ basis, full_matrices=False)[2][:count].T
    return _scaled(((features - mean) * scale) @ turned)


def _scaled(points: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.asarray(points / max(float(np.abs(points).max(initial=0)), 1e-12), dtype=np.float32)
