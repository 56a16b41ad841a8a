"""ExecuTorch: ``model.pte`` for PyTorch's runtime on phones, with XNNPACK's kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featcache.formats.interface import ModelFacts
from featcache.formats.tools.environments import Environment
from featcache.formats.tools.program import EnvironmentTarget
from featcache.system.files import write_atomically

_LEAST_SHARE = 0.5  # of the weights in integers: below, roundings between the two kinds cost more than they save


class ExecuTorchTarget(EnvironmentTarget):
    """Made from the ONNX graph's operations as torch's, run by ExecuTorch's Python runtime.

    Of an INT8 model, XNNPACK's kernels compute what fits their pattern in integers with the stored scales
    (`featcache.formats.executorch.integers`), the rest in floats; where the rest holds most of the weights, everything.
    `takes_scales` is of the last model converted.
    """

    name = "executorch"
    environment = Environment(
        name="executorch",
        program="run_executorch.py",
        requirements="executorch.txt",
        reports="executorch",
        megabytes=320,
    )

    def __init__(self) -> None:
        self._numbers: str | None = None

    def graph(self, onnx_path: Path, scratch: Path) -> Path:
        """Return the graph for one image, of a quantized one with integers where the kernels take them."""
        import onnx

        from featcache.formats.executorch.integers import keep_integers

        single = super().graph(onnx_path, scratch)
        self.takes_scales, self._numbers = False, None
        proto = onnx.load(single)
        if not any(node.op_type == "DequantizeLinear" for node in proto.graph.node):
            return single
        share = keep_integers(proto)
        if share.weights < _LEAST_SHARE * share.all_weights:
            self._numbers = (
                "float32: weights are what their integers stand for, activations are not rounded; XNNPACK's integer "
                f"kernels fit {share.described()} only"
            )
            return single
        self.takes_scales = True
        self._numbers = (
            f"INT8 with the stored scales, unsigned activations shifted by -128: {share.described()}; "
            "the others, and operations without an integer kernel, in float32"
        )
        kept = scratch / "integers.onnx"
        write_atomically(kept, proto.SerializeToString(deterministic=True))
        return kept

    def facts(self, facts: ModelFacts) -> dict[str, Any]:
        """Return what the program is told, with the form of what is quantized in `graph`'s file."""
        return {**super().facts(facts), "integers": "stored" if self.takes_scales else "none"}

    def tensors(self, facts: ModelFacts) -> dict[str, Any]:
        """Return the reference form for one image at a time, and of an INT8 model which numbers compute."""
        tensors = super().tensors(facts)
        if self._numbers is not None:
            tensors["numbers"] = self._numbers
        return tensors
