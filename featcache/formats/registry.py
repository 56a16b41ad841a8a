"""The list of formats: a name, and where its target is found when it is first asked for."""

from __future__ import annotations

import importlib

from featcache.errors import InputError
from featcache.formats.interface import Target

# name → (module, class); order is the order of reports
_TARGETS = {
    "onnx": ("featcache.formats.onnx", "OnnxTarget"),
    "openvino": ("featcache.formats.openvino", "OpenVinoTarget"),
    "coreml": ("featcache.formats.coreml.target", "CoreMlTarget"),
    "tflite": ("featcache.formats.tflite.target", "TfliteTarget"),
    "executorch": ("featcache.formats.executorch.target", "ExecuTorchTarget"),
    "mslite": ("featcache.formats.mindspore.lite", "MsliteTarget"),
    "mindir": ("featcache.formats.mindspore.lite", "MindirTarget"),
    "mindspore": ("featcache.formats.mindspore.framework", "MindSporeTarget"),
    "ncnn": ("featcache.formats.ncnn", "NcnnTarget"),
    "web": ("featcache.formats.web.target", "WebTarget"),
    "tfjs": ("featcache.formats.tfjs.target", "TfjsTarget"),
    "tensorrt": ("featcache.formats.tensorrt", "TensorRtTarget"),
}


def target_names() -> tuple[str, ...]:
    """Return the names of all formats."""
    return tuple(_TARGETS)


def find_target(name: str) -> Target:
    """Return the target called `name`; `InputError` for an unknown one."""
    if name not in _TARGETS:
        raise InputError(f"format must be one of {', '.join(_TARGETS)}, got {name!r}")
    module, kind = _TARGETS[name]
    target: Target = getattr(importlib.import_module(module), kind)()
    return target
