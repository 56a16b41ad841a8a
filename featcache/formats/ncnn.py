"""ncnn: ``model.ncnn.param`` and ``model.ncnn.bin`` for Tencent's runtime on phones, through its converter pnnx."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.errors import VerificationError
from featcache.formats.interface import FLOATS_FOR_INTEGERS, Converted, ModelFacts, Runner, Target, numbers_of
from featcache.system.files import write_atomically

_FILES = ("model.ncnn.param", "model.ncnn.bin")


class NcnnTarget(Target):
    """The input is planar float32 of values 0 to 255: ncnn's own ``from_pixels`` makes exactly that of a photo."""

    name = "ncnn"
    needs = "featcache targets install ncnn, or pip install 'featcache[ncnn]'"
    packages = ("ncnn==1.0.20261020", "pnnx==20261020")

    def available(self) -> str | None:
        """Return why ncnn cannot be used here, or None."""
        missing = [name for name in ("ncnn", "pnnx") if importlib.util.find_spec(name) is None]
        return f"the packages {' and '.join(missing)} are not installed" if missing else None

    def version(self) -> str:
        """Return ncnn's version."""
        return f"ncnn {importlib.metadata.version('ncnn')}"

    def convert(self, onnx_path: Path, folder: Path, *, facts: ModelFacts) -> Converted:
        """Write both files; weights stay float32. Raises `VerificationError` where the converter does not take it."""
        self.require()
        from featcache.formats.planar import trace_planar
        from featcache.graph.passes import write_single

        with tempfile.TemporaryDirectory() as scratch:
            place = Path(scratch)
            single = write_single(onnx_path, place / "single.onnx")
            traced, shape = trace_planar(single, image_shape=facts.image_shape, outputs=("logits",))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", category=DeprecationWarning)
                traced.save(str(place / "model.pt"))
            sizes = ",".join(str(size) for size in shape)
            program = Path(str(importlib.metadata.distribution("pnnx").locate_file("pnnx"))) / "bin" / "pnnx"
            pnnx = str(program) if program.exists() else shutil.which("pnnx", path=str(Path(sys.executable).parent))
            command = [pnnx or "pnnx", "model.pt", f"inputshape=[{sizes}]", "fp16=0"]
            # it leaves eight files of its own around the model: a folder of its own
            done = subprocess.run(command, cwd=place, capture_output=True, encoding="utf-8", check=False)
            if done.returncode or not all((place / name).exists() for name in _FILES):
                complaint = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
                raise VerificationError(f"ncnn's converter pnnx must take this model, it says: {complaint}")
            for name in _FILES:
                write_atomically(folder / name, (place / name).read_bytes())
        numbers = numbers_of(facts, integers=FLOATS_FOR_INTEGERS)
        return Converted(tuple(folder / name for name in _FILES), _tensors(facts), numbers, takes_scales=False)

    def open(self, files: Sequence[Path], *, threads: int) -> Runner:
        """Return the network, computing in float32."""
        self.require()
        return _NcnnRunner(files, threads)


def _tensors(facts: ModelFacts) -> dict[str, Any]:
    """Return planar floats in, logits out, without a batch."""
    height, width, channels = facts.image_shape
    planar = {"dtype": "float32", "layout": "CHW", "color": "RGB", "range": [0, 255]}
    return {
        "inputs": {"in0": {**planar, "shape": [channels, height, width]}},
        "outputs": {"out0": {"dtype": "float32", "shape": [len(facts.classes)], "meaning": "logits"}},
    }


class _NcnnRunner(Runner):
    def __init__(self, files: Sequence[Path], threads: int) -> None:
        import ncnn

        self._tools = ncnn
        self._network = ncnn.Net()
        options = self._network.opt
        options.num_threads = threads
        # the default rounds weights and values to 16 bits wherever the processor can
        for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
            setattr(options, name, False)
        self._network.load_param(str(files[0]))
        self._network.load_model(str(files[1]))

    def run(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the logits."""
        return np.stack([self._logits(image) for image in images])

    def _logits(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        planar = np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)
        with self._network.create_extractor() as extractor:
            extractor.input("in0", self._tools.Mat(planar).clone())
            _, logits = extractor.extract("out0")
            return np.array(logits, dtype=np.float32).reshape(-1)

    def close(self) -> None:
        """Release the network."""
        self._network.clear()
