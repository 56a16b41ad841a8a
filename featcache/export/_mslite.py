"""MindSpore Lite: ``model.ms`` for its runtime on devices, ``model.mindir`` for the one on servers.

Its converter reads ONNX of opset 11; the graph is written anew in that. Files of version 2.0 are for readers of that
version: MindSpore the framework has another MindIR, the ``mindspore`` format.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from featcache.export.base import ModelFacts
from featcache.export.environments import Environment
from featcache.export.program import EnvironmentTarget

_ENVIRONMENT = Environment(
    name="mslite",
    program="run_mslite.py",
    requirements="mslite.txt",
    reports="mindspore-lite",
    megabytes=560,
    python="3.7",
    machines=("x86_64", "aarch64"),
)
_OPSET = 11


class MsliteTarget(EnvironmentTarget):
    """``.ms``, run with MindSpore Lite's Python runtime."""

    name = "mslite"
    environment = _ENVIRONMENT
    kind = "ms"
    # its kernels differ from torch's by 4e-5 on logits of small vision transformers, by 1e-6 on convolutional ones
    tolerance = 1e-3

    def tensors(self, facts: ModelFacts) -> dict[str, Any]:
        """Return the reference form for one image at a time, logits only, and the reader the file is for."""
        tensors = super().tensors(facts)
        del tensors["outputs"]["probabilities"]
        tensors["reader"] = "MindSpore Lite 2.0"
        return tensors

    def facts(self, facts: ModelFacts) -> dict[str, Any]:
        """Return what the program is told, with the kind of file."""
        return {**super().facts(facts), "kind": self.kind}

    def graph(self, onnx_path: Path, scratch: Path) -> Path:
        """Return the graph in the old opset that the converter reads."""
        return write_opset(super().graph(onnx_path, scratch), scratch / "old.onnx")


class MindirTarget(MsliteTarget):
    """``.mindir`` of MindSpore Lite, run with its Python runtime."""

    name = "mindir"
    kind = "mindir"


def write_opset(single: Path, path: Path) -> Path:
    """Write the graph at `single` (batch of one) to `path` in opset 11 for MindSpore Lite 2.0, and return that.

    HardSwish became an operation of its own in opset 14, which the converter does not know. LayerNormalization did in
    17: it knows that one, but takes no notice of its epsilon, so it is handed the sums and the root of before.
    """
    import onnx
    import torch

    from featcache.export.drivers.torch_graph import TorchGraph
    from featcache.export.graph import describe, simplify

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = TorchGraph(str(single), outputs=("logits",), integers="none")

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.network(image)[0]  # type: ignore[no-any-return]

    source = onnx.load(single).graph
    shape = [dim.dim_value for dim in source.input[0].type.tensor_type.shape.dim]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=UserWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        torch.onnx.export(
            Logits().eval(), (torch.zeros(shape, dtype=torch.uint8),), path, dynamo=False, opset_version=_OPSET,
            input_names=["image"], output_names=["logits"],
        )  # fmt: skip
    proto = simplify(onnx.load(path))
    describe(proto, {})
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return path
