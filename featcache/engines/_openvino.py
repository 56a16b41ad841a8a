"""OpenVINO: the fastest engine measured on a CPU (bf16 on processors that have it).

The network goes through OpenVINO's PyTorch frontend. The converted network is kept in the user's cache directory, so
that tracing happens once for each set of weights.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from featcache.backbone import Backbone, ImageNetwork
from featcache.engines import Engine
from featcache.engines.precision import choose_precision, usable_cores
from featcache.errors import CorruptError
from featcache.files import cache_home, write_atomically
from featcache.recipe import Precision, canonical_json

_HINTS = {"fp32": "f32", "bf16": "bf16"}
_KEPT_NETWORKS = 16


class OpenVinoEngine(Engine):
    """One compiled network; `run` computes with all cores and without the GIL."""

    name = "openvino"

    def __init__(self, backbone: Backbone, *, precision: str, batch_size: int) -> None:
        self.version = ov.__version__.partition(".")[0]
        self.batch_size = batch_size
        self.columns = tuple(zip(backbone.outputs, backbone.output_shapes, strict=True))
        core = ov.Core()
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        size = backbone.preprocessing
        model = _converted(core, backbone)
        model.reshape([batch_size, size.height, size.width, 3])

        def compile_network(chosen: Precision) -> Any:
            return core.compile_model(
                model,
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": _HINTS[chosen],
                    "NUM_STREAMS": "1",
                    "INFERENCE_NUM_THREADS": str(usable_cores()),
                    "ENABLE_CPU_PINNING": False,
                },
            )

        self.precision, compiled = choose_precision(
            precision,
            available=("fp32", "bf16") if "BF16" in capabilities else ("fp32",),
            open_network=compile_network,
            run=lambda network, batch: list(network(batch).values()),
            shape=(batch_size, size.height, size.width, 3),
            engine=self.name,
        )
        self._request = compiled.create_infer_request()

    def run(self, batch: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], ...]:
        """Return the outputs of one full batch."""
        self._request.infer([batch], share_inputs=True, share_outputs=True)
        return tuple(self._request.get_output_tensor(i).data for i in range(len(self.columns)))

    def close(self) -> None:
        """Release the network."""
        del self._request


def _converted(core: Any, backbone: Backbone) -> Any:
    """Return OpenVINO's form of `backbone`, from the user's cache directory where it was converted before."""
    import torch

    described = {
        "openvino": ov.__version__,
        "torch": torch.__version__,
        "weights": backbone.weights_sha256,
        "model": backbone.model_name,
        "kwargs": backbone.model_kwargs,
        "digest": backbone.model_digest,
        "outputs": list(backbone.outputs),
        "preprocessing": backbone.preprocessing.to_json(),
        "graph": hashlib.sha256(str(backbone.network).encode()).hexdigest(),
    }
    key = hashlib.sha256(canonical_json(described).encode()).hexdigest()[:32]
    folder = cache_home() / "openvino"
    path = folder / f"{key}.xml"
    stamp = folder / f"{key}.sha256"
    try:
        if stamp.read_text() == _files_digest(path):
            os.utime(stamp)
            return core.read_model(path)
    except FileNotFoundError:
        pass  # not converted yet on this machine
    model = _convert(backbone)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{secrets.token_hex(8)}.xml"
    ov.save_model(model, temporary, compress_to_fp16=False)
    for suffix in (".bin", ".xml"):
        temporary.with_suffix(suffix).replace(path.with_suffix(suffix))
    write_atomically(stamp, _files_digest(path).encode())
    _forget_old(folder)
    return model


def _files_digest(path: Path) -> str:
    state = hashlib.sha256()
    for suffix in (".xml", ".bin"):
        state.update(path.with_suffix(suffix).read_bytes())
    return state.hexdigest()


def _forget_old(folder: Path) -> None:
    """Keep the networks used last."""
    stamps = sorted(folder.glob("*.sha256"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    for stamp in stamps[_KEPT_NETWORKS:]:
        for suffix in (".sha256", ".xml", ".bin"):
            stamp.with_suffix(suffix).unlink(missing_ok=True)


def _convert(backbone: Backbone) -> Any:
    """Return `backbone` converted by the PyTorch frontend (not by convert_model, which sends telemetry)."""
    import warnings

    import torch
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    size = backbone.preprocessing
    example = torch.zeros(2, size.height, size.width, 3, dtype=torch.uint8)  # two: a batch of one is traced away
    with warnings.catch_warnings(), torch.inference_mode():
        # the tracer warns of shapes that become constants: they are, images have one size
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(ImageNetwork(backbone), example, check_trace=False)
        frontend = FrontEndManager().load_by_framework("pytorch")
        model = frontend.convert(frontend.load(TorchScriptPythonDecoder(traced, example_input=(example,))))
    if len(model.outputs) != len(backbone.outputs):
        raise CorruptError(f"the converted network must have the outputs {backbone.outputs!r}, got {model.outputs!r}")
    return model
