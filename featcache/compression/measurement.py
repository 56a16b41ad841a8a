"""Count and time what ships: multiplications, zeros, bytes, integer kernels, and the latency of graphs in turn."""

from __future__ import annotations

import statistics
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from torch import nn
from tqdm import trange

from featcache.engines.session import open_session
from featcache.graph.cost import node_macs
from featcache.system.threads import processor_count

_WARM_RUNS = 5
_TIMED_SECONDS = 1.5  # per graph, at most; enough for a hundred runs of a MobileNet
_LEAST_RUNS = 15
_MOST_RUNS = 100  # a small network's median moves no more after them
_BLOCK_BYTES = 2**20


def graph_macs(path: str | Path) -> int:
    """Return the multiply-accumulates per image of the ONNX file `path`."""
    return sum(node_macs(onnx.load(str(path))).values())


def compressed_bytes(path: str | Path) -> int:
    """Return how many bytes the file `path` has when compressed (zlib, level 9): there alone zeros save any."""
    packer = zlib.compressobj(9)
    with open(path, "rb") as file:
        packed = sum(len(packer.compress(block)) for block in iter(lambda: file.read(_BLOCK_BYTES), b""))
    return packed + len(packer.flush())


def zero_share(network: nn.Module) -> float:
    """Return the share of exact zeros among the weights of convolutions and linear layers."""
    weights = [m.weight for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    total = sum(weight.numel() for weight in weights)
    return sum(int((weight == 0).sum()) for weight in weights) / total if total else 0.0


def integer_share(path: str | Path) -> tuple[int, int]:
    """Return (convolutions computed in integers, convolutions) in ONNX Runtime's own optimised form of the file."""
    with tempfile.TemporaryDirectory() as folder:
        optimised = Path(folder) / "optimised.onnx"
        open_session(path, save_optimised=optimised)
        kinds = [node.op_type for node in onnx.load(optimised).graph.node]
    integer = sum(kind in ("QLinearConv", "ConvInteger") for kind in kinds)
    return integer, integer + sum(kind in ("Conv", "FusedConv", "NhwcFusedConv") for kind in kinds)


def latencies_ms(paths: Sequence[str | Path], example: npt.NDArray[Any] | None = None) -> list[float]:
    """Return the median latency in ms of one input through each ONNX file in ONNX Runtime, on all processors.

    `example`: that input, a batch of one; by default an image of noise.

    Runs alternate between the files, so that whatever else the machine does falls on all of them alike.
    """
    sessions = [open_session(path, threads=processor_count(), spinning=True) for path in paths]
    given = sessions[0].get_inputs()[0]
    if example is None:
        example = np.random.default_rng(0).integers(0, 256, size=(1, *given.shape[1:]), dtype=np.uint8)
    feed = {given.name: example}
    seconds: list[list[float]] = [[] for _ in sessions]
    for session in sessions:
        for _ in range(_WARM_RUNS):
            session.run(None, feed)
    end = time.perf_counter() + _TIMED_SECONDS * len(sessions)
    for run in trange(_MOST_RUNS, desc="time", unit="run", leave=False, disable=None):
        for session, taken in zip(sessions, seconds, strict=True):
            before = time.perf_counter()
            session.run(None, feed)
            taken.append(time.perf_counter() - before)
        if run + 1 >= _LEAST_RUNS and time.perf_counter() > end:
            break
    return [1e3 * statistics.median(taken) for taken in seconds]
