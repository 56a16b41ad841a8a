"""TensorFlow Lite (LiteRT): ``model.tflite`` with labels inside, for Android and microcomputers."""

from __future__ import annotations

from featcache.export.environments import Environment
from featcache.export.program import EnvironmentTarget


class TfliteTarget(EnvironmentTarget):
    """Made by litert-torch from the ONNX graph's operations as torch's, run by LiteRT's interpreter.

    A quantized model is stored with the weights that its integers stand for and computes in floats: litert-torch 0.10
    turns scales of other quantizers than its own into roundings at run time, larger and slower than floats.
    """

    name = "tflite"
    environment = Environment(
        name="litert",
        program="run_litert.py",
        requirements="litert.txt",
        reports="ai-edge-litert",
        megabytes=950,
        machines=("x86_64", "aarch64", "arm64"),
    )
