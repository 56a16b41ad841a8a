"""ExecuTorch: ``model.pte`` for PyTorch's runtime on phones, with XNNPACK's kernels."""

from __future__ import annotations

from featcache.export.environments import Environment
from featcache.export.program import EnvironmentTarget


class ExecuTorchTarget(EnvironmentTarget):
    """Made from the ONNX graph's operations as torch's, run by ExecuTorch's Python runtime."""

    name = "executorch"
    environment = Environment(
        name="executorch",
        program="run_executorch.py",
        requirements="executorch.txt",
        reports="executorch",
        megabytes=320,
    )
