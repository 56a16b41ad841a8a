"""Peer: LMDB with one record a row, as most programs that cache features in LMDB write it."""

from __future__ import annotations

from pathlib import Path

import lmdb
import numpy as np


class Peer:
    name = "lmdb, a record a row"

    def __init__(self, path: Path, values: np.ndarray) -> None:
        self.path = path / "rows.lmdb"
        self._shape, self._dtype, self._count = values.shape[1:], values.dtype, len(values)
        with (
            lmdb.open(str(self.path), subdir=False, map_size=4 * values.nbytes + (1 << 24)) as env,
            env.begin(write=True) as transaction,
        ):
            for row, value in enumerate(values):
                transaction.put(row.to_bytes(8, "big"), value.tobytes(), append=True)
        self._env = lmdb.open(str(self.path), subdir=False, readonly=True, lock=False)

    def read_all(self, buffer: np.ndarray) -> None:
        with self._env.begin(buffers=True) as transaction:
            for row, (_, value) in enumerate(transaction.cursor()):
                buffer[row % len(buffer)] = np.frombuffer(value, dtype=self._dtype).reshape(self._shape)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), *self._shape), dtype=self._dtype)
        with self._env.begin(buffers=True) as transaction:
            for position, row in enumerate(rows.tolist()):
                value = transaction.get(row.to_bytes(8, "big"))
                out[position] = np.frombuffer(value, dtype=self._dtype).reshape(self._shape)
        return out

    def nbytes(self) -> int:
        return self.path.stat().st_blocks * 512
