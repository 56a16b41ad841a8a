"""Peer: all rows in one `.npy` file, mapped with `numpy.load(mmap_mode="r")`. No keys, no checks, no appending."""

from __future__ import annotations

from pathlib import Path

import numpy as np


class Peer:
    name = "memmap"

    def __init__(self, path: Path, values: np.ndarray) -> None:
        self.path = path / "rows.npy"
        np.save(self.path, values)
        self._rows = np.load(self.path, mmap_mode="r")

    def read_all(self, buffer: np.ndarray) -> None:
        for start in range(0, len(self._rows), len(buffer)):
            part = self._rows[start : start + len(buffer)]
            buffer[: len(part)] = part

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return self._rows[rows]

    def nbytes(self) -> int:
        return self.path.stat().st_blocks * 512
