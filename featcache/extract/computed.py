"""What passes from where rows are computed to where they are written: rows, and the time it took."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

STAGES = ("read", "decode", "resize", "network", "write", "wait")


@dataclass(frozen=True, slots=True)
class ComputedRows:
    """Rows on their way to the writer of target `number`."""

    number: int
    keys: npt.NDArray[np.uint8]
    columns: Mapping[str, npt.NDArray[Any]]


class StageClock:
    """Seconds by stage, of one thread."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._mark = time.perf_counter()

    def start(self) -> None:
        self._mark = time.perf_counter()

    def stop(self, stage: str) -> None:
        """Count the time since the last call to `stage`."""
        now = time.perf_counter()
        self.seconds[stage] += now - self._mark
        self._mark = now
