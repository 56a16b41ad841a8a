"""ExecuTorch: ``model.pte`` for PyTorch's runtime on phones, with XNNPACK's kernels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from featcache.formats.interface import FLOATS_FOR_INTEGERS, ModelFacts
from featcache.formats.tools.environments import Environment
from featcache.formats.tools.program import EnvironmentTarget, Prepared
from featcache.system.files import write_atomically

_LEAST_SHARE = 0.5  # of the weights in integers: below, roundings between the two kinds cost more than they save


class ExecuTorchTarget(EnvironmentTarget):
    """Made from the ONNX graph's operations as torch's, run by ExecuTorch's Python runtime.

    Of an INT8 model, XNNPACK's kernels compute what fits their pattern in integers with the stored scales
    (`featcache.formats.executorch.integers`), the rest in floats; where the rest holds most of the weights, everything.
    """

    name = "executorch"
    environment = Environment(
        name="executorch",
        program="run_executorch.py",
        requirements="executorch.txt",
        reports="executorch",
        megabytes=320,
    )

    def prepare(self, onnx_path: Path, scratch: Path, *, facts: ModelFacts) -> Prepared:
        """Return the graph for one image, of a quantized one with integers where the kernels take them."""
        prepared = super().prepare(onnx_path, scratch, facts=facts)
        if not facts.quantized:
            return dataclasses.replace(prepared, settings={"integers": "none"})
        import onnx

        from featcache.formats.executorch.integers import keep_integers

        proto = onnx.load(prepared.graph)
        share = keep_integers(proto)
        if share.weights < _LEAST_SHARE * share.all_weights:
            numbers = f"{FLOATS_FOR_INTEGERS}; XNNPACK's integer kernels fit {share.described()} only"
            return Prepared(prepared.graph, {"integers": "none"}, numbers)
        kept = scratch / "integers.onnx"
        write_atomically(kept, proto.SerializeToString(deterministic=True))
        numbers = (
            f"INT8 with the stored scales, unsigned activations shifted by -128: {share.described()}; "
            "the others, and operations without an integer kernel, in float32"
        )
        return Prepared(kept, {"integers": "stored"}, numbers, takes_scales=True)
