"""The classifier's graph as traced torch code that takes a planar image, for tools that read TorchScript."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
import torch

from featcache.formats.drivers.torch_graph import TorchGraph


def trace_planar(single: Path, *, outputs: tuple[str, ...]) -> tuple[torch.jit.ScriptModule, tuple[int, int, int, int]]:
    """Return the ONNX file `single` (batch of one) traced on (1, 3, H, W) float32 of values 0 to 255, and that shape.

    One of `outputs` is returned by itself, several as a tuple.
    """

    class Planar(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = TorchGraph(str(single), outputs=outputs, integers="none")

        def forward(self, image: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
            found: tuple[torch.Tensor, ...] = self.network(image.permute(0, 2, 3, 1))
            return found if len(found) > 1 else found[0]

    graph = onnx.load(single).graph
    _, height, width, channels = (dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim)
    shape = (1, channels, height, width)
    with torch.no_grad(), warnings.catch_warnings():
        # torch announces the end of TorchScript, which these tools still need
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        traced = torch.jit.trace(Planar().eval(), (torch.zeros(shape),))  # type: ignore[no-untyped-call]
    return traced, shape
