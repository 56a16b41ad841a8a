"""What a program in another environment speaks: one JSON request a line in, one JSON answer a line out, arrays as npy.

It is written for Python 3.7. A request that fails ends the program; the traceback on stderr says why.
"""

from __future__ import annotations

import json
import os
import sys
import time
from abc import ABC, abstractmethod
from typing import Any

import numpy as np


class Program(ABC):
    """One device format's tools. `run` gets (1, H, W, 3) uint8 and gives (1, n_classes) float32."""

    def __init__(self) -> None:
        self._before = _status_bytes("VmRSS")

    @abstractmethod
    def convert(self, graph: str, folder: str, facts: dict[str, Any]) -> list[str]:
        """Write the files made of the ONNX file `graph` (of batch 1) into `folder`; return their names."""

    @abstractmethod
    def load(self, files: list[str], threads: int) -> None:
        """Open the files that `convert` wrote."""

    @abstractmethod
    def infer(self, image: Any) -> Any:
        """Return the logits of one image."""

    def run(self, images: str, out: str) -> None:
        """Write the logits (n, n_classes) of the images (n, H, W, 3) in the file `images` to the file `out`."""
        pixels = np.load(images, allow_pickle=False)
        rows = [np.asarray(self.infer(pixels[i : i + 1]), dtype=np.float32).reshape(1, -1) for i in range(len(pixels))]
        np.save(out, np.concatenate(rows), allow_pickle=False)

    def resident(self) -> int | None:
        """Return by how many bytes the process grew at most since before the file was opened; None off Linux."""
        peak = _status_bytes("VmHWM")
        return None if peak is None or self._before is None else peak - self._before

    def time(self, image: str, seconds: float, least: int) -> list[float]:
        """Return milliseconds of single runs over `seconds`, `least` of them at the least."""
        pixels = np.load(image, allow_pickle=False)
        for _ in range(5):
            self.infer(pixels)
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < least or time.perf_counter() < end:
            start = time.perf_counter()
            self.infer(pixels)
            times.append((time.perf_counter() - start) * 1e3)
        return times


def _status_bytes(key: str) -> int | None:
    """Return a figure of this process in bytes; None off Linux."""
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith(key + ":")), None)
    except OSError:
        return None


def serve(program: Program) -> None:
    """Answer requests ``{"call": name, "arguments": {...}}`` until the input ends."""
    # libraries print on stdout: that goes to stderr, the answers through a copy of the descriptor
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        value = getattr(program, request["call"])(**request["arguments"])
        answers.write(json.dumps({"value": value}) + "\n")
        answers.flush()
