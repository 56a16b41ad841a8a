"""`Maps`: where each image of a data set lies, by principal components at once or as a job has laid them out."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featcache.serve.studio.collection import Collection
from featcache.serve.studio.planes import principal_components, read_map
from featcache.serve.studio.workspace import Workspace

_MOST_KEPT = 8


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """Coordinates (n, 2) of each image, NaN where the map lacks it; how many it lacks, and how many more it knows.

    `made`: whether there is such a map.
    """

    points: npt.NDArray[np.float32]
    made: bool = True
    missing: int = 0
    gone: int = 0


class Maps:
    """The maps of the data sets of `workspace`; what was asked for last is kept. Thread-safe."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._lock = threading.Lock()
        self._components: dict[int, tuple[str, Placed]] = {}

    def place(self, dataset: int) -> Path:
        """Return where the map of neighbours of the data set of that number lies, once a job has made it."""
        return self._workspace.folder("maps") / f"{dataset}.safetensors"

    def components(self, collection: Collection) -> Placed:
        """Return the first two principal components of the standardised features."""
        with self._lock:
            known = self._components.pop(collection.id, None)
            if known is None or known[0] != collection.generation:
                known = collection.generation, Placed(principal_components(collection.features))
            self._components[collection.id] = known
            while len(self._components) > _MOST_KEPT:
                del self._components[next(iter(self._components))]
            return known[1]

    def neighbours(self, collection: Collection) -> Placed:
        """Return the map that a job made. Raises `CorruptError` where its file is another one."""
        points = np.full((len(collection), 2), np.nan, dtype=np.float32)
        path = self.place(collection.id)
        if not path.exists():
            return Placed(points, made=False)
        made = read_map(path)
        if made.fingerprint != collection.fingerprint:  # of another network: nothing of it holds
            return Placed(points, missing=len(points), gone=len(made.points))
        known = {digest.tobytes(): row for row, digest in enumerate(made.digests)}
        rows = np.array([known.get(digest.tobytes(), -1) for digest in collection.digests], dtype=np.int64)
        found = rows >= 0
        points[found] = made.points[rows[found]]
        return Placed(points, missing=int((~found).sum()), gone=len(known) - len(np.unique(rows[found])))
